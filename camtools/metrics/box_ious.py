"""How well a score map's boxes fit the true ones at every level: what all box metrics are made of, per image."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtools.checks import whole
from camtools.errors import InputError

LEVELS = 256
"""Levels of a quantised score map: at level t its mask is value > t."""

Boxes = Sequence[Tensor | NDArray[Any]]
Sizes = Sequence[tuple[int, int]]


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
    arrays = _levels(levels)
    truths = scaled_boxes(boxes, sizes, len(arrays), (arrays.shape[2], arrays.shape[1]))
    _, single, several = _run(arrays, truths, workers, holes=True)
    return BoxIoUs(torch.from_numpy(single), torch.from_numpy(several))


def largest_ious(levels: Tensor, boxes: Boxes, sizes: Sizes, *, workers: int | None = None) -> Tensor:
    """Return `box_ious(...).largest`, (B, 256) float64, without looking for holes: about twice as fast."""
    arrays = _levels(levels)
    truths = scaled_boxes(boxes, sizes, len(arrays), (arrays.shape[2], arrays.shape[1]))
    return torch.from_numpy(_run(arrays, truths, workers, holes=False)[1])


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
    arrays = _levels(levels)
    nothing = np.zeros((0, 4), dtype=np.int64)
    return torch.from_numpy(_run(arrays, [nothing] * len(arrays), workers, holes=False)[0])


def scaled_boxes(boxes: Boxes, sizes: Sizes, count: int, shape: tuple[int, int]) -> list[NDArray[np.int64]]:
    """Scale true boxes from their images to maps, and truncate them to integers as the protocol does.

    Args:
        boxes: `count` tensors or arrays (N, 4) of x0, y0, x1, y1, in pixels of the image; rows of NaN are left out.
        sizes: `count` pairs (width, height) of the images.
        count: How many maps there are.
        shape: (width, height) of the maps.

    Returns:
        `count` arrays (n, 4) int64, n >= 1.

    Raises:
        InputError: See `box_ious`.
    """
    truths = []
    scale = np.array([*shape, *shape], dtype=np.float64)
    for box, (width, height) in zip(checked_boxes(boxes, sizes, count), sizes, strict=True):
        truths.append((box * scale / np.array([width, height] * 2, dtype=np.float64)).astype(np.int64))
    return truths


def checked_boxes(boxes: Boxes, sizes: Sizes, count: int) -> list[NDArray[np.float64]]:
    """Check true boxes and leave out rows of NaN; see `scaled_boxes`.

    Returns:
        `count` arrays (n, 4) float64, n >= 1, in pixels of the images.
    """
    if len(boxes) != count or len(sizes) != count:
        raise InputError(
            f"got {len(boxes)} sets of boxes and {len(sizes)} sizes for {count} maps; give for each map, in the same "
            "order, the true boxes (N, 4) and the image's (width, height)."
        )
    check_sizes(sizes)
    return [_checked(index, box, size) for index, (box, size) in enumerate(zip(boxes, sizes, strict=True))]


def check_sizes(sizes: Sizes) -> None:
    """Check images' sizes.

    Raises:
        InputError: One is not (width, height), two positive integers.
    """
    for index, size in enumerate(sizes):
        if len(size) != 2 or not all(int(side) == side and side > 0 for side in size):
            raise InputError(f"sizes[{index}] is {size!r}: expected (width, height), two positive integers.")


def _checked(index: int, given: Tensor | NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return one image's boxes in float64, or say what is wrong with them."""
    box = (given.detach().cpu() if isinstance(given, Tensor) else torch.as_tensor(given)).double().numpy()
    if box.ndim != 2 or box.shape[1] != 4:
        raise InputError(
            f"boxes[{index}]: expected (N, 4), a row x0, y0, x1, y1 for each object, got {box.shape}. One box is "
            "box[None]."
        )
    box = box[~np.isnan(box).any(1)]
    if not len(box):
        raise InputError(f"boxes[{index}] has no box: leave out images without one, they can be neither hit nor miss.")
    width, height = size
    bad = (box[:, :2] < 0).any(1) | (box[:, 2:] > (width, height)).any(1) | (box[:, :2] > box[:, 2:]).any(1)
    if bad.any():
        raise InputError(
            f"boxes[{index}] has {box[bad][0].tolist()}: expected 0 <= x0 <= x1 <= {width} and "
            f"0 <= y0 <= y1 <= {height}, pixels of the original image, whose (width, height) is in sizes."
        )
    return box


def _levels(levels: Tensor) -> NDArray[np.uint8]:
    """Return the levels as an array, or say what is wrong with them."""
    if not isinstance(levels, Tensor) or levels.dim() != 3 or levels.dtype != torch.uint8 or 0 in levels.shape[1:]:
        got = f"{tuple(levels.shape)} {levels.dtype}" if isinstance(levels, Tensor) else type(levels).__name__
        raise InputError(f"levels: expected uint8 of shape (B, H, W), got {got}. Quantise maps first: scoremaps(maps).")
    return np.ascontiguousarray(levels.detach().cpu().numpy())


def _run(
    levels: NDArray[np.uint8], truths: Sequence[NDArray[np.int64]], workers: int | None, holes: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Run the compiled walk over every map: largest boxes (B, 256, 4), and both IoUs, (B, 256)."""
    from camtools.metrics.contours import level_boxes

    workers = check_workers(workers) or torch.get_num_threads()
    count = len(levels)
    largest = np.empty((count, LEVELS, 4), dtype=np.int64)
    single, several = np.empty((count, LEVELS)), np.empty((count, LEVELS))

    def run(index: int) -> None:
        level_boxes(levels[index], truths[index], largest[index], single[index], several[index], holes)

    if count > 1 and workers > 1:
        run(0)  # compiles, if nobody has yet
        with ThreadPoolExecutor(min(workers, count - 1)) as pool:  # the walk does not hold the interpreter's lock
            list(pool.map(run, range(1, count)))
    else:
        for index in range(count):
            run(index)
    return largest, single, several


def check_workers(workers: int | None) -> int | None:
    """Check a number of threads; None is for as many as torch uses.

    Raises:
        InputError: `workers` is neither None nor a positive integer.
    """
    return None if workers is None else whole("workers", workers)
