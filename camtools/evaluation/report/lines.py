"""What a curve figure shows, as numbers: panels of lines with the points to mark and the words for the legend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camtools.drawing.text import cut
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
        label: The metric, and where it has one its threshold; the calibrated ones; an earlier line with the same curve.
        best: Index of the maximum (the first of equal ones); None on a precision-recall curve.
        calibrated: The point at the threshold chosen on other data; None without one.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    label: str
    best: int | None = None
    calibrated: Point | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it; may be empty.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical axis.
        xmax: Where the horizontal axis ends; it begins at 0.
        lines: One per pipeline, in the result's order.
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
        parts = [_over_thresholds(result, f"{metric}@{iou}", metric, k) for k, iou in enumerate(V2_IOUS)]
        return (*parts, _over_thresholds(result, metric, metric, None))
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


def _over_thresholds(result: EvaluationResult, curve: str, metric: str, part: int | None) -> Panel:
    """Return a panel over thresholds; `part` says which of several calibrated thresholds is its own, None for none."""
    x, ys = result.curve(curve)
    lines: list[Line] = []
    for name, y in zip(result.pipelines, np.asarray(ys, dtype=np.float64), strict=True):
        best = int(np.argmax(y))
        label = f"{y[best]:.1f} at {x[best]:.3f}"
        calibrated = _calibrated(result.metrics.get(name, {}).get(metric), part, x, y)
        if calibrated is not None:
            label += f", calibrated {calibrated[1]:.1f} at {calibrated[0]:.3f}"
        lines.append(Line(name, x, y, label + _twin(lines, x, y), best, calibrated))
    at_iou = curve.partition("@")[2]
    title = "" if metric != "MaxBoxAccV2" else f"IoU ≥ {at_iou}" if at_iou else "mean, one threshold for all"
    ylabels = {"PeakIoU": "mean IoU of the masks (%)", "MaxBoxAcc": "localised with IoU ≥ 0.5 (%)"}
    ylabel = ylabels.get(metric, "localised (%)")
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
        lines.append(Line(name, recall, precision, f"{area:.1f}{_twin(lines, recall, precision)}"))
    return Panel("", "recall: share of the objects’ pixels that are kept (%)", "precision (%)", 100.0, tuple(lines))


def _twin(lines: list[Line], x: Any, y: Any) -> str:
    """Name the earlier line that has the same curve, and hides behind this one."""
    twins = (line.name for line in lines if np.array_equal(line.x, x) and np.array_equal(line.y, y))
    return next((f" (same curve as {cut(name, lambda words: len(words) <= 24)})" for name in twins), "")


def _need_truth(result: EvaluationResult, metric: str) -> None:
    if metric not in available(result):
        what = "masks" if metric == "PeakIoU" else "boxes"
        raise InputError(f"{metric} has no curve here: none of the {len(result.rows)} rows has true {what}")
