"""The box protocol of Choe et al. 2020 once more, written from its description with OpenCV: slow, for tests only.

Nothing here comes from camtools, so that the two can be compared.
"""

from __future__ import annotations

import cv2
import numpy as np

TAUS = np.arange(0, 1, 0.001)


def resized(score: np.ndarray, size: tuple[int, int] = (224, 224)) -> np.ndarray:
    """Resize a score map (h, w) to (width, height), bicubic, float64."""
    return cv2.resize(score.astype(np.float64), size, interpolation=cv2.INTER_CUBIC)


def levels_of(score: np.ndarray) -> np.ndarray:
    """Normalise and quantise a score map: (H, W) uint8."""
    if np.isnan(score).any() or score.min() == score.max():
        return np.zeros(score.shape, np.uint8)
    score = score.astype(np.float64)
    score = score - score.min()
    return (score / score.max() * 255).astype(np.uint8)


def contour_boxes(levels: np.ndarray, threshold: int) -> tuple[list[int], list[list[int]]]:
    """Return the box of the contour with the largest area, and of all contours, in the mask levels > threshold."""
    mask = cv2.threshold(levels, threshold, 255, cv2.THRESH_BINARY)[1]
    contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not contours:
        return [0, 0, 0, 0], [[0, 0, 0, 0]]
    height, width = levels.shape
    boxes = [
        [x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in (cv2.boundingRect(c) for c in contours)
    ]
    return boxes[int(np.argmax([cv2.contourArea(contour) for contour in contours]))], boxes


def scaled(boxes: np.ndarray, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Scale boxes of an image (width, height) to a map (width, height), truncated."""
    factor = [shape[0], shape[1]] * 2
    return np.array(
        [[int(float(v) * f / s) for v, f, s in zip(box, factor, [*size, *size], strict=True)] for box in boxes]
    )


def iou(boxes: list[list[int]], truth: np.ndarray) -> float:
    """Return the largest IoU of any pair, sides counted with + 1."""
    a, b = np.array(boxes)[:, None], np.asarray(truth)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = np.maximum(sides, 0).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2] + 1).prod(-1), (b[..., 2:] - b[..., :2] + 1).prod(-1)
    return float((common / (area_a + area_b - common)).max())


def ious_at_thresholds(levels: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The protocol's loop: IoU of the largest contour and of any, at all 1,000 thresholds."""
    found = [contour_boxes(levels, int(tau * levels.max())) for tau in TAUS]
    return np.array([iou([one], truth) for one, _ in found]), np.array([iou(boxes, truth) for _, boxes in found])


def ious_at_levels(levels: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same at the 256 levels, and the largest contours' boxes; levels with the same mask are looked at once."""
    largest, single, several = np.zeros((256, 4), np.int64), np.zeros(256), np.zeros(256)
    starts = [0, *(int(value) for value in np.unique(levels) if value > 0)]
    for start, end in zip(starts, [*starts[1:], 256], strict=True):
        box, boxes = contour_boxes(levels, start)
        largest[start:end], single[start:end], several[start:end] = box, iou([box], truth), iou(boxes, truth)
    return largest, single, several


def _ring(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.integers(0, height), rng.integers(0, width)
    norm = np.abs(y - cy) + np.abs(x - cx) if rng.random() < 0.5 else np.maximum(np.abs(y - cy), np.abs(x - cx))
    return ((norm // rng.integers(1, 4)) % 2) * rng.random() + norm * rng.choice([0.0, 0.01])


def _lines(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    score = np.zeros((height, width))
    for _ in range(rng.integers(1, 4)):
        cv2.line(score, *(tuple(int(v) for v in rng.integers(0, (width, height))) for _ in range(2)), rng.random())
    return score


def _equal(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    score, side = np.zeros((height, width)), int(rng.integers(1, 4))
    for y in range(0, height - side + 1, side + 1):
        for x in range(0, width - side + 1, side + 1):
            score[y : y + side, x : x + side] = rng.choice([0, 0.5, 1])
    return score


def _tailed(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Diamonds around one pixel, whose contours from in- and outside are as large, some with a tail."""
    score = np.zeros((height, width))
    for _ in range(rng.integers(1, 5)):
        y, x = rng.integers(1, height - 1), rng.integers(1, width - 1)
        score[[y - 1, y, y, y + 1], [x, x - 1, x + 1, x]] = rng.choice([0.5, 1])
        score[y, x + 1 : x + 1 + rng.integers(0, 5)] = 1
    return score


def _one(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    score = np.zeros((height, width))
    score[rng.integers(height), rng.integers(width)] = 1
    return score


def _nan(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.where(_one(rng, height, width) == 1, np.nan, rng.random((height, width)))


FAMILIES = {
    "constant": lambda rng, h, w: np.full((h, w), rng.choice([-1.0, 0.0, 0.3, 1.0])),
    "nan": _nan,
    "one pixel": _one,
    "lines": _lines,
    "rings": _ring,
    "checkerboard": lambda rng, h, w: (np.add.outer(np.arange(h), np.arange(w)) % 2) * rng.choice([1, 0.5], (h, w)),
    "equal areas": _equal,
    "tailed diamonds": _tailed,
    "plateaus": lambda rng, h, w: rng.integers(0, rng.integers(2, 6), (h, w)) / 7,
    "sparse": lambda rng, h, w: (rng.random((h, w)) < rng.uniform(0.05, 0.95)) * 1.0,
    "noise": lambda rng, h, w: rng.standard_normal((h, w)),
    "smooth": lambda rng, h, w: cv2.GaussianBlur(rng.standard_normal((h, w)), (0, 0), rng.uniform(0.5, 4)),
    "all levels": lambda rng, h, w: rng.permutation(np.linspace(0, 1, h * w)).reshape(h, w),
    "ramp": lambda rng, h, w: np.linspace(0, 1, h * w).reshape(h, w) ** rng.uniform(0.3, 3),
}
"""Random and adversarial score maps (rng, height, width) -> (height, width) float, by name."""


def true_boxes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return one to three boxes (N, 4) in pixels of an image."""
    count = rng.integers(1, 4)
    x, y = (np.sort(rng.uniform(0, side, (count, 2)), 1) for side in (width, height))
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
