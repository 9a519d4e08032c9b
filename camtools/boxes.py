"""The parts of masks: as boxes, for a whole batch at once, and as COCO annotations."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torchvision.ops import batched_nms

from camtools.checks import number
from camtools.errors import InputError
from camtools.parts import IntArray, mask_parts

SPECK = 0.01
"""Share of the largest part's pixels below which explanations leave a part out: masks that follow an image's texture
have dozens of parts of a few pixels."""


class PartBoxes(NamedTuple):
    """The boxes of one mask's parts, N of them, on the CPU.

    Attributes:
        boxes: (N, 4) int64, in the order and form of `boxes_from_masks`.
        peaks: The map's maximum in each part, (N,) float32.
        firsts: The topmost and then leftmost pixel of each part, (N, 2) int64: x, y.
        runs: Where the runs of the mask's pixels start and end in reading order, (n, 2) int64, half-open.
    """

    boxes: Tensor
    peaks: Tensor
    firsts: Tensor
    runs: Tensor


def boxes_from_parts(parts: Tensor, maps: Tensor, least: float = 0.0, overlap: float = 1.0) -> list[PartBoxes]:
    """Return one box for each part of each mask, and how high the map rises in it.

    A part is an 8-connected component of pixels with the same number: touching pixels of two numbers are two parts.

    Args:
        parts: (..., H, W) of whole numbers, 0 outside the masks, as `State.parts`; or bool masks, whose parts are their
            connected components.
        maps: Likewise, float: what the masks were made from.
        least: Parts with a smaller share of their mask's largest part's pixels get no box, in [0, 1].
        overlap: Non-maximum suppression: boxes whose IoU with a box of a higher peak of their mask is larger than this
            are left out, in [0, 1]; of equal peaks the first stays. 1 leaves out none.

    Returns:
        One for each mask, in row-major order over the leading dimensions.

    Raises:
        InputError: `parts` is no such tensor, `maps` has another shape, or a number is not in its range.
    """
    number("least", least, "[0, 1]")
    number("overlap", overlap, "[0, 1]")
    if not isinstance(parts, Tensor) or parts.is_floating_point() or parts.is_complex() or parts.dim() < 2:
        got = f"{tuple(parts.shape)} {parts.dtype}" if isinstance(parts, Tensor) else type(parts).__name__
        raise InputError(f"boxes_from_parts needs bool masks or numbered parts of shape (..., H, W), got {got}.")
    if maps.shape != parts.shape:
        raise InputError(
            f"boxes_from_parts needs maps of the parts' shape {tuple(parts.shape)}, got {tuple(maps.shape)}."
        )
    count, owner, *columns = _parts(parts, least, maps)
    boxes, peaks, firsts, runs = map(torch.from_numpy, columns)
    of = torch.from_numpy(owner)
    if overlap < 1 and len(boxes):
        kept = batched_nms(boxes.double(), peaks.double(), of, overlap).sort().values
        of, boxes, peaks, firsts = of[kept], boxes[kept], peaks[kept], firsts[kept]
    sizes = of.bincount(minlength=count).tolist()
    pixels = parts.shape[-2] * parts.shape[-1]
    masks = runs[:, 0] // max(pixels, 1)
    split = [column.split(sizes) for column in (boxes, peaks, firsts)]
    split.append((runs - (masks * pixels)[:, None]).split(masks.bincount(minlength=count).tolist()))
    return [PartBoxes(*(own.clone() for own in row)) for row in zip(*split, strict=True)]  # as below


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
    count, owner, boxes, *_ = _parts(masks, least)
    sizes = np.bincount(owner, minlength=count).tolist()
    return [own.clone() for own in torch.from_numpy(boxes).split(sizes)]  # no tensor keeps the whole batch alive


def _parts(
    parts: Tensor, least: float, maps: Tensor | None = None
) -> tuple[int, IntArray, IntArray, NDArray[np.float32], IntArray, IntArray]:
    """Return what `mask_parts` does of tensors."""
    values = None if maps is None else maps.detach().float().cpu().numpy()
    return mask_parts(parts.detach().cpu().numpy(), least, _connected, values)


def _connected(one: IntArray, other: IntArray, count: int) -> IntArray:
    """Return the component of each of `count` nodes, by the pairs that are joined."""
    graph = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(count, count))
    component: IntArray = connected_components(graph, directed=False)[1]
    return component


def coco_annotations(parts: Tensor, found: PartBoxes) -> list[dict[str, Any]]:
    """Return one annotation per part that has a box, in the boxes' order.

    Args:
        parts: (H, W), as `boxes_from_parts` takes them.
        found: What it returned.

    Returns:
        "bbox" (x, y, width, height in pixels), "area" (pixels), "segmentation" (uncompressed run-length encoding:
        "size" (H, W) and "counts" in column-major order, starting with background) and "iscrowd" 0.
    """
    from skimage.morphology import flood

    numbers = parts.cpu().numpy().astype(np.int64)
    masks = [flood(numbers, (y, x), connectivity=2) for x, y in found.firsts.tolist()]
    return [
        {
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(mask.sum()),
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            "iscrowd": 0,
        }
        for mask, (x0, y0, x1, y1) in zip(masks, found.boxes.tolist(), strict=True)
    ]


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask (H, W): column-major, background first."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    lengths: list[int] = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return lengths
