"""Metrics as functions of how much each image counts, so that one bootstrap replicate is one row of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from camtools.errors import InputError
from camtools.evaluation.results import LEVEL_OF, THRESHOLDS, V2_IOUS, Array, Ranked, Rows, Value

_REACHED = int(LEVEL_OF[-1]) + 1  # levels that a threshold below 1 can have
_FOUND = 0.5  # IoU


class Estimate(NamedTuple):
    """A metric under R sets of weights.

    Attributes:
        value: Per cent, (R,) float64; NaN where nothing counts.
        levels: The level of each of its parts' thresholds, (R, parts) int64; no columns where it has none.
    """

    value: Array
    levels: Array


class Statistic(ABC):
    """One metric of one pipeline on one data set."""

    @abstractmethod
    def __call__(self, weights: Array) -> Estimate:
        """Evaluate it.

        Args:
            weights: How often each image counts, (R, images), whole numbers.
        """


class BestLevel(Statistic):
    """A mean over rows at the level where it is largest, the first of equals; the mean over parts of several of these.

    Args:
        parts: (N, T) each, in [0, 1].
        by: Chooses the levels instead of the parts themselves, as many.
        owner: Position of each row's image in the weights, (N,).
    """

    def __init__(self, parts: list[Array], owner: Array, by: list[Array] | None = None) -> None:
        self.parts = parts
        self.by = by
        self.owner = owner

    def __call__(self, weights: Array) -> Estimate:
        """Evaluate it, every replicate at its own best level."""
        rows, total = self._rows(weights)
        values, levels = [], []
        for part, by in zip(self.parts, self.by or self.parts, strict=True):
            sums = rows @ part
            choice = (sums if by is part else rows @ by).argmax(1)
            values.append(np.take_along_axis(sums, choice[:, None], 1)[:, 0])
            levels.append(choice)
        chosen = np.stack(levels, 1) if self.parts[0].shape[1] > 1 else np.zeros((len(rows), 0), dtype=np.int64)
        return Estimate(_percent(np.mean(np.stack(values).astype(np.float64), 0), total), chosen)

    def at(self, levels: Array) -> float:
        """Return it at given levels, one a part, every image once."""
        found = [part[:, level].astype(np.float64).mean() for part, level in zip(self.parts, levels, strict=True)]
        return 100 * float(np.mean(found))

    def _rows(self, weights: Array) -> tuple[Array, Array]:
        rows = weights[:, self.owner].astype(self.parts[0].dtype)
        return rows, rows.sum(1, dtype=np.float64)


class PooledPixels(Statistic):
    """PxAP: pixels of all images pooled in bins of their scores; see `camtools.metrics.PxAP`.

    Args:
        on_objects: (N, 1001) counts.
        elsewhere: Likewise.
        owner: Position of each row's image in the weights, (N,).
    """

    def __init__(self, on_objects: Array, elsewhere: Array, owner: Array) -> None:
        self.on_objects, self.elsewhere = on_objects.astype(np.float64), elsewhere.astype(np.float64)
        self.owner = owner

    def __call__(self, weights: Array) -> Estimate:
        """Evaluate it."""
        rows = weights[:, self.owner].astype(np.float64)
        true, false = (np.cumsum((rows @ part)[:, ::-1], 1) for part in (self.on_objects, self.elsewhere))
        kept = true + false
        precision = np.divide(true, kept, out=np.zeros_like(true), where=kept > 0)
        steps = np.diff(true, axis=1, prepend=0)
        return Estimate(_percent((precision * steps).sum(1), true[:, -1]), np.zeros((len(rows), 0), dtype=np.int64))


class MeanAveragePrecision(Statistic):
    """The mean over classes of the average precision of ranked detections; see `camtools.metrics.LocalizationMAP`.

    Args:
        ranked: Detections and objects.
        images: Index of every image in the data set, ascending, as in the weights.
    """

    def __init__(self, ranked: Ranked, images: Array) -> None:
        self.classes = []
        for label in np.unique(ranked.true_label):
            own = np.flatnonzero(ranked.label == label)
            own = own[np.argsort(-ranked.score[own].astype(np.float64), kind="stable")]
            objects = ranked.true_image[ranked.true_label == label]
            where = (np.searchsorted(images, part) for part in (ranked.image[own], objects))
            self.classes.append((*where, ranked.correct[own].astype(np.float64)))

    def __call__(self, weights: Array) -> Estimate:
        """Evaluate it; classes without an object among those that count are left out."""
        total, count = np.zeros(len(weights)), np.zeros(len(weights))
        for detected, objects, correct in self.classes:
            rows = weights[:, detected].astype(np.float64)
            positives = weights[:, objects].sum(1, dtype=np.float64)
            gained, seen = rows * correct, np.cumsum(rows, 1)
            precision = np.divide(np.cumsum(gained, 1), seen, out=np.zeros_like(seen), where=seen > 0)
            envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
            there = positives > 0
            total += np.where(there, (envelope * gained).sum(1) / np.maximum(positives, 1), 0)
            count += there
        return Estimate(_percent(total, count), np.zeros((len(weights), 0), dtype=np.int64))


def threshold_of(level: int) -> float:
    """Return the smallest of the protocol's thresholds that reads this level."""
    return round(float(THRESHOLDS[np.searchsorted(LEVEL_OF, level)]), 3)  # arange leaves 0.5690000000000001


