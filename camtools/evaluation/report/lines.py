"""What a curve figure shows, as numbers: panels of lines with the points to mark and the words to write at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camtools.errors import InputError
from camtools.evaluation.results import V2_IOUS, EvaluationResult, Value

Point = tuple[float, float]
CURVES = ("MaxBoxAcc", "MaxBoxAccV2", "PxAP", "PeakIoU")
"""Metrics that have a figure."""


@dataclass(frozen=True, eq=False)
class Line:
    """One pipeline's curve.

    Attributes:
        name: Of the pipeline.
        x: (T,) float64: thresholds, or recall in per cent.
        y: (T,) float64, per cent.
        at: Where the label belongs: the maximum (the first of equal ones), or the middle of a precision-recall curve.
        value: The metric: the maximum, or the area under a precision-recall curve; per cent.
        label: What is written there.
        marked: Whether `at` gets a marker.
        calibrated: The point at the threshold chosen on other data; None without one.
        same_as: An earlier pipeline with exactly this curve; None for a curve of its own.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    at: Point
    value: float
    label: str
    marked: bool = True
    calibrated: Point | None = None
    same_as: str | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it; may be empty.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical axis.
        xmax: Where the horizontal axis ends; it begins at 0.
        lines: One a pipeline, in the result's order.
    """

    title: str
    xlabel: str
    ylabel: str
    xmax: float
    lines: tuple[Line, ...]


def panels(result: EvaluationResult, metric: str) -> tuple[Panel, ...]:
    """Return what the figure of a metric shows.

    Args:
        result: Of an evaluation.
        metric: "MaxBoxAcc", "PeakIoU": one panel over thresholds. "MaxBoxAccV2": one for each of its IoU, and one for
            their mean at a common threshold. "PxAP": precision against recall.

    Raises:
        InputError: The metric has no curve, or there is no truth for it.
    """
    if metric not in CURVES:
        raise InputError(f"{metric!r} has no curve: expected one of {', '.join(CURVES)}")
    if metric == "PxAP":
        return (_precision_recall(result),)
    _need_truth(result, metric)
    if metric == "MaxBoxAccV2":
        known = [f"{metric}@{iou}" for iou in V2_IOUS]
        found = [_over_thresholds(result, name, metric, k) for k, name in enumerate(known)]
        return (*found, _over_thresholds(result, metric, metric, None))
    return (_over_thresholds(result, metric, metric, 0),)


def available(result: EvaluationResult) -> tuple[str, ...]:
    """Return the metrics that `panels` can show."""
    rows = result.rows
    boxes = bool((~np.isnan(rows.v1[:, :, 0])).any())
    masks = rows.mask_iou is not None and bool((~np.isnan(rows.mask_iou[:, :, 0])).any())
    pixels = rows.on_objects is not None and bool(rows.on_objects.any())
    there = {"MaxBoxAcc": boxes, "MaxBoxAccV2": boxes, "PxAP": pixels, "PeakIoU": masks}
    return tuple(name for name in CURVES if there[name])


def counted(result: EvaluationResult, metric: str) -> str:
    """Say what a metric's curve is the mean over, as "1,000 images"."""
    rows = result.rows
    if metric == "PxAP" and rows.on_objects is not None:
        used = rows.on_objects[0].any(1)
    elif metric in ("PxAP", "PeakIoU"):
        used = np.ones(len(rows), dtype=bool) if rows.mask_iou is None else ~np.isnan(rows.mask_iou[0, :, 0])
    else:
        used = ~np.isnan(rows.v1[0, :, 0])
    number, images = int(used.sum()), len(np.unique(rows.index[used]))
    plural = "s" * (images != 1)
    return f"{images:,} image{plural}" if number == images else f"{number:,} classes in {images:,} images"


def point_text(value: float, threshold: float) -> str:
    """Write a value and its threshold, as "62.1 at 0.203"."""
    return f"{value:.1f} at {threshold:.3f}"


def _over_thresholds(result: EvaluationResult, curve: str, metric: str, part: int | None) -> Panel:
    """Return a panel over thresholds; `part` says which of several calibrated thresholds is its own, None for none."""
    x, ys = result.curve(curve)
    lines: list[Line] = []
    for name, y in zip(result.pipelines, np.asarray(ys, dtype=np.float64), strict=True):
        best = int(np.argmax(y))
        label = point_text(y[best], x[best])
        calibrated = _calibrated(result.metrics.get(name, {}).get(metric), part, x, y)
        if calibrated is not None:
            label += f"\ncalibrated {point_text(calibrated[1], calibrated[0])}"
        at = (float(x[best]), float(y[best]))
        lines.append(Line(name, x, y, at, at[1], label, calibrated=calibrated, same_as=_twin(lines, y)))
    ylabel = "mean IoU of the masks (%)" if metric == "PeakIoU" else "localised (%)"
    at_iou = curve.partition("@")[2]
    if metric == "MaxBoxAcc":
        ylabel = "localised with IoU ≥ 0.5 (%)"
    title = "" if metric != "MaxBoxAccV2" else f"IoU ≥ {at_iou}" if at_iou else "mean, one threshold for all"
    return Panel(title, "threshold, as a fraction of the map’s maximum", ylabel, 1.0, tuple(lines))


def _calibrated(value: Value | None, part: int | None, x: Any, y: Any) -> Point | None:
    """Return the curve's point at the calibrated threshold."""
    threshold = None if value is None else value.calibrated_threshold
    if threshold is None or part is None:
        return None
    tau = float(threshold[part] if isinstance(threshold, tuple) else threshold)
    nearest = int(np.abs(x - tau).argmin())
    return float(x[nearest]), float(y[nearest])


def _precision_recall(result: EvaluationResult) -> Panel:
    on_objects, elsewhere = result.rows.on_objects, result.rows.elsewhere
    if on_objects is None or elsewhere is None or not on_objects.any():
        raise InputError("PxAP has no curve here: it needs a data set with masks, whose histograms are in the rows")
    lines: list[Line] = []
    for name, hit, miss in zip(result.pipelines, on_objects, elsewhere, strict=True):
        hits, misses = (part.sum(0, dtype=np.int64)[::-1].cumsum() for part in (hit, miss))
        kept = hits + misses > 0
        precision, recall = 100 * hits[kept] / (hits + misses)[kept], 100 * hits[kept] / max(hits[-1], 1)
        area = float(np.sum(precision * np.diff(recall, prepend=0.0))) / 100
        middle = int(np.abs(recall - 50).argmin())
        at = (float(recall[middle]), float(precision[middle]))
        known = [line for line in lines if np.array_equal(line.x, recall)]
        lines.append(
            Line(name, recall, precision, at, area, f"{area:.1f}", marked=False, same_as=_twin(known, precision))
        )
    return Panel("", "recall: share of the objects’ pixels that are kept (%)", "precision (%)", 100.0, tuple(lines))


def _twin(lines: list[Line], y: Any) -> str | None:
    return next((line.name for line in lines if np.array_equal(line.y, y)), None)


def _need_truth(result: EvaluationResult, metric: str) -> None:
    if metric not in available(result):
        what = "masks" if metric == "PeakIoU" else "boxes"
        raise InputError(f"{metric} has no curve here: none of the {len(result.rows)} rows has true {what}")
