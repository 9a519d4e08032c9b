"""Thresholds chosen on calibration data: kept in a file, and put into a pipeline for `explain`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from camtools.checks import as_path
from camtools.classes.names import MAX_BYTES
from camtools.errors import InputError
from camtools.evaluation.results import EvaluationResult, Value
from camtools.evaluation.statistics import metric_name
from camtools.files import parse_json, read_text, write_json
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.presets import as_pipeline
from camtools.steps.base import Stage
from camtools.steps.fixed_threshold import FixedThreshold

FILE = "threshold.json"
UNLABELLED = "unlabelled"
"""What stands for the metric where a threshold was chosen without labels."""


def calibrated(
    pipeline: Any,
    threshold: float | str | os.PathLike[str] | EvaluationResult,
    *,
    metric: str = "MaxBoxAcc",
    name: str | None = None,
) -> Pipeline:
    """Return a pipeline with a fixed threshold in place of its own, such as one chosen on calibration data.

    Metrics read thresholds at 255 levels, a pipeline at all values: masks may differ by the pixels of one level.

    Args:
        pipeline: Preset name, `Pipeline`, step, or list of steps.
        threshold: Fraction of the map's maximum, in [0, 1); or the `threshold.json` of an evaluation with calibration,
            its folder, or its result; or the file that `camtools.calibrate` wrote.
        metric: Which metric's threshold, where there are several: "MaxBoxAcc" or "PeakIoU", say.
        name: The pipeline's name in the evaluation; the preset's own where left out.

    Raises:
        InputError: There is no such threshold.
        PipelineError: The pipeline is impossible, or the threshold is not such a number.

    Example:
        >>> calibrated("rcam", 0.31)[-1]
        FixedThreshold(theta=0.31)
    """
    built = as_pipeline(pipeline)
    if not isinstance(threshold, int | float):
        threshold = _chosen(threshold, name or (pipeline if isinstance(pipeline, str) else built.summary), metric)
    return Pipeline([FixedThreshold(threshold) if step.stage == Stage.THRESHOLD else step for step in built])


def write_thresholds(metrics: dict[str, dict[str, Value]], settings: dict[str, Any], path: Path) -> None:
    """Write the thresholds chosen on the calibration data, for each pipeline and metric."""
    write_json({"calibration": settings.get("calibration"), "thresholds": _thresholds(metrics)}, path)


def _thresholds(metrics: dict[str, dict[str, Value]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value.calibrated_threshold for key, value in of.items() if value.calibrated_threshold is not None}
        for name, of in metrics.items()
    }


def _chosen(source: Any, name: str, metric: str) -> float:
    """Find a threshold in a file or result."""
    if isinstance(source, EvaluationResult):
        thresholds, where = json.loads(json.dumps(_thresholds(source.metrics))), "the result"
    else:
        path = as_path("threshold", source)
        path = path / FILE if path.is_dir() else path
        where = str(path)
        try:
            thresholds = parse_json(read_text(path, MAX_BYTES))["thresholds"]
            assert isinstance(thresholds, dict) and all(isinstance(of, dict) for of in thresholds.values())
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise InputError(
                f"{path} holds no thresholds ({type(error).__name__}: {error}): expected the {FILE} that camtools "
                "evaluate --calibrate has written"
            ) from error
    if name not in thresholds:
        known = ", ".join(map(repr, thresholds))
        raise InputError(f"{where} has no pipeline {name!r}: expected one of {known}; give name=")
    by_metric = {key: value for key, value in thresholds[name].items() if isinstance(value, int | float)}
    key = next((key for key in (metric, metric_name(metric), UNLABELLED) if key in by_metric), None)
    if key is None:
        raise InputError(
            f"{where} has no single threshold of {metric!r} for {name!r}: expected one of "
            f"{', '.join(map(repr, by_metric)) or 'none'}; evaluate with calibrate=, and give metric="
        )
    return float(by_metric[key])
