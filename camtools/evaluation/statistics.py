"""Metrics of an evaluation, and the paired bootstrap: one replicate is one row of weights, how often each image counts.

The formulas are those of `camtools.metrics`; here they meet the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from camtools.errors import InputError
from camtools.evaluation.bootstrap import image_weights, interval
from camtools.evaluation.results import LEVEL_OF, THRESHOLDS, V2_IOUS, Value
from camtools.evaluation.rows import Array, Detections, Ranked, Rows
from camtools.metrics.average_precision import class_precisions
from camtools.metrics.base import Estimate, best_level, weighted_mean, weighted_sum
from camtools.metrics.box_accuracy import box_hits
from camtools.metrics.pixel import pixel_area
from camtools.metrics.topk_localization import topk_hits

_REACHED = int(LEVEL_OF[-1]) + 1  # levels that a threshold below 1 can have
_HIT = 0.5  # IoU


@dataclass(frozen=True)
class Statistic:
    """One metric of one pipeline on one data set.

    Attributes:
        owner: Position of each row's image in the weights, (N,).
        estimate: Evaluates it under weights of the rows, (R, N), at given levels, (parts,), or with None at the best.
    """

    owner: Array
    estimate: Callable[[Tensor, Tensor | None], Estimate]

    def __call__(self, weights: Array, levels: Tensor | None = None) -> Estimate:
        """Evaluate it.

        Args:
            weights: How often each image counts, (R, images), whole numbers.
            levels: The levels of its parts' thresholds; None for each replicate's own best.
        """
        return self.estimate(torch.from_numpy(weights[:, self.owner]), levels)


class _Source(NamedTuple):
    """What metrics are made of: the rows, the pipeline's position, its detections, and the images with their rows."""

    rows: Rows
    position: int
    ranked: Mapping[str, Ranked]
    images: Array
    owner: Array

    def over(self, values: Array | None, estimate: Callable[..., Estimate], *columns: Array) -> Statistic | None:
        """Make a statistic of the rows that have a value; None without any.

        Args:
            values: (P, N) or (P, N, levels); rows of NaN are left out.
            estimate: Takes this pipeline's values, the columns, weights, and levels or None.
            columns: More of the rows, (N, ...) each.
        """
        if values is None:
            return None
        own = values[self.position]
        known = ~np.isnan(own if own.ndim == 1 else own[:, 0])
        kept = (torch.from_numpy(column[known]) for column in (own, *columns))
        return Statistic(self.owner[known], partial(estimate, *kept)) if known.any() else None


def _boxes(source: _Source, ious: Array, at: tuple[float, ...]) -> Statistic | None:
    def estimate(ious: Tensor, weights: Tensor, levels: Tensor | None) -> Estimate:
        return best_level(box_hits(ious[:, :_REACHED], at, weights), None, weights.sum(1), levels)

    return source.over(ious, estimate)


def _top(source: _Source, k: int) -> Statistic | None:
    def estimate(ious: Tensor, ranks: Tensor, weights: Tensor, levels: Tensor | None) -> Estimate:
        hits = topk_hits(ious[:, :_REACHED], ranks, (k,), _HIT, weights)
        return best_level(hits[:, 1:], hits[:, :1], weights.sum(1), levels)

    rank = source.rows.rank
    return None if rank is None else source.over(source.rows.v1, estimate, rank)


def _accuracy(source: _Source, k: int) -> Statistic | None:
    rank = source.rows.rank
    if rank is None:
        return None
    return source.over(np.broadcast_to((rank < k).astype(np.float32), source.rows.pointing.shape), _mean)


def _peak(ious: Tensor, weights: Tensor, levels: Tensor | None) -> Estimate:
    return best_level(weighted_sum(ious[:, :_REACHED].double(), weights)[:, None], None, weights.sum(1), levels)


def _mean(values: Tensor, weights: Tensor, _: Tensor | None) -> Estimate:
    return _plain(weighted_mean(values, weights))


