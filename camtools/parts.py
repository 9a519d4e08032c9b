"""The connected parts of masks, cut into runs of pixels: numpy alone, for machines without torch or scipy too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Connect = Callable[[IntArray, IntArray, int], IntArray]
"""From pairs of joined nodes, two (m,), and the number of nodes n to each node's component, (n,)."""


def mask_parts(
    parts: NDArray[Any], least: float, connect: Connect, maps: NDArray[np.float32] | None = None
) -> tuple[int, IntArray, IntArray, NDArray[np.float32], IntArray, IntArray]:
    """Return the parts of masks in one pass: each mask's largest first, among equals the topmost, then leftmost.

    Args:
        parts: (..., H, W) of whole numbers or bool, 0 outside the masks; a part is an 8-connected component of one
            number.
        least: Parts with a smaller share of their mask's largest part's pixels are left out, in [0, 1].
        connect: Finds the components of the graph of runs.
        maps: Likewise (..., H, W), for the peaks; None for peaks of 0.

    Returns:
        How many masks there are; of their N parts the mask (N,), the box (N, 4), the map's maximum (N,) and the first
        pixel (N, 2): x, y; and where the runs of all masks' pixels start and end in reading order, (n, 2).
    """
    *leading, height, width = parts.shape
    count, rows, stride = int(np.prod(leading, dtype=np.int64)), height + 1, width + 1
    numbers = _padded(parts)
    # Where runs of one number start and end; those of background are left out.
    starts = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
    ends = np.append(starts[1:], len(numbers))
    kept = numbers[starts] != 0
    starts, ends = starts[kept], ends[kept]
    component = connect(*_touching(starts, ends, numbers[starts], stride), len(starts))
    order = np.argsort(component, kind="stable")  # a component's runs together, topmost and leftmost first
    heads = np.flatnonzero(np.diff(component[order], prepend=-1))  # each component's first run
    row, left = np.divmod(starts[order], stride)
    lengths = (ends - starts)[order]
    peaks = np.zeros(len(heads), dtype=np.float32)
    flat_row, flat_left = np.divmod(starts, stride)
    first = (flat_row - flat_row // rows - 1) * width + flat_left  # without the padding
    runs = np.stack([first, first + ends - starts], axis=1)
    if maps is not None and len(starts):
        edges = runs.ravel()[: -1 if runs[-1, 1] == maps.size else None]  # a run may end with the last pixel
        peaks = np.maximum.reduceat(np.maximum.reduceat(maps.ravel(), edges)[::2][order], heads)
    area = np.add.reduceat(lengths, heads)
    x0 = np.minimum.reduceat(left, heads)
    x1 = np.maximum.reduceat(left + lengths, heads)
    mask, y0 = np.divmod(row[heads], rows)
    y1 = np.maximum.reduceat(row, heads) - mask * rows  # counted from the row of background
    largest = np.zeros(count, dtype=np.int64)
    np.maximum.at(largest, mask, area)
    final = np.lexsort((starts[order][heads], -area, mask))
    final = final[(area >= least * largest[mask])[final]]
    boxes, firsts = np.stack([x0, y0 - 1, x1, y1], axis=1), np.stack([left[heads], y0 - 1], axis=1)
    return count, mask[final], boxes[final], peaks[final], firsts[final], runs


def mask_of_runs(runs: IntArray, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) whose pixels are in runs, (n, 2), as `mask_parts` gives them."""
    lengths = np.diff(runs.ravel(), prepend=0, append=shape[0] * shape[1])
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape)


def connected(one: IntArray, other: IntArray, count: int) -> IntArray:
    """Return the component of each of `count` nodes, by the pairs that are joined: a `Connect` without scipy."""
    root = np.arange(count)
    while len(one):
        here, there = root[one], root[other]
        apart = here != there
        one, other, here, there = one[apart], other[apart], here[apart], there[apart]
        np.minimum.at(root, np.maximum(here, there), np.minimum(here, there))
        while not np.array_equal(jumped := root[root], root):
            root = jumped
    component: IntArray = np.unique(root, return_inverse=True)[1]
    return component


def _padded(images: NDArray[Any]) -> NDArray[Any]:
    """Return images (..., H, W) in one flat row, zeros in a row before each and a column after it keeping all apart."""
    *_, height, width = images.shape
    flat = images.reshape(-1, height, width) if images.size else np.zeros((0, height, width))
    padded = np.zeros((len(flat), height + 1, width + 1), dtype=flat.dtype)
    padded[:, 1:, :width] = flat
    return padded.ravel()


def _touching(starts: IntArray, ends: IntArray, numbers: NDArray[Any], stride: int) -> tuple[IntArray, IntArray]:
    """Return the pairs of runs of one number that touch, diagonally included."""
    # A run touches a range of the next row's runs: those that end at or after its start and start at or before its end.
    first = np.searchsorted(ends, starts + stride, side="left")
    count = np.maximum(np.searchsorted(starts, ends + stride, side="right") - first, 0)
    upper = np.repeat(np.arange(len(starts)), count)
    lower = np.arange(len(upper)) + np.repeat(first - np.cumsum(count) + count, count)
    same = numbers[upper] == numbers[lower]
    return upper[same], lower[same]