def _percent(part: Array, whole: Array) -> Array:
    return np.where(whole > 0, 100 * part / np.where(whole > 0, whole, 1), np.nan)


_Builder = Callable[[Rows, int, Mapping[str, Ranked], Array], Statistic | None]


def _owner(rows: Rows, known: Array, images: Array) -> Array:
    return np.searchsorted(images, rows.index[known])


def _hits(ious: Array, at: float) -> Array:
    return (ious[:, :_REACHED] >= np.float32(at)).astype(np.float32)


def _boxes(rows: Rows, p: int, images: Array, ious: Array, at: tuple[float, ...]) -> Statistic | None:
    known = ~np.isnan(ious[p, :, 0])
    parts = [_hits(ious[p, known], one) for one in at]
    return BestLevel(parts, _owner(rows, known, images)) if known.any() else None


def _single(rows: Rows, images: Array, values: Array | None) -> Statistic | None:
    """A plain mean of one number a row, (N,) in [0, 1], NaN where there is none."""
    if values is None or np.isnan(values).all():
        return None
    known = ~np.isnan(values)
    return BestLevel([values[known, None].astype(np.float64)], _owner(rows, known, images))


def _own(rows: Rows, p: int, found: Mapping[str, Ranked], images: Array) -> Statistic | None:
    hits = np.where(np.isnan(rows.own_iou[p]), np.nan, rows.own_iou[p] >= np.float32(_FOUND))
    return _single(rows, images, hits)


def _top(k: int) -> _Builder:
    def build(rows: Rows, p: int, found: Mapping[str, Ranked], images: Array) -> Statistic | None:
        known = ~np.isnan(rows.v1[p, :, 0])
        if not known.any() or (rows.rank < 0).any():
            return None
        hits = _hits(rows.v1[p, known], _FOUND)
        right = (rows.rank[known, None] < k).astype(np.float32)
        return BestLevel([hits * right], _owner(rows, known, images), [hits])

    return build


def _peak(rows: Rows, p: int, found: Mapping[str, Ranked], images: Array) -> Statistic | None:
    if rows.mask_iou is None:
        return None
    known = ~np.isnan(rows.mask_iou[p, :, 0])
    part = rows.mask_iou[p, known, :_REACHED].astype(np.float64)
    return BestLevel([part], _owner(rows, known, images)) if known.any() else None


def _pixels(rows: Rows, p: int, found: Mapping[str, Ranked], images: Array) -> Statistic | None:
    if rows.on_objects is None or rows.elsewhere is None:
        return None
    return PooledPixels(rows.on_objects[p], rows.elsewhere[p], _owner(rows, np.full(len(rows), True), images))


def _ranked(kind: str) -> _Builder:
    return lambda rows, p, found, images: MeanAveragePrecision(found[kind], images) if kind in found else None


STATISTICS: dict[str, _Builder] = {
    "MaxBoxAcc": lambda rows, p, found, images: _boxes(rows, p, images, rows.v1, (_FOUND,)),
    "MaxBoxAccV2": lambda rows, p, found, images: _boxes(rows, p, images, rows.v2, V2_IOUS),
    "GT-known": _own,
    "Top-1 Loc": _top(1),
    "Top-5 Loc": _top(5),
    "Pointing": lambda rows, p, found, images: _single(rows, images, rows.pointing[p]),
    "PxAP": _pixels,
    "PeakIoU": _peak,
    "MaskIoU": lambda rows, p, found, images: _single(
        rows, images, None if rows.own_mask_iou is None else rows.own_mask_iou[p]
    ),
    "LocalizationMAP": _ranked("boxes"),
    "PointingMAP": _ranked("points"),
}
"""Every metric in the order in which they are shown; a builder returns None where the data has no truth for it."""


def check_metrics(names: object) -> tuple[str, ...] | None:
    """Check which metrics are asked for; None for all that the data allows.

    Raises:
        InputError: There is no such metric.
    """
    if names is None:
        return None
    wanted = [names] if isinstance(names, str) else list(names) if isinstance(names, list | tuple) else []
    unknown = [name for name in wanted if name not in STATISTICS]
    if not wanted or unknown:
        raise InputError(f"metrics={names!r}: expected some of {', '.join(STATISTICS)}, or None for all that fit")
    return tuple(wanted)


_TAILS = (2.5, 97.5)