def _pixels(source: _Source) -> Statistic | None:
    def estimate(on_objects: Tensor, elsewhere: Tensor, weights: Tensor, _: Tensor | None) -> Estimate:
        return _plain(pixel_area(on_objects.double(), elsewhere.double(), weights))

    elsewhere = source.rows.elsewhere
    return None if elsewhere is None else source.over(source.rows.on_objects, estimate, elsewhere[source.position])


def _ranked(source: _Source, kind: str) -> Statistic | None:
    if (ranked := source.ranked.get(kind)) is None:
        return None
    ours, theirs = (np.searchsorted(source.images, part) for part in (ranked.image, ranked.true_image))
    columns = ranked.score, ranked.label, ranked.correct, ranked.true_label
    scores, labels, correct, true = map(torch.from_numpy, columns)

    def estimate(weights: Tensor, levels: Tensor | None) -> Estimate:
        precisions = class_precisions(scores, labels, correct, true, weights=(weights[:, ours], weights[:, theirs]))
        nothing = torch.full((len(weights),), torch.nan, dtype=torch.float64)
        return _plain(torch.stack([nothing, *precisions.values()]).nanmean(0))

    return Statistic(np.arange(len(source.images)), estimate)


def mean_of(parts: list[Array], owner: Array) -> Statistic:
    """Return the mean of numbers, (N,) in [0, 1], as a statistic; the mean over several such.

    Args:
        parts: The numbers, or bools.
        owner: Position of each number's image in the weights, (N,).
    """
    values = [torch.from_numpy(part) for part in parts]
    return Statistic(owner, lambda weights, _: _plain(torch.stack([weighted_mean(v, weights) for v in values]).mean(0)))


def _by_class(source: _Source) -> Statistic | None:
    """Return the share of the pipeline's own boxes that hit, averaged over classes (CorLoc)."""

    def estimate(ious: Tensor, labels: Tensor, weights: Tensor, _: Tensor | None) -> Estimate:
        weights, classes = weights.double(), int(labels.max()) + 1
        hits, total = (
            torch.zeros(len(weights), classes, dtype=torch.float64).index_add_(1, labels, values)
            for values in (weights * (ious >= _HIT), weights)
        )
        return _plain(100 * (hits / total).nanmean(1))

    return source.over(source.rows.own_iou, estimate, source.rows.labels)


def _plain(value: Tensor) -> Estimate:
    """Return an estimate without levels."""
    return Estimate(value, torch.zeros(len(value), 0, dtype=torch.int64))


STATISTICS: dict[str, Callable[[_Source], Statistic | None]] = {
    "MaxBoxAcc": lambda source: _boxes(source, source.rows.v1, (_HIT,)),
    "MaxBoxAccV2": lambda source: _boxes(source, source.rows.v2, V2_IOUS),
    "GT-known@own": lambda source: source.over(source.rows.own_iou, lambda ious, *of: _mean(ious >= _HIT, *of)),
    "Top-1 Loc@best": lambda source: _top(source, 1),
    "Top-5 Loc@best": lambda source: _top(source, 5),
    "Pointing": lambda source: source.over(source.rows.pointing, _mean),
    "PxAP": _pixels,
    "PeakIoU": lambda source: source.over(source.rows.mask_iou, _peak),
    "MaskIoU@own": lambda source: source.over(source.rows.own_mask_iou, _mean),
    "LocalizationMAP": lambda source: _ranked(source, "boxes"),
    "CorLoc@own": lambda source: _by_class(source) if source.ranked else None,
    "PointingMAP": lambda source: _ranked(source, "points"),
    "Top-1": lambda source: _accuracy(source, 1),
    "Top-5": lambda source: _accuracy(source, 5),
}
"""Every metric in the order in which they are shown; None of one that the data has no truth for.

The classifier's own accuracy, Top-1 and Top-5, is shown where labels are all that the data has, or where asked for.

"@own" is at the pipeline's own threshold, "@best" at the one that is best for the data set, as MaxBoxAcc is by
definition: the threshold of Top-1 and Top-5 Loc is MaxBoxAcc's, so neither can exceed it.
"""

