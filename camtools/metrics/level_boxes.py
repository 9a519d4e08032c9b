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

import numpy as np

from camtools.metrics.level_holes import raise_to_holes
from camtools.metrics.level_pixels import (
    AREA,
    DX,
    DY,
    EULER,
    JOINS,
    ByteArray,
    FloatArray,
    IntArray,
    SmallArray,
    best_iou,
    border_area,
    compiled,
    find,
    sorted_pixels,
)


@compiled
def _write(
    levels: ByteArray,
    fact: SmallArray,
    low: int,
    truth: IntArray,
    rank: IntArray,
    largest: IntArray,
    single: FloatArray,
    several: FloatArray,
) -> None:
    """Write a component down for the levels from `low` to fact[7], through which it stayed the same."""
    height, width = levels.shape
    x0, y0, first, high = fact[0], fact[1], fact[4], fact[7]
    x1, y1 = min(fact[2] + 1, width - 1), min(fact[3] + 1, height - 1)
    iou = best_iou(x0, y0, x1, y1, truth)
    area = int(fact[5])
    if fact[6] != 4:  # it has holes: what they hide is looked up only where it may matter
        bound = 2 * (fact[2] - x0) * (fact[3] - y0)
        for level in range(low, high + 1):
            if bound >= rank[level, 0]:
                area = border_area(levels, low, first)
                break
    for level in range(low, high + 1):
        several[level] = max(several[level], iou)
        if area > rank[level, 0] or (area == rank[level, 0] and first > rank[level, 1]):
            rank[level, 0], rank[level, 1], single[level] = area, first, iou
            largest[level, 0], largest[level, 1], largest[level, 2], largest[level, 3] = x0, y0, x1, y1


@compiled
def _outside(
    levels: ByteArray,
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
    height, width = levels.shape
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
            for i in range(4):  # before this pixel in raster order: set if as bright
                bits |= (value[place + offsets[i]] > level) << i
            for i in range(4, 8):
                bits |= (value[place + offsets[i]] > level + 1) << i
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
                holes |= fact[6] != 4
                _write(levels, fact, level + 1, truth, rank, largest, single, several)
            for i in range(2, JOINS[bits, 0] + 1):
                other = find(parent, number[place + offsets[JOINS[bits, i]]])
                if other == root:
                    continue
                gone = facts[other]
                if gone[7] > level:
                    holes |= gone[6] != 4
                    _write(levels, gone, level + 1, truth, rank, largest, single, several)
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
            holes |= facts[root, 6] != 4
            _write(levels, facts[root], 0, truth, rank, largest, single, several)
    return holes


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
    if _outside(levels, framed, begins, order, truth, largest, single, several) and holes:
        raise_to_holes(framed, begins, order, truth, several)
