"""The contours' boxes of all 256 levels of a score map in one pass: the compiled part of the box metrics.

Raising the threshold level by level and searching contours each time visits every pixel 256 times. Here the pixels are
sorted by value once and joined into components as they appear; a component's box and area are kept while it grows, and
written down for all the levels through which it stays the same.

* Contours from outside: 8-connected components of value > level, pixels added from the brightest down.
* Contours of holes: 4-connected components of value <= level that stay clear of the edge, pixels added from the darkest
  up. Such a contour runs through the pixels around the hole, so its box is the hole's and one pixel on each side.
* Areas are those of the polygon through the centres of the outer border's pixels. Each 2 x 2 block of pixels belongs to
  one component; four set pixels add 1, three add 1/2. That leaves out the holes. The same blocks give the Euler number,
  hence how many holes there are; a component that has any, and could be the largest, has its border followed instead.
* The largest contour is never a hole's: the one around it is at least as large, and comes first. Among equals OpenCV
  lists the component first whose first pixel (topmost, then leftmost) comes last.
"""

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

    Numba keeps it by its own version, the processor, and the time and size of the file that a function is in. What a
    compiled function calls, and the constants it reads, must therefore be in the same file: all of it is in this one.
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
    begins[1:] = np.cumsum(np.bincount(levels.ravel(), minlength=256))
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
def border_area(framed: ByteArray, level: int, start: int) -> int:
    """Return twice the area of the outer border's polygon: followed around value > level, from its first pixel on."""
    stride = framed.shape[1]
    first, y, x = 0, start // stride, start % stride
    while framed[y + DY[first], x + DX[first]] <= level:  # clockwise; the left, and all above, are not set
        first += 1
        if first == 8:
            return 0
    total, step = 0, first
    while True:
        total += x * (y + DY[step]) - (x + DX[step]) * y
        y, x = y + DY[step], x + DX[step]
        step = (step + 5) % 8  # the neighbour after the one we came from, clockwise
        while framed[y + DY[step], x + DX[step]] <= level:
            step = (step + 1) % 8
        if y * stride + x == start and step == first:
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


@compiled
def _write(
    framed: ByteArray,
    fact: SmallArray,
    low: int,
    truth: IntArray,
    rank: IntArray,
    largest: IntArray,
    single: FloatArray,
    several: FloatArray,
) -> bool:
    """Write a component down for the levels from `low` to fact[7], through which it stayed the same.

    Returns:
        Whether it has a hole.
    """
    height, width = framed.shape[0] - 2, framed.shape[1] - 2
    x0, y0, first, high = fact[0], fact[1], fact[4], fact[7]
    x1, y1 = min(fact[2] + 1, width - 1), min(fact[3] + 1, height - 1)
    iou = best_iou(x0, y0, x1, y1, truth)
    area = int(fact[5])
    if fact[6] != 4:  # it has holes: what they hide is looked up only where it may matter
        bound = 2 * (fact[2] - x0) * (fact[3] - y0)
        for level in range(low, high + 1):
            if bound >= rank[level, 0]:
                area = border_area(framed, low, first)
                break
    for level in range(low, high + 1):
        several[level] = max(several[level], iou)
        if area > rank[level, 0] or (area == rank[level, 0] and first > rank[level, 1]):
            rank[level, 0], rank[level, 1], single[level] = area, first, iou
            largest[level, 0], largest[level, 1], largest[level, 2], largest[level, 3] = x0, y0, x1, y1
    return bool(fact[6] != 4)


