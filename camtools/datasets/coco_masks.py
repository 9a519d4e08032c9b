"""COCO segmentations as masks: polygons, run lengths, and compressed run lengths, pixel for pixel as COCO's own code.

The inverse of `camtools.coco.run_lengths`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UPSAMPLING = 5  # the grid, per pixel, that a polygon's corners are rounded to


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of one annotation's "segmentation", (H, W) bool.

    Args:
        segmentation: A list of polygons, each [x0, y0, x1, y1, ...] in pixels; or a dictionary with "size" (H, W) and
            "counts", a list of run lengths or their compressed text.
        size: (height, width) of the picture.

    Raises:
        ValueError: It is none of these, or is not for that size.
    """
    if isinstance(segmentation, dict):
        if tuple(segmentation.get("size", ())) != size:
            raise ValueError(f"its run lengths are for size {segmentation.get('size')}, its picture is {list(size)}")
        counts = segmentation.get("counts")
        if isinstance(counts, str | bytes):
            counts = decompress(counts)
        if not isinstance(counts, list):
            raise ValueError("its run lengths have no counts")
        return decode_runs(counts, size)
    if not isinstance(segmentation, list):
        raise ValueError(f"its segmentation is {type(segmentation).__name__}, expected polygons or run lengths")
    mask = np.zeros(size, dtype=bool)
    for polygon in segmentation:
        mask |= decode_polygon(polygon, size)
    return mask


def decode_runs(counts: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of run lengths: column-major, background first.

    Raises:
        ValueError: They are not as many pixels as the picture has.
    """
    lengths = np.asarray(counts, dtype=np.int64)
    if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        raise ValueError(f"its run lengths add up to {lengths.sum()}, expected {size[0]} x {size[1]} pixels")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(size, order="F")


def decompress(text: str | bytes) -> list[int]:
    """Return the run lengths that COCO's compressed text stands for.

    Every character is 48 plus six bits: five of the number, the low ones first, and 32 for "more follow"; the last
    character's fifth bit is the sign. From the fourth number on, it is the difference to the number two before.

    Raises:
        ValueError: The text ends within a number, or has a character that cannot occur.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii", "replace") if isinstance(text, str) else text:
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its compressed run lengths hold {chr(code)!r}, which cannot occur")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its compressed run lengths end within a number")
    return counts


def decode_polygon(polygon: Sequence[float], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of one polygon, (H, W) bool, by the rule of COCO's maskApi (Lin et al. 2014).

    Corners are rounded to a grid of 5 x 5 points a pixel and joined by digital lines. Where such a line passes the
    middle of a column of pixels, the column changes between outside and inside from the next pixel below on.

    Raises:
        ValueError: The polygon has fewer than three corners, or odd numbers.
    """
    height, width = size
    corners = np.asarray(polygon, dtype=np.float64)
    if corners.ndim != 1 or corners.size < 6 or corners.size % 2 or not np.isfinite(corners).all():
        raise ValueError("its polygon is not x, y, x, y, ... of three corners or more")
    points = _outline(np.trunc(corners.reshape(-1, 2) * _UPSAMPLING + 0.5).astype(np.int64))
    before, after = points[:-1], points[1:]
    passing = np.flatnonzero(before[:, 0] != after[:, 0])
    left = np.minimum(before[passing, 0], after[passing, 0])  # a passage lies between two columns of the grid
    column = (left + 0.5) / _UPSAMPLING - 0.5
    row = (np.minimum(before[passing, 1], after[passing, 1]) + 0.5) / _UPSAMPLING - 0.5
    middle = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    changes = np.zeros((width, height + 1), dtype=np.int64)  # the last row collects what changes below the picture
    np.add.at(changes, (column[middle].astype(np.int64), np.ceil(np.clip(row[middle], 0, height)).astype(np.int64)), 1)
    return (changes[:, :height].cumsum(axis=1) % 2 == 1).T


def _outline(corners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return every grid point on the closed outline, (n, 2), corner to corner; each line's both ends included."""
    lines = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        span = np.abs(end - start)
        major = 0 if span[0] >= span[1] else 1
        turned = start[major] > end[major]
        low, high = (end, start) if turned else (start, end)  # lines are drawn towards larger values, then turned back
        steps = np.arange(span[major] + 1)
        slope = (high[1 - major] - low[1 - major]) / span[major] if span[major] else 0.0
        line = np.empty((len(steps), 2), dtype=np.int64)
        line[:, major] = low[major] + steps
        line[:, 1 - major] = np.trunc(low[1 - major] + slope * steps + 0.5)
        lines.append(line[::-1] if turned else line)
    return np.concatenate(lines)