def image_weights(images: int, replicates: int, seed: int = 0) -> Array:
    """Return how often each image is drawn in each replicate, with replacement.

    Args:
        images: How many there are to draw from, and to draw.
        replicates: R; 0 for none.
        seed: The same seed gives the same draws.

    Returns:
        (R, images) uint8, each row with the sum `images`.

    Raises:
        InputError: `replicates` or `seed` is not a whole number of at least 0.
    """
    for name, value in (("bootstrap", replicates), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{name}={value!r}: expected a whole number of at least 0")
    generator = np.random.default_rng(seed)
    weights = np.zeros((replicates, images), dtype=np.uint8)
    for row in weights:
        row[:] = np.bincount(generator.integers(0, images, images), minlength=images)
    return weights


def interval(differences: Array) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % percentile interval of a statistic's replicates (Efron 1979); None without any.

    Args:
        differences: (R,); NaN for replicates in which nothing counted, which are left out.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, _TAILS)
    return float(low), float(high)


Detections = Mapping[str, Mapping[str, Ranked]]


@dataclass(frozen=True)
class Measured:
    """Rows of one data set.

    Attributes:
        pipelines: In the order of the rows' first axis.
        rows: Every image and class.
        detections: Of multi-label data.
    """

    pipelines: tuple[str, ...]
    rows: Rows
    detections: Detections

    @property
    def images(self) -> Array:
        """Index of every image that has a row or a detection, ascending."""
        found = [one.image for kinds in self.detections.values() for one in kinds.values()]
        return np.unique(np.concatenate([self.rows.index, *found]))

    def statistic(self, metric: str, pipeline: str) -> Statistic | None:
        """Return a metric of a pipeline; None where the data has no truth for it."""
        position = self.pipelines.index(pipeline)
        return STATISTICS[metric](self.rows, position, self.detections.get(pipeline, {}), self.images)


def summarise(
    measured: Measured,
    wanted: tuple[str, ...] | None = None,
    *,
    calibration: Measured | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Value]], str]:
    """Return every metric of every pipeline, and the name of the pipeline that deltas are to.

    Args:
        measured: The data.
        wanted: Metrics; None for all that the data has truth for.
        calibration: Other data, of the same pipelines, on which thresholds are chosen.
        bootstrap: Replicates for the intervals; 0 for none.
        seed: Of the replicates.

    Raises:
        InputError: The data has no truth for a metric that was asked for, or none at all.
    """
    baseline = "cam" if "cam" in measured.pipelines else measured.pipelines[0]
    order = [baseline, *(name for name in measured.pipelines if name != baseline)]
    images = measured.images
    weights = image_weights(len(images), bootstrap if len(order) > 1 else 0, seed)
    metrics: dict[str, dict[str, Value]] = {name: {} for name in measured.pipelines}
    for metric in wanted or STATISTICS:
        reference: tuple[float, Array] | None = None
        for name in order:
            statistic = measured.statistic(metric, name)
            if statistic is None:
                if wanted:
                    raise InputError(
                        f"metrics: the data has no truth for {metric}, or was measured without what it needs: leave "
                        "it out, or choose data with boxes, masks or several classes per image"
                    )
                break
            value = _value(statistic, len(images), _levels(calibration, metric, name))
            replicates = replicate(statistic, weights)
            if reference is None:
                reference = (value.value, replicates)
            else:
                low, high = interval(replicates - reference[1])
                delta = value.value - reference[0]
                value = Value(**{**vars(value), "delta": delta, "low": low, "high": high})
            metrics[name][metric] = value
    if not any(metrics.values()):
        raise InputError("the data has neither boxes nor masks, so there is nothing to compare maps with")
    return metrics, baseline


def replicate(statistic: Statistic, weights: Array, together: int = 100) -> Array:
    """Return a statistic under every set of weights, (R,), so many at a time."""
    parts = [statistic(weights[start : start + together]).value for start in range(0, len(weights), together)]
    return np.concatenate([np.zeros(0), *parts])


def _value(statistic: Statistic, images: int, levels: Array | None) -> Value:
    found = statistic(np.ones((1, images), dtype=np.uint8))
    calibrated = None
    if levels is not None and isinstance(statistic, BestLevel):
        calibrated = statistic.at(levels)
    return Value(
        value=float(found.value[0]),
        threshold=_thresholds(found.levels[0]),
        calibrated=calibrated,
        calibrated_threshold=None if levels is None else _thresholds(levels),
    )


def _levels(calibration: Measured | None, metric: str, pipeline: str) -> Array | None:
    """Return the levels that are best for the calibration data; None where the metric has none."""
    statistic = None if calibration is None else calibration.statistic(metric, pipeline)
    if calibration is None or statistic is None:
        return None
    levels = statistic(np.ones((1, len(calibration.images)), dtype=np.uint8)).levels[0]
    return levels if len(levels) else None


def _thresholds(levels: Array) -> float | tuple[float, ...] | None:
    found = tuple(threshold_of(int(level)) for level in levels)
    return (found[0] if len(found) == 1 else found) if found else None
