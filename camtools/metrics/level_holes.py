"""The boxes of hole contours at all 256 levels of a score map in one pass, see `level_boxes`; compiled by numba."""

from __future__ import annotations

import numpy as np

from camtools.metrics.level_pixels import (
    ByteArray,
    FloatArray,
    IntArray,
    SmallArray,
    best_iou,
    compiled,
    find,
)


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
