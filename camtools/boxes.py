"""The connected parts of masks: as boxes, for a whole batch at once (`boxes_from_masks`), and as COCO annotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from camtools.checks import number
from camtools.errors import InputError

IntArray = NDArray[np.int64]

SPECK = 0.01
"""Share of the largest part's pixels below which explanations leave a part out: masks that follow an image's texture
have dozens of parts of a few pixels."""


def boxes_from_masks(masks: Tensor, least: float = 0.0) -> list[Tensor]:
    """Return one box for each 8-connected component of each mask.

    The masks are cut into horizontal runs, all in one pass; runs that touch, diagonally included, are joined in a
    sparse graph. The cost therefore depends on the length of the masks' outlines, not on their number.

    Args:
        masks: (..., H, W) bool, on any device; copied to the CPU once.
        least: Components with a smaller share of their mask's largest component's pixels get no box, in [0, 1].

    Returns:
        One tensor for each mask, in row-major order over the leading dimensions: (N, 4) int64 on the CPU, the columns
        x0, y0, x1, y1 in pixels, half-open (x1 and y1 are the first column and row outside; width = x1 - x0). The
        largest component, by its number of pixels, comes first; among equals the one whose first pixel is topmost, then
        leftmost. An empty mask gives (0, 4).

    Raises:
        InputError: `masks` is not a bool tensor of at least two dimensions, or `least` is not in [0, 1].
    """
    number("least", least, "[0, 1]")
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.dim() < 2:
        got = f"{tuple(masks.shape)} {masks.dtype}" if isinstance(masks, Tensor) else type(masks).__name__
        raise InputError(
            f"boxes_from_masks needs a bool tensor of shape (..., H, W), got {got}. Compare scores with a threshold "
            "first: maps > threshold."
        )
    *leading, height, width = masks.shape
    count = int(np.prod(leading, dtype=np.int64))
    # A row of background before each mask and a column after it keep rows and masks apart in the flat order.
    padded = np.zeros((count, height + 1, width + 1), dtype=bool)
    padded[:, 1:, :width] = masks.detach().cpu().numpy().reshape(count, height, width)
    flat = padded.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1  # where runs of foreground start and end, in turn
    starts, ends = changes[0::2], changes[1::2]
    component, order = _components(starts, ends, width + 1)
    boxes, owner, area = _boxes(starts[order], ends[order], component[order], height + 1, width + 1)
    largest = np.zeros(count, dtype=np.int64)
    np.maximum.at(largest, owner, area)
    kept = area >= least * largest[owner]
    boxes, owner = boxes[kept], owner[kept]
    sizes = np.bincount(owner, minlength=count).tolist()
    return [part.clone() for part in torch.from_numpy(boxes).split(sizes)]  # no tensor keeps the whole batch alive


def _components(starts: IntArray, ends: IntArray, stride: int) -> tuple[IntArray, IntArray]:
    """Return each run's component, and the order that puts a component's runs together, topmost and leftmost first."""
    # A run touches a range of the next row's runs: those that end at or after its start and start at or before its end.
    first = np.searchsorted(ends, starts + stride, side="left")
    count = np.maximum(np.searchsorted(starts, ends + stride, side="right") - first, 0)
    offsets = np.concatenate([[0], np.cumsum(count)])
    touched = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], count)
    graph = csr_array((np.ones(len(touched), dtype=np.int8), touched, offsets), shape=(len(starts), len(starts)))
    component = connected_components(graph, directed=False)[1]
    return component, np.argsort(component, kind="stable")


def _boxes(
    starts: IntArray, ends: IntArray, component: IntArray, rows: int, stride: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Return the boxes (N, 4) of runs sorted by component, each box's mask and pixels, in the final order."""
    heads = np.flatnonzero(np.diff(component, prepend=-1))  # each component's first run
    row, left = np.divmod(starts, stride)
    lengths = ends - starts
    area = np.add.reduceat(lengths, heads)
    x0 = np.minimum.reduceat(left, heads)
    x1 = np.maximum.reduceat(left + lengths, heads)
    mask, y0 = np.divmod(row[heads], rows)
    y1 = np.maximum.reduceat(row, heads) - mask * rows  # counted from the row of background
    final = np.lexsort((starts[heads], -area, mask))
    return np.stack([x0, y0 - 1, x1, y1], axis=1)[final], mask[final], area[final]


def coco_annotations(mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return one annotation per connected part (8-neighbourhood), the one with the most pixels first.

    Parts with less than a hundredth of that one's pixels are left out, as in `Explanation.boxes`.

    Args:
        mask: (H, W) bool.

    Returns:
        "bbox" (x, y, width, height in pixels), "area" (pixels), "segmentation" (uncompressed run-length encoding:
        "size" (H, W) and "counts" in column-major order, starting with background) and "iscrowd" 0.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    order = 1 + np.argsort(-areas[1:], kind="stable")
    places = ndimage.find_objects(labels)
    return [
        {
            "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
            "area": int(areas[part]),
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(labels == part)},
            "iscrowd": 0,
        }
        for part in order[areas[order] >= SPECK * areas[order[:1]]]
        for rows, columns in [places[part - 1]]
    ]


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask (H, W): column-major, background first."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    lengths: list[int] = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return lengths
