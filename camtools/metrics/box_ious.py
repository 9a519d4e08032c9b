"""How well a score map's boxes fit the true ones at every level: what all box metrics are made of, per image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtools.errors import InputError
from camtools.metrics.arguments import Boxes, Sizes, box_rows, check_workers, each, image_sizes

LEVELS = 256
"""Levels of a quantised score map: at level t its mask is value > t."""


class BoxIoUs(NamedTuple):
    """The largest IoU with any true box, per image and level, each (B, 256) float64 on the CPU.

    Attributes:
        largest: Of the box of the contour with the largest area (MaxBoxAcc).
        any: Of the best of all contours' boxes, holes' included (MaxBoxAccV2).
    """

    largest: Tensor
    any: Tensor


def box_ious(levels: Tensor, boxes: Boxes, sizes: Sizes, *, workers: int | None = None) -> BoxIoUs:
    """Compare the boxes of score maps with the true ones at all 256 levels, in one pass over each map.

    Contours, their areas and boxes are those of OpenCV (`findContours` with RETR_TREE, `contourArea`, `boundingRect`)
    in the mask value > level, and boxes are compared as in the reference protocol: the truth scaled to the map and
    truncated, the map's boxes x, y, min(x + width, W - 1), min(y + height, H - 1), widths in the IoU counted with + 1;
    a level without contours has the box 0, 0, 0, 0.

    Args:
        levels: (B, H, W) uint8 from `scoremaps`, on any device; copied to the CPU.
        boxes: B tensors or arrays (N, 4): x0, y0, x1, y1 in pixels of the original image. Rows of NaN are objects
            without a box and are left out; at least one box has to be left.
        sizes: B pairs (width, height) of the original images.
        workers: Threads that share the maps; None for as many as torch uses. The result does not depend on it.

    Returns:
        The IoU of the largest contour and of any contour. With a threshold tau, the protocol's level is int(255 tau)
        for maps whose largest level is 255 (a map of zeros is the same at every level).

    Raises:
        InputError: Something is of another shape, type or number, or a true box is empty or outside its image.

    Source: Choe et al., CVPR 2020, `BoxEvaluator` of the released code (wsolevaluation).
    """
    _, single, several = _run(levels, (boxes, sizes), workers, holes=True)
    return BoxIoUs(single, several)


def largest_ious(levels: Tensor, boxes: Boxes, sizes: Sizes, *, workers: int | None = None) -> Tensor:
    """Return `box_ious(...).largest`, (B, 256) float64, without looking for holes: about twice as fast."""
    return _run(levels, (boxes, sizes), workers, holes=False)[1]


def largest_boxes(levels: Tensor, *, workers: int | None = None) -> Tensor:
    """Return the box of the contour with the largest area at each level, as the protocol has it.

    Args:
        levels: (B, H, W) uint8 from `scoremaps`.
        workers: As in `box_ious`.

    Returns:
        (B, 256, 4) int64 on the CPU: x, y, min(x + width, W - 1), min(y + height, H - 1) in the map's pixels; zeros
        where a level has no contour.

    Raises:
        InputError: `levels` is not such a tensor, or `workers` not such a number.
    """
    return _run(levels, None, workers, holes=False)[0]


def checked_boxes(boxes: Boxes, sizes: Sizes, count: int) -> list[NDArray[np.float64]]:
    """Check true boxes and leave out rows of NaN.

    Args:
        boxes: `count` tensors or arrays (N, 4) of x0, y0, x1, y1, in pixels of the image.
        sizes: `count` pairs (width, height) of the images.
        count: How many maps there are.

    Returns:
        `count` arrays (n, 4) float64, n >= 1, in pixels of the images.

    Raises:
        InputError: See `box_ious`.
    """
    pairs = zip(each("boxes", boxes, count), image_sizes(sizes, count), strict=True)
    return [_inside(f"boxes[{index}]", box, size) for index, (box, size) in enumerate(pairs)]


def _inside(name: str, given: Tensor | NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return one image's boxes in float64, or say what is wrong with them."""
    box = box_rows(name, given, "cpu").numpy()
    box = box[~np.isnan(box).all(1)]
    if not len(box):
        raise InputError(f"{name} has no box: leave out images without one, they can be neither hit nor miss.")
    width, height = size
    bad = (box[:, :2] < 0).any(1) | (box[:, 2:] > (width, height)).any(1)
    if bad.any():
        raise InputError(
            f"{name} has {box[bad][0].tolist()}: expected 0 <= x0 <= x1 <= {width} and 0 <= y0 <= y1 <= {height}, "
            "pixels of the original image, whose (width, height) is in sizes."
        )
    return box


def _run(
    levels: Tensor, truth: tuple[Boxes, Sizes] | None, workers: int | None, holes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the compiled walk over every map: largest boxes (B, 256, 4), and both IoUs, (B, 256), with boxes if any."""
    from camtools.metrics.contours import level_boxes

    if not isinstance(levels, Tensor) or levels.dim() != 3 or levels.dtype != torch.uint8 or 0 in levels.shape[1:]:
        got = f"{tuple(levels.shape)} {levels.dtype}" if isinstance(levels, Tensor) else type(levels).__name__
        raise InputError(f"levels: expected uint8 of shape (B, H, W), got {got}. Quantise maps first: scoremaps(maps).")
    maps = np.ascontiguousarray(levels.detach().cpu().numpy())
    count, height, width = maps.shape
    truths = [np.zeros((0, 4), dtype=np.int64)] * count
    if truth is not None:  # scaled to the map and truncated, as the protocol does
        pairs = zip(checked_boxes(*truth, count), image_sizes(truth[1], count), strict=True)
        truths = [(box * np.array([width, height] * 2, float) / [*size, *size]).astype(np.int64) for box, size in pairs]
    largest = np.empty((count, LEVELS, 4), dtype=np.int64)
    single, several = np.empty((count, LEVELS)), np.empty((count, LEVELS))

    def run(index: int) -> None:
        level_boxes(maps[index], truths[index], largest[index], single[index], several[index], holes)

    with ThreadPoolExecutor(check_workers(workers) or torch.get_num_threads()) as pool:
        list(pool.map(run, range(count)))  # the walk does not hold the interpreter's lock
    return torch.from_numpy(largest), torch.from_numpy(single), torch.from_numpy(several)
