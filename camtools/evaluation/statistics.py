"""Metrics of an evaluation, and the paired bootstrap: one replicate is one row of weights, how often each image counts.

The formulas are those of `camtools.metrics`; here they meet the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from camtools.checks import whole
from camtools.errors import InputError
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

    def known(self, values: Array | None) -> Array:
        """Return which rows have a value, (N,) bool, of values (P, N) or (P, N, levels)."""
        if values is None:
            return np.zeros(len(self.rows), dtype=bool)
        of_rows = values[self.position]
        return np.asarray(~np.isnan(of_rows if of_rows.ndim == 1 else of_rows[:, 0]))


_Sums = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""From values, (N, levels), and weights to the sums at each level, and what chooses the levels instead of them."""


def _at_best(source: _Source, values: Array | None, sums: _Sums) -> Statistic | None:
    """A mean over rows at the best of all levels, of values (P, N, 256); rows of NaN are left out."""
    known = source.known(values)
    if values is None or not known.any():
        return None
    kept = torch.from_numpy(values[source.position, known, :_REACHED])

    def estimate(weights: Tensor, levels: Tensor | None) -> Estimate:
        return best_level(*sums(kept, weights), weights.sum(1), levels)

    return Statistic(source.owner[known], estimate)


def _boxes(source: _Source, ious: Array, at: tuple[float, ...]) -> Statistic | None:
    return _at_best(source, ious, lambda kept, weights: (box_hits(kept, at, weights), None))


def _top(source: _Source, k: int) -> Statistic | None:
    if source.rows.rank is None:
        return None
    ranks = torch.from_numpy(source.rows.rank[source.known(source.rows.v1)])

    def sums(kept: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        hits = topk_hits(kept, ranks, (k,), _HIT, weights)
        return hits[:, 1:], hits[:, :1]

    return _at_best(source, source.rows.v1, sums)


def _peak(source: _Source) -> Statistic | None:
    return _at_best(
        source, source.rows.mask_iou, lambda kept, weights: (weighted_sum(kept.double(), weights)[:, None], None)
    )


def _mean(source: _Source, values: Array | None, at: float | None = None) -> Statistic | None:
    """The mean of one number per row, (P, N) in [0, 1], or the share of those that reach `at`; NaN is left out."""
    known = source.known(values)
    if values is None or not known.any():
        return None
    kept = values[source.position, known]
    return mean_of([kept if at is None else kept >= np.float32(at)], source.owner[known])


def _pixels(source: _Source) -> Statistic | None:
    if source.rows.on_objects is None or source.rows.elsewhere is None:
        return None
    counts = source.rows.on_objects[source.position], source.rows.elsewhere[source.position]
    on_objects, elsewhere = (torch.from_numpy(part.astype(np.float64)) for part in counts)
    return Statistic(source.owner, lambda weights, _: _plain(pixel_area(on_objects, elsewhere, weights)))


def _ranked(source: _Source, kind: str) -> Statistic | None:
    if kind not in source.ranked:
        return None
    ranked = source.ranked[kind]
    detected, objects = (np.searchsorted(source.images, part) for part in (ranked.image, ranked.true_image))
    columns = ranked.score, ranked.label, ranked.correct, ranked.true_label
    scores, labels, correct, true_labels = (torch.from_numpy(column) for column in columns)

    def estimate(weights: Tensor, levels: Tensor | None) -> Estimate:
        counts = weights[:, detected], weights[:, objects]
        precisions = class_precisions(scores, labels, correct, true_labels, weights=counts)
        if not precisions:
            return _plain(torch.full((len(weights),), torch.nan, dtype=torch.float64))
        return _plain(torch.stack(list(precisions.values())).nanmean(0))

    return Statistic(np.arange(len(source.images)), estimate)


def mean_of(parts: list[Array], owner: Array) -> Statistic:
    """Return the mean of numbers, (N,) in [0, 1], as a statistic; the mean over several such.

    Args:
        parts: The numbers, or bools.
        owner: Position of each number's image in the weights, (N,).
    """
    values = [torch.from_numpy(part) for part in parts]
    return Statistic(
        owner, lambda weights, _: _plain(torch.stack([weighted_mean(part, weights) for part in values]).mean(0))
    )


def _plain(value: Tensor) -> Estimate:
    """Return an estimate without levels."""
    return Estimate(value, torch.zeros(len(value), 0, dtype=torch.int64))


STATISTICS: dict[str, Callable[[_Source], Statistic | None]] = {
    "MaxBoxAcc": lambda source: _boxes(source, source.rows.v1, (_HIT,)),
    "MaxBoxAccV2": lambda source: _boxes(source, source.rows.v2, V2_IOUS),
    "GT-known@own": lambda source: _mean(source, source.rows.own_iou, _HIT),
    "Top-1 Loc@best": lambda source: _top(source, 1),
    "Top-5 Loc@best": lambda source: _top(source, 5),
    "Pointing": lambda source: _mean(source, source.rows.pointing),
    "PxAP": _pixels,
    "PeakIoU": _peak,
    "MaskIoU@own": lambda source: _mean(source, source.rows.own_mask_iou),
    "LocalizationMAP": lambda source: _ranked(source, "boxes"),
    "PointingMAP": lambda source: _ranked(source, "points"),
}
"""Every metric in the order in which they are shown; None of one that the data has no truth for.

"@own" is at the pipeline's own threshold, "@best" at the one that is best for the data set, as MaxBoxAcc is by
definition: the threshold of Top-1 and Top-5 Loc is MaxBoxAcc's, so neither can exceed it.
"""

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
    whole("bootstrap", replicates, 0)
    whole("seed", seed, 0)
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
                value = replace(value, delta=delta, low=low, high=high)
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
        calibrated_threshold=None if levels is None else _thresholds(levels),
    )


def _levels(calibration: Measured | None, metric: str, pipeline: str) -> Tensor | None:
    """Return the levels that are best for the calibration data; None where the metric has none."""
    statistic = None if calibration is None else calibration.statistic(metric, pipeline)
    if calibration is None or statistic is None:
        return None
    levels = statistic(np.ones((1, len(calibration.images)), dtype=np.uint8)).levels[0]
    return levels if len(levels) else None


def _thresholds(levels: Tensor) -> float | tuple[float, ...] | None:
    thresholds = tuple(threshold_of(level) for level in levels.tolist())
    return (thresholds[0] if len(thresholds) == 1 else thresholds) if thresholds else None


def threshold_of(level: int) -> float:
    """Return the smallest of the protocol's thresholds that reads this level."""
    return round(float(THRESHOLDS[np.searchsorted(LEVEL_OF, level)]), 3)  # arange leaves 0.5690000000000001