@compiled
def _outside(
    framed: ByteArray,
    begins: IntArray,
    order: IntArray,
    truth: IntArray,
    largest: IntArray,
    single: FloatArray,
    several: FloatArray,
) -> bool:
    """Write, for each level, the largest contour's box and IoU, and the best IoU of any component from outside.

    Returns:
        Whether any component has a hole at any level.
    """
    height, width = framed.shape[0] - 2, framed.shape[1] - 2
    stride = width + 2
    offsets = (DY * stride + DX).astype(np.int32)
    value = framed.ravel()
    number = np.empty(len(value), dtype=np.int32)  # of the component that a pixel joined first
    most = ((height + 1) // 2) * ((width + 1) // 2)  # components begin at pixels that do not touch
    parent = np.empty(most, dtype=np.int32)
    # Of each root: x0, y0, x1, y1, first pixel, twice the area, four times the Euler number, highest level valid.
    facts = np.empty((most, 8), dtype=np.int32)
    rank = np.full((256, 2), -1, dtype=np.int64)  # of the largest so far: twice the area, first pixel
    count = 0
    holes = False
    for level in range(254, -1, -1):
        for position in range(begins[level + 1], begins[level + 2]):
            x, y = order[position] & 0xFFFFFFFF, order[position] >> 32
            place = (y + 1) * stride + x + 1
            bits = 0
            for i in range(8):  # the first four are before this pixel in raster order: set if as bright
                bits |= (value[place + offsets[i]] > level + (i >= 4)) << i
            if bits == 0:
                fact = facts[count]
                fact[0], fact[1], fact[2], fact[3], fact[4] = x, y, x, y, place
                fact[5], fact[6], fact[7] = 0, 4, level
                parent[count] = number[place] = count
                count += 1
                continue
            root = find(parent, number[place + offsets[JOINS[bits, 1]]])
            fact = facts[root]
            if fact[7] > level:
                holes |= _write(framed, fact, level + 1, truth, rank, largest, single, several)
            for i in range(2, JOINS[bits, 0] + 1):
                other = find(parent, number[place + offsets[JOINS[bits, i]]])
                if other == root:
                    continue
                gone = facts[other]
                if gone[7] > level:
                    holes |= _write(framed, gone, level + 1, truth, rank, largest, single, several)
                if gone[5] > fact[5]:
                    root, other, fact, gone = other, root, gone, fact
                parent[other] = root
                fact[0], fact[1] = min(fact[0], gone[0]), min(fact[1], gone[1])
                fact[2], fact[3] = max(fact[2], gone[2]), max(fact[3], gone[3])
                fact[4] = min(fact[4], gone[4])
                fact[5] += gone[5]
                fact[6] += gone[6]
            number[place] = root
            fact[0], fact[1], fact[2], fact[3] = min(fact[0], x), min(fact[1], y), max(fact[2], x), max(fact[3], y)
            fact[4] = min(fact[4], place)
            fact[5] += AREA[bits]
            fact[6] += EULER[bits]
            fact[7] = level
    for root in range(count):
        if parent[root] == root:
            holes |= _write(framed, facts[root], 0, truth, rank, largest, single, several)
    return holes


@compiled
def _write_hole(fact: SmallArray, high: int, truth: IntArray, several: FloatArray, height: int, width: int) -> None:
    """Write a component of the background down for the levels from fact[5] to `high`, unless it reaches the edge."""
    x0, y0, x1, y1 = fact[0] - 1, fact[1] - 1, fact[2] + 1, fact[3] + 1  # the contour runs around it
    if x0 >= 0 and y0 >= 0 and x1 < width and y1 < height:
        iou = best_iou(x0, y0, min(x1 + 1, width - 1), min(y1 + 1, height - 1), truth)
        for level in range(fact[5], high + 1):
            several[level] = max(several[level], iou)


@compiled
def raise_to_holes(framed: ByteArray, begins: IntArray, order: IntArray, truth: IntArray, several: FloatArray) -> None:
    """Raise, for each level, the best IoU of any contour to that of any hole's."""
    height, width = framed.shape[0] - 2, framed.shape[1] - 2
    stride = width + 2
    offsets = np.array([-stride, -1, 1, stride], dtype=np.int32)
    framed[0], framed[-1], framed[:, 0], framed[:, -1] = 255, 255, 255, 255
    value = framed.ravel()
    number = np.empty(len(value), dtype=np.int32)
    most = (height * width + 1) // 2
    parent = np.empty(most, dtype=np.int32)
    facts = np.empty((most, 6), dtype=np.int32)  # of each root: x0, y0, x1, y1, pixels, lowest level it holds for
    count = 0
    for level in range(255):
        for position in range(begins[level], begins[level + 1]):
            x, y = order[position] & 0xFFFFFFFF, order[position] >> 32
            place = (y + 1) * stride + x + 1
            root = -1
            fact = facts[0]
            for i in range(4):
                near = place + offsets[i]
                if value[near] > level or (i >= 2 and value[near] == level):
                    continue
                other = find(parent, number[near])
                if other == root:
                    continue
                gone = facts[other]
                if gone[5] < level:
                    _write_hole(gone, level - 1, truth, several, height, width)
                if root < 0:
                    root, fact = other, gone
                    continue
                if gone[4] > fact[4]:
                    root, other, fact, gone = other, root, gone, fact
                parent[other] = root
                fact[0], fact[1] = min(fact[0], gone[0]), min(fact[1], gone[1])
                fact[2], fact[3] = max(fact[2], gone[2]), max(fact[3], gone[3])
                fact[4] += gone[4]
            if root < 0:
                root = count
                fact = facts[count]
                fact[0], fact[1], fact[2], fact[3], fact[4] = x, y, x, y, 0
                parent[count] = count
                count += 1
            number[place] = root
            fact[0], fact[1], fact[2], fact[3] = min(fact[0], x), min(fact[1], y), max(fact[2], x), max(fact[3], y)
            fact[4] += 1
            fact[5] = level
    for root in range(count):
        if parent[root] == root:
            _write_hole(facts[root], 254, truth, several, height, width)


@compiled
def level_boxes(
    levels: ByteArray, truth: IntArray, largest: IntArray, single: FloatArray, several: FloatArray, holes: bool
) -> None:
    """Write one map's results for all levels into the arrays given; contours are those of value > level.

    A level without a contour has the box 0, 0, 0, 0, as in the protocol.

    Args:
        levels: (H, W) uint8.
        truth: (N, 4) int64, true boxes x0, y0, x1, y1 in the map's pixels; N may be 0.
        largest: (256, 4) int64, written: the box of the contour with the largest area: x, y, min(x + width, W - 1),
            min(y + height, H - 1).
        single: (256,) float64, written: the largest IoU of that box with a true one.
        several: (256,) float64, written: the largest IoU of any contour's box, with a true one.
        holes: Whether `several` includes the contours of holes, as the protocol has it; it is faster without.
    """
    largest[:] = 0
    nothing = best_iou(0, 0, 0, 0, truth)
    top = levels.max()
    for level in range(256):
        single[level] = several[level] = nothing if level >= top else 0.0
    framed, begins, order = sorted_pixels(levels)
    if _outside(framed, begins, order, truth, largest, single, several) and holes:
        raise_to_holes(framed, begins, order, truth, several)
