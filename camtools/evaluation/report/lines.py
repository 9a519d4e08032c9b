"""What a curve figure shows, as numbers: lines with the points to mark and the words for the legend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from camtools.drawing.text import cut
from camtools.errors import InputError
from camtools.evaluation.results import V2_IOUS, EvaluationResult
from camtools.evaluation.rows import Rows
from camtools.metrics.pixel import pixel_area, pixel_curve

CURVES = ("MaxBoxAcc", "MaxBoxAccV2", "PxAP", "PeakIoU")
"""Metrics that have a figure."""


@dataclass(frozen=True, eq=False)
class Line:
    """One pipeline's curve.

    Attributes:
        name: Of the pipeline.
        x: (T,) float64: thresholds, or recall in per cent.
        y: (T,) float64, per cent.
        label: The metric, and where it has one its threshold; the calibrated ones; an earlier line with the same curve.
        best: Index of the maximum (the first of equal ones); None on a precision-recall curve.
        calibrated: Index of the threshold chosen on other data; None without one.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    label: str
    best: int | None = None
    calibrated: int | None = None


def panels(result: EvaluationResult, metric: str) -> dict[str, list[Line]]:
    """Return what the figure of a metric shows: of each panel, by its title, one line per pipeline.

    Args:
        result: Of an evaluation.
        metric: "MaxBoxAcc", "PeakIoU": one panel over thresholds. "MaxBoxAccV2": one for each of its IoU, and one for
            their mean at a common threshold. "PxAP": precision against recall.

    Raises:
        InputError: The metric has no curve, or there is no truth for it.
    """
    if metric not in CURVES:
        raise InputError(f"{metric!r} has no curve: expected one of {', '.join(CURVES)}")
    if metric not in available(result):
        truth = "boxes" if metric.startswith("MaxBoxAcc") else "masks"
        raise InputError(f"{metric} has no curve here: none of the {len(result.rows)} rows has true {truth}")
    if metric == "PxAP":
        return {"": _precision_recall(result)}
    if metric == "MaxBoxAccV2":
        parts = {f"IoU ≥ {iou}": _over_thresholds(result, f"{metric}@{iou}", k) for k, iou in enumerate(V2_IOUS)}
        return {**parts, "mean, one threshold for all": _over_thresholds(result, metric, None)}
    return {"": _over_thresholds(result, metric, 0)}


def available(result: EvaluationResult) -> tuple[str, ...]:
    """Return the metrics that `panels` can show."""
    return tuple(metric for metric in CURVES if _measured(result.rows, metric).any())


def counted(result: EvaluationResult, metric: str) -> str:
    """Say what a metric's curve is the mean over, as "1,000 images"."""
    used = _measured(result.rows, metric)
    number, images = int(used.sum()), len(np.unique(result.rows.index[used]))
    plural = "s" * (images != 1)
    return f"{images:,} image{plural}" if number == images else f"{number:,} classes in {images:,} images"


def _measured(rows: Rows, metric: str) -> NDArray[np.bool_]:
    """Return which rows count in a metric's curve, (N,)."""
    values = {"PxAP": rows.on_objects, "PeakIoU": rows.mask_iou}.get(metric, rows.v1)
    if values is None:
        return np.zeros(len(rows), dtype=bool)
    return np.asarray(values[0].any(1) if metric == "PxAP" else ~np.isnan(values[0, :, 0]))


def _over_thresholds(result: EvaluationResult, curve: str, part: int | None) -> list[Line]:
    """Return lines over thresholds; `part` says which of several calibrated thresholds is theirs, None for none."""
    x, ys = result.curve(curve)
    lines: list[Line] = []
    for name, y in zip(result.pipelines, ys, strict=True):
        best, calibrated = int(np.argmax(y)), None
        label = f"{y[best]:.1f} at {x[best]:.3f}"
        value = result.metrics.get(name, {}).get(curve.partition("@")[0])
        threshold = None if value is None else value.calibrated_threshold
        if threshold is not None and part is not None:
            tau = threshold[part] if isinstance(threshold, tuple) else threshold
            calibrated = int(np.abs(x - tau).argmin())
            label += f", calibrated {y[calibrated]:.1f} at {x[calibrated]:.3f}"
        lines.append(Line(name, x, y, label + _twin(lines, x, y), best, calibrated))
    return lines


def _precision_recall(result: EvaluationResult) -> list[Line]:
    on_objects, elsewhere = result.rows.on_objects, result.rows.elsewhere
    assert on_objects is not None and elsewhere is not None
    lines: list[Line] = []
    for name, *parts in zip(result.pipelines, on_objects, elsewhere, strict=True):
        counts = [torch.from_numpy(part.sum(0, dtype=np.int64)) for part in parts]
        precision, recall, _ = pixel_curve(*counts)
        kept = ~precision.isnan()
        x, y = (100 * values[kept].flip(0).numpy() for values in (recall, precision))
        area = pixel_area(*(count[None] for count in counts)).item()
        lines.append(Line(name, x, y, f"{area:.1f}{_twin(lines, x, y)}"))
    return lines


def _twin(lines: list[Line], x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Name the earlier line that has the same curve, and hides behind this one."""
    twins = (line.name for line in lines if np.array_equal(line.x, x) and np.array_equal(line.y, y))
    return next((f" (same curve as {cut(name, lambda words: len(words) <= 24)})" for name in twins), "")