ACCURACIES = ("Top-1", "Top-5")

FORMER = {
    "GT-known": "GT-known@own",
    "Top-1 Loc": "Top-1 Loc@best",
    "Top-5 Loc": "Top-5 Loc@best",
    "MaskIoU": "MaskIoU@own",
}
"""Today's names of metrics by those of camtools 0.1."""


def metric_name(name: str) -> str:
    """Return a metric's name of today; warns of a former one."""
    if name in FORMER:
        warnings.warn(f"the metric {name!r} is now called {FORMER[name]!r}", DeprecationWarning, stacklevel=3)
    return FORMER.get(name, name)


def check_metrics(names: object) -> tuple[str, ...] | None:
    """Check which metrics are asked for; None for all that the data allows.

    Raises:
        InputError: There is no such metric.
    """
    if names is None:
        return None
    given = [names] if isinstance(names, str) else list(names) if isinstance(names, list | tuple) else []
    wanted = [metric_name(name) if isinstance(name, str) else name for name in given]
    if not wanted or any(name not in STATISTICS for name in wanted):
        raise InputError(f"metrics={names!r}: expected some of {', '.join(STATISTICS)}, or None for all that fit")
    return tuple(wanted)


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
        detected = [ranked.image for kinds in self.detections.values() for ranked in kinds.values()]
        return np.unique(np.concatenate([self.rows.index, *detected]))

    def statistic(self, metric: str, pipeline: str) -> Statistic | None:
        """Return a metric of a pipeline; None where the data has no truth for it."""
        images, position = self.images, self.pipelines.index(pipeline)
        owner = np.searchsorted(images, self.rows.index)
        return STATISTICS[metric](_Source(self.rows, position, self.detections.get(pipeline, {}), images, owner))


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
        if not wanted and metric in ACCURACIES and set(metrics[baseline]) - {*ACCURACIES}:
            continue
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
            reference = reference or (value.value, replicates)
            if name != baseline:
                low, high = interval(replicates - reference[1])
                value = replace(value, delta=value.value - reference[0], low=low, high=high)
            metrics[name][metric] = value
    if not any(metrics.values()):
        raise InputError("the data has neither boxes nor masks, so there is nothing to compare maps with")
    return metrics, baseline


def replicate(statistic: Statistic, weights: Array, together: int = 100) -> Array:
    """Return a statistic under every set of weights, (R,), so many at a time."""
    parts = [statistic(weights[start : start + together]).value for start in range(0, len(weights), together)]
    return np.concatenate([np.zeros(0), *(part.numpy() for part in parts)])


def _value(statistic: Statistic, images: int, levels: Tensor | None) -> Value:
    ones = np.ones((1, images), dtype=np.uint8)
    estimate = statistic(ones)
    return Value(
        value=float(estimate.value[0]),
        threshold=_thresholds(estimate.levels[0]),
        calibrated=None if levels is None else float(statistic(ones, levels).value[0]),
        calibrated_threshold=_thresholds(levels),
    )


def _levels(calibration: Measured | None, metric: str, pipeline: str) -> Tensor | None:
    """Return the levels that are best for the calibration data; None where the metric has none."""
    if calibration is None or (statistic := calibration.statistic(metric, pipeline)) is None:
        return None
    levels = statistic(np.ones((1, len(calibration.images)), dtype=np.uint8)).levels[0]
    return levels if len(levels) else None


def _thresholds(levels: Tensor | None) -> float | tuple[float, ...] | None:
    thresholds = () if levels is None else tuple(threshold_of(level) for level in levels.tolist())
    return thresholds[0] if len(thresholds) == 1 else thresholds or None


def threshold_of(level: int) -> float:
    """Return the smallest of the protocol's thresholds that reads this level."""
    return round(float(THRESHOLDS[np.searchsorted(LEVEL_OF, level)]), 3)  # arange leaves 0.5690000000000001
