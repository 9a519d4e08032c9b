"""Where labels go: near what they belong to, on nothing that matters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Box = tuple[float, float, float, float]

_STEP = 5.0  # pixels between the places that are tried
_CELL = 2.0  # pixels of the grid that says where something is
# What is bad costs as much as so many pixels of distance:
_COVERED = 14.0  # a grid cell of a line under a label
_ALONG = 9.0  # a grid cell of a line under a leader
_CROSSED = 150.0  # a leader crossed by another
_STRUCK = 600.0  # a label crossed by a leader
_SPACE = 4.0  # pixels between a leader and its label
_REACH = 14.0  # pixels around its anchor where a leader may lie on lines


def traced(points: Array, step: float = 1.5) -> Array:
    """Return points along a polyline (n, 2), at most about `step` apart, (m, 2)."""
    if len(points) < 2:
        return points
    lengths = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    wanted = np.linspace(0, along[-1], max(2, int(along[-1] / step) + 1))
    return np.stack([np.interp(wanted, along, points[:, k]) for k in range(2)], axis=1)


def place(
    anchors: Array, sizes: Array, obstacles: Array, bounds: Box, gap: float = 8.0
) -> list[tuple[float, float] | None]:
    """Find a place for each label.

    One label after the other, from the highest anchor down, goes where it is nearest to its anchor. Covering a line,
    following it with the leader or crossing another leader costs distance; covering a label or an anchor is impossible.

    Args:
        anchors: (n, 2) points that are labelled; y grows upwards.
        sizes: (n, 2) widths and heights of the labels.
        obstacles: (m, 2) points of lines, close together.
        bounds: x0, y0, x1, y1 in which labels stay.
        gap: Free space around labels and anchors.

    Returns:
        The lower left corner of each label; None where there is no room. All in the same unit, pixels.
    """
    ground = _Ground(obstacles, bounds)
    found: list[tuple[float, float] | None] = [None] * len(anchors)
    taken: list[Box] = []
    leaders: list[Array] = []
    for k in sorted(range(len(anchors)), key=lambda k: (-anchors[k][1], anchors[k][0], k)):
        corners = _candidates(bounds, *sizes[k])
        if not len(corners):
            continue
        boxes = np.concatenate([corners, corners + sizes[k]], axis=1)
        ends = np.clip(anchors[k], boxes[:, :2], boxes[:, 2:])  # where the leader meets the label
        distance = np.hypot(*(ends - anchors[k]).T)
        cost = np.abs(distance - 1.5 * gap) + 0.2 * np.hypot(*((boxes[:, :2] + boxes[:, 2:]) / 2 - anchors[k]).T)
        cost += _COVERED * ground.within(boxes, gap / 2) + _ALONG * ground.under(ends, anchors[k])
        for j, anchor in enumerate(anchors):
            cost[((anchor > boxes[:, :2] - gap) & (anchor < boxes[:, 2:] + gap)).all(1)] = np.inf
            if j != k and np.hypot(*(anchor - anchors[k])) > gap:
                cost[_meets(ends, anchors[k], (*(anchor - gap), *(anchor + gap)))] += _CROSSED
        for box in taken:
            cost[_overlap(boxes, box, gap)] = np.inf
            cost[_meets(ends, anchors[k], box)] += _STRUCK
        for other in leaders:
            cost[_cross(ends, anchors[k], other)] += _CROSSED
            points = traced(other)[:, None]
            cost[((points > boxes[:, :2] - 2) & (points < boxes[:, 2:] + 2)).all(-1).any(0)] += _STRUCK
        best = int(np.argmin(cost))
        if np.isinf(cost[best]):
            continue
        found[k] = (float(corners[best, 0]), float(corners[best, 1]))
        x0, y0, x1, y1 = boxes[best].tolist()
        taken.append((x0, y0, x1, y1))
        leaders.append(np.stack([anchors[k], ends[best]]))
    return found


def leader(anchor: Sequence[float], corner: Sequence[float], size: Sequence[float], near: float = 22.0) -> Array | None:
    """Return the line from a label to its anchor, (2, 2); None for a label within `near` pixels, which needs none."""
    low, start = np.asarray(corner, dtype=np.float64), np.asarray(anchor, dtype=np.float64)
    end = np.clip(start, low, low + np.asarray(size))
    long = float(np.hypot(*(end - start)))
    return None if long < near else np.stack([start, end + (start - end) * _SPACE / long])


class _Ground:
    """Where lines are, as a grid of cells."""

    def __init__(self, points: Array, bounds: Box) -> None:
        self.low = np.array(bounds[:2])
        self.shape = np.ceil((np.array(bounds[2:]) - self.low) / _CELL).astype(int) + 1
        self.cells = np.zeros(tuple(self.shape), dtype=bool)
        at = np.floor((points - self.low) / _CELL).astype(int)
        at = at[((at >= 0) & (at < self.shape)).all(1)]
        self.cells[at[:, 0], at[:, 1]] = True
        self.total = np.zeros(tuple(self.shape + 1))
        self.total[1:, 1:] = self.cells.cumsum(0).cumsum(1)

    def within(self, boxes: Array, gap: float) -> Array:
        """Count the cells of lines in each box, (K,)."""
        low = np.clip(np.floor((boxes[:, :2] - gap - self.low) / _CELL).astype(int), 0, self.shape)
        high = np.clip(np.ceil((boxes[:, 2:] + gap - self.low) / _CELL).astype(int), 0, self.shape)
        (x0, y0), (x1, y1) = low.T, high.T
        return self.total[x1, y1] - self.total[x0, y1] - self.total[x1, y0] + self.total[x0, y0]

    def under(self, ends: Array, anchor: Array, samples: int = 60) -> Array:
        """Say how long the segments from ends (K, 2) to an anchor lie on lines, in cells, (K,)."""
        shares = np.linspace(0, 1, samples)[:, None, None]
        points = ends * (1 - shares) + anchor * shares
        at = np.clip(np.floor((points - self.low) / _CELL).astype(int), 0, self.shape - 1)
        away = np.hypot(*np.moveaxis(points - anchor, -1, 0)) > _REACH
        cells = np.hypot(*(ends - anchor).T) / _CELL / samples
        return (self.cells[at[..., 0], at[..., 1]] & away).sum(0) * cells


def _candidates(bounds: Box, width: float, height: float) -> Array:
    x0, y0, x1, y1 = bounds
    x, y = np.arange(x0, x1 - width + 1e-6, _STEP), np.arange(y0, y1 - height + 1e-6, _STEP)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _overlap(boxes: Array, other: Box, gap: float) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = other
    across = (boxes[:, 0] < x1 + gap) & (boxes[:, 2] > x0 - gap)
    return across & (boxes[:, 1] < y1 + gap / 2) & (boxes[:, 3] > y0 - gap / 2)


def _meets(ends: Array, anchor: Array, box: Box) -> NDArray[np.bool_]:
    """Say which of the segments from ends (K, 2) to an anchor pass through a box."""
    shares = np.linspace(0, 1, 41)[:, None, None]
    points = ends * (1 - shares) + anchor * shares
    x0, y0, x1, y1 = box
    within = (points[..., 0] > x0 - 2) & (points[..., 0] < x1 + 2) & (points[..., 1] > y0) & (points[..., 1] < y1)
    return np.asarray(within.any(0))


def _cross(ends: Array, anchor: Array, other: Array) -> NDArray[np.bool_]:
    """Say which of the segments from ends (K, 2) to an anchor cross another segment (2, 2)."""

    def side(a: Array, b: Array, c: Array) -> Array:
        first, second = b - a, c - a
        return np.sign(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0])

    one, two = other
    apart = side(ends, anchor, one) * side(ends, anchor, two) < 0
    return apart & (side(one, two, ends) * side(one, two, anchor) < 0)
