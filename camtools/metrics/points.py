"""Where maps point, and which boxes they hit."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from camtools.errors import InputError

Arrays = Sequence[Tensor | NDArray[Any]]
Sizes = Sequence[tuple[int, int]]
Labels = Tensor | NDArray[Any] | Sequence[int]

TOLERANCE = 18
"""Pixels of tolerance in Oquab et al. 2015: the pooling ratio of their network."""


def peak_points(maps: Tensor, sizes: Sizes) -> Tensor:
    """Return where in its picture each map is largest.

    Maps are resized to their pictures bilinearly in float64 (half-pixel centres, no antialiasing). Values closer to the
    maximum than 1e-9 of the map's range count as equal to it, so that rounding decides nothing; of equals the first in
    raster order is taken. A map of one value thus points at the top left pixel.

    Args:
        maps: (B, H, W) real, at any resolution; a map covers the whole picture.
        sizes: B pairs (width, height) of the pictures.

    Returns:
        (B, 2) int64 on the maps' device: x, y of the pixel; -1, -1 for a map with a NaN.

    Raises:
        InputError: `maps` is not such a tensor or has an infinite value, or there is not one size for each map.
    """
    if not isinstance(maps, Tensor) or maps.dim() != 3 or maps.is_complex() or 0 in maps.shape[1:]:
        got = f"{tuple(maps.shape)} {maps.dtype}" if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(
            f"maps: expected a real tensor of shape (B, H, W), one map a pair of picture and class, got {got}."
        )
    if len(sizes) != len(maps):
        raise InputError(f"sizes: got {len(sizes)} for {len(maps)} maps; give (width, height) for each.")
    for index, size in enumerate(sizes):
        if len(size) != 2 or not all(int(side) == side and side > 0 for side in size):
            raise InputError(f"sizes[{index}] is {size!r}: expected (width, height), two positive integers.")
    if maps.isinf().any():
        raise InputError(f"maps[{int(maps.isinf().flatten(1).any(1).nonzero()[0, 0])}] has an infinite value.")
    maps = maps.detach().double()
    points = torch.full((len(maps), 2), -1, dtype=torch.int64, device=maps.device)
    for width, height in {(int(width), int(height)) for width, height in sizes}:
        same = torch.tensor([tuple(size) == (width, height) for size in sizes], device=maps.device)
        resized = maps[same]
        if resized.shape[1:] != (height, width):
            resized = interpolate(resized[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
        flat = resized.flatten(1)
        high = flat.amax(1, keepdim=True)
        peaks = flat >= high - 1e-9 * (high - flat.amin(1, keepdim=True))
        first = peaks.byte().argmax(1)
        found = torch.stack([first % width, first // width], 1)
        points[same] = torch.where(high.isnan(), -1, found)
    return points


def point_hits(points: Tensor, boxes: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return which points lie in any of their boxes, enlarged on all sides.

    Args:
        points: (B, 2) integer, x, y of pixels; negative for no point.
        boxes: (B, N, 4) float, x0 y0 x1 y1 in pixels, half-open; NaN rows for no box.
        tolerance: Pixels by which boxes are enlarged; pixel x is inside when x0 - tolerance <= x < x1 + tolerance.

    Returns:
        (B,) bool.
    """
    place = points[:, None].to(boxes.dtype)
    inside = (place >= boxes[..., :2] - tolerance) & (place < boxes[..., 2:] + tolerance)
    return (inside.all(-1) & (points >= 0).all(-1, keepdim=True)).any(-1)


def padded_boxes(boxes: Arrays, difficult: Arrays | None, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check each pair's boxes and put them into one tensor.

    Args:
        boxes: B of (N, 4), x0 y0 x1 y1; NaN rows for objects without a box.
        difficult: B of (N,) bool, or None for none.
        points: (B, 2), for B and the device.

    Returns:
        The boxes padded with NaN, (B, N, 4) float64; which pairs have a box that is not difficult, and which have any
        row at all, both (B,) bool.

    Raises:
        InputError: There are not B of them, one is of another shape or type, or a box ends before it begins.
    """
    count, device = len(points), points.device
    for name, given in (("boxes", boxes), ("difficult", difficult)):
        if given is not None and len(given) != count:
            raise InputError(f"{name}: got {len(given)} for {count} maps; give one tensor for each map.")
    rows = [torch.as_tensor(part, device=device).double() for part in boxes]
    rows = [part.reshape(-1, 4) if part.numel() == 0 else part for part in rows]
    hard = [torch.as_tensor(part, device=device) for part in difficult or [torch.zeros(len(row)) > 0 for row in rows]]
    for index, (row, flags) in enumerate(zip(rows, hard, strict=True)):
        if row.dim() != 2 or row.shape[1] != 4 or (row[:, 2:] < row[:, :2]).any():
            raise InputError(
                f"boxes[{index}]: expected (N, 4), x0 y0 x1 y1 with x0 <= x1 and y0 <= y1, got shape {tuple(row.shape)}"
                f"{f': {row.tolist()}' if row.shape[-1:] == (4,) else ''}."
            )
        if flags.shape != row.shape[:1] or flags.dtype != torch.bool:
            raise InputError(
                f"difficult[{index}]: expected bool of shape ({len(row)},), one a box, got {tuple(flags.shape)} "
                f"{flags.dtype}."
            )
    present = torch.tensor([len(row) > 0 for row in rows], dtype=torch.bool, device=device)
    if not rows:
        return torch.zeros((0, 0, 4), dtype=torch.float64, device=device), present, present
    truth = pad_sequence(rows, batch_first=True, padding_value=torch.nan)
    counts = ~truth.isnan().any(-1) & ~pad_sequence(hard, batch_first=True, padding_value=True)
    return truth, counts.any(-1), present


def class_labels(labels: Labels | None, points: Tensor) -> Tensor:
    """Return the classes of pairs, (B,) int64; -1 for none given.

    Raises:
        InputError: They are not B integers of at least 0.
    """
    if labels is None:
        return torch.full((len(points),), -1, device=points.device)
    classes = torch.as_tensor(labels, device=points.device)
    if len(points) == 0 and classes.numel() == 0:
        return classes.long().flatten()
    if classes.shape != (len(points),) or classes.is_floating_point() or bool((classes < 0).any()):
        raise InputError(
            f"labels: expected {len(points)} class indices >= 0, one for each map, got {tuple(classes.shape)} "
            f"{classes.dtype}{' with a negative one' if bool((classes < 0).any()) else ''}."
        )
    return classes.long()


def check_tolerance(value: object, owner: str) -> None:
    """Refuse what is no number of pixels.

    Raises:
        InputError: `value` is not a finite number of at least 0.
    """
    if not (isinstance(value, Real) and 0 <= float(value) < float("inf")):
        raise InputError(f"{owner}(tolerance={value!r}): expected a number of pixels >= 0; Oquab et al. have 18.")
