"""The metrics of an evaluation from its rows: values, thresholds, deltas with intervals, calibrated thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from camtools.errors import InputError
from camtools.evaluation.bootstrap import interval, picture_weights
from camtools.evaluation.results import Array, Ranked, Rows, Value
from camtools.evaluation.statistics import STATISTICS, BestLevel, Statistic, threshold_of

Detections = Mapping[str, Mapping[str, Ranked]]


@dataclass(frozen=True)
class Measured:
    """Rows of one data set.

    Attributes:
        pipelines: In the order of the rows' first axis.
        rows: Every picture and class.
        detections: Of multi-label data.
    """

    pipelines: tuple[str, ...]
    rows: Rows
    detections: Detections

    @property
    def pictures(self) -> Array:
        """Index of every picture that has a row or a detection, ascending."""
        found = [one.picture for kinds in self.detections.values() for one in kinds.values()]
        return np.unique(np.concatenate([self.rows.index, *found]))

    def statistic(self, metric: str, pipeline: str) -> Statistic | None:
        """Return a metric of a pipeline; None where the data has no truth for it."""
        position = self.pipelines.index(pipeline)
        return STATISTICS[metric](self.rows, position, self.detections.get(pipeline, {}), self.pictures)


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
    pictures = measured.pictures
    weights = picture_weights(len(pictures), bootstrap if len(order) > 1 else 0, seed)
    metrics: dict[str, dict[str, Value]] = {name: {} for name in measured.pipelines}
    for metric in wanted or STATISTICS:
        reference: tuple[float, Array] | None = None
        for name in order:
            statistic = measured.statistic(metric, name)
            if statistic is None:
                if wanted:
                    raise InputError(
                        f"metrics: the data has no truth for {metric}, or was measured without what it needs: leave "
                        "it out, or choose data with boxes, masks or several classes a picture"
                    )
                break
            value = _value(statistic, len(pictures), _levels(calibration, metric, name))
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


def _value(statistic: Statistic, pictures: int, levels: Array | None) -> Value:
    found = statistic(np.ones((1, pictures), dtype=np.uint8))
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
    levels = statistic(np.ones((1, len(calibration.pictures)), dtype=np.uint8)).levels[0]
    return levels if len(levels) else None


def _thresholds(levels: Array) -> float | tuple[float, ...] | None:
    found = tuple(threshold_of(int(level)) for level in levels)
    return (found[0] if len(found) == 1 else found) if found else None
