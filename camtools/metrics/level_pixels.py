"""What the walks of `level_boxes` and `level_holes` over a score map's pixels share; compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

ByteArray = NDArray[np.uint8]
IntArray = NDArray[np.int64]
SmallArray = NDArray[np.int32]
FloatArray = NDArray[np.float64]

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Have a function compiled at its first call, and what comes of it kept beside the module for the next process.

    Numba looks at the time of the file a function is in: after a change here, touch the files that import this one.
    """
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # nowhere to keep it: neither the package's folder nor the user's cache can be written to
        return cast(Function, numba.njit(nogil=True)(function))


# The eight neighbours of a pixel, clockwise from the left one: bit i of a neighbourhood is neighbour i.
DY = np.array([0, -1, -1, -1, 0, 1, 1, 1])
DX = np.array([-1, -1, 0, 1, 1, 1, 0, -1])


def _tables() -> tuple[SmallArray, SmallArray, SmallArray]:
    """Return what a new pixel changes, for each of the 256 sets of neighbours that are there already.

    Twice the area, four times the Euler number, and the neighbours to join, one of each group of
    touching ones: their number, then which.
    """
    area, euler = np.zeros(256, dtype=np.int32), np.zeros(256, dtype=np.int32)
    joins = np.zeros((256, 5), dtype=np.int32)
    for bits in range(256):
        there = [(bits >> i) & 1 for i in range(8)]
        for side, corner, up in ((0, 1, 2), (2, 3, 4), (4, 5, 6), (6, 7, 0)):
            block = (there[side], there[corner], there[up])
            count = sum(block)
            diagonal = count == 1 and block[1] == 1  # the new pixel and the corner opposite it
            apart = count == 2 and block[1] == 0  # the two that were there lay on a diagonal
            before = 1 if count == 1 else -2 if apart else -1 if count == 3 else 0
            after = 1 if count == 0 else -2 if diagonal else -1 if count == 2 else 0
            area[bits] += {2: 1, 3: 1}.get(count, 0)
            euler[bits] += after - before
        groups: list[list[int]] = []
        for i in range(8):
            if there[i]:
                # Touching: next to each other on the ring, or the two edge neighbours across a corner.
                near = [g for g in groups if any(_touch(i, j) for j in g)]
                groups = [g for g in groups if g not in near] + [[i] + [j for g in near for j in g]]
        joins[bits, : len(groups) + 1] = [len(groups), *(min(group) for group in groups)]
    return area, euler, joins


def _touch(i: int, j: int) -> bool:
    return bool(max(abs(DY[i] - DY[j]), abs(DX[i] - DX[j])) == 1)


AREA, EULER, JOINS = _tables()


@compiled
def sorted_pixels(levels: ByteArray) -> tuple[ByteArray, IntArray, IntArray]:
    """Return the map in a frame of zeros one pixel wide, where each value begins, and the pixels by value.

    A pixel is y << 32 | x, which no division is needed to take apart; pixels of equal value are in raster order. The
    frame spares the walks over the pixels their tests for the edge.
    """
    height, width = levels.shape
    framed = np.zeros((height + 2, width + 2), dtype=np.uint8)
    framed[1:-1, 1:-1] = levels
    begins = np.zeros(257, dtype=np.int64)
    for y in range(height):
        for x in range(width):
            begins[levels[y, x] + 1] += 1
    for value in range(256):
        begins[value + 1] += begins[value]
    free = begins.copy()
    order = np.empty(height * width, dtype=np.int64)
    for y in range(height):
        for x in range(width):
            value = levels[y, x]
            order[free[value]] = y << 32 | x
            free[value] += 1
    return framed, begins, order


@compiled
def find(parent: SmallArray, number: int) -> int:
    """Return the root of a component's tree, and shorten the way there."""
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


@compiled
def border_area(levels: ByteArray, level: int, start: int) -> int:
    """Return twice the area of the outer border's polygon: followed around value > level, from its first pixel on."""
    height, width = levels.shape
    y0, x0 = start // (width + 2) - 1, start % (width + 2) - 1
    first = -1
    for step in range(8):  # clockwise from the left: the left, and all above, are not set
        y, x = y0 + DY[step], x0 + DX[step]
        if 0 <= y < height and 0 <= x < width and levels[y, x] > level:
            first = step
            break
    if first < 0:
        return 0
    total = 0
    y, x, step = y0, x0, first
    while True:
        ny, nx = y + DY[step], x + DX[step]
        total += x * ny - nx * y
        y, x = ny, nx
        step = (step + 5) % 8  # the neighbour after the one we came from, clockwise
        while True:
            ny, nx = y + DY[step], x + DX[step]
            if 0 <= ny < height and 0 <= nx < width and levels[ny, nx] > level:
                break
            step = (step + 1) % 8
        if y == y0 and x == x0 and step == first:
            return abs(total)


@compiled
def best_iou(x0: int, y0: int, x1: int, y1: int, truth: IntArray) -> float:
    """Return the largest IoU of a box with any true one, widths and heights counted with + 1."""
    area = (x1 - x0 + 1) * (y1 - y0 + 1)
    best = 0.0
    for k in range(truth.shape[0]):
        a, b, c, d = truth[k, 0], truth[k, 1], truth[k, 2], truth[k, 3]
        common = max(0, min(x1, c) - max(x0, a) + 1) * max(0, min(y1, d) - max(y0, b) + 1)
        best = max(best, common / (area + (c - a + 1) * (d - b + 1) - common))
    return best
