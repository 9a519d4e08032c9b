"""The result of an evaluation: its metrics and rows, how they depend on the threshold, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from camtools.checks import as_path
from camtools.errors import InputError
from camtools.evaluation.rows import Array, Ranked, Rows, detections_table, rows_table, table_detections, table_rows
from camtools.files import parse_json, read_text, replacing, write_text
from camtools.metrics.box_accuracy import box_hits
from camtools.metrics.scoremap import THRESHOLDS as PROTOCOL_THRESHOLDS
from camtools.notebook import html_table

THRESHOLDS: NDArray[np.float64] = PROTOCOL_THRESHOLDS.numpy()
"""The protocol's thresholds: 0, 0.001 ... 0.999 of a map's maximum, (1000,)."""
LEVEL_OF: NDArray[np.int64] = (THRESHOLDS * 255).astype(np.int64)
"""The level that each threshold reads, int(255 tau), (1000,)."""
V2_IOUS = (0.3, 0.5, 0.7)
_ROWS, _DETECTIONS, _RESULTS = "rows.parquet", "detections.parquet", "results.json"
_MADE_OF_THEM = (_DETECTIONS, "threshold.json", "table.md", "curve-*.png", "sheet-*.png", "changes-*.png")


@dataclass(frozen=True)
class Value:
    """One metric of one pipeline, per cent.

    Attributes:
        value: At the threshold that is best for this data, where the metric chooses one (the oracle's).
        threshold: That threshold, a fraction of a map's maximum; three of them for MaxBoxAccV2; None where the metric
            has none, or where every map has the pipeline's own.
        delta: Difference to the first pipeline, or to "cam" where it is among them; None for that one itself.
        low: Lower end of the delta's 95 % interval (paired bootstrap over images); None without one.
        high: Its upper end.
        calibrated: The metric at the threshold chosen on the calibration data; None without such.
        calibrated_threshold: That threshold.
    """

    value: float
    threshold: float | tuple[float, ...] | None = None
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    calibrated: float | None = None
    calibrated_threshold: float | tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class EvaluationResult:
    """The result of `camtools.evaluate`.

    Attributes:
        pipelines: Names of the pipelines, in the order of the rows' first axis.
        rows: Every image and class.
        metrics: For each pipeline a `Value` for each metric, in the order in which they are shown.
        failed: Images that could not be evaluated: (id, error).
        settings: What the numbers depend on, as JSON keeps it.
        baseline: The pipeline that deltas are to.
        detections: Of multi-label data, for each pipeline its ranked boxes and its ranked points; else empty.
        timing: Seconds and images of this run; not saved, since files are the same however a run was interrupted.
    """

    pipelines: tuple[str, ...]
    rows: Rows
    metrics: dict[str, dict[str, Value]]
    failed: list[tuple[str, str]]
    settings: dict[str, Any]
    baseline: str
    detections: dict[str, dict[str, Ranked]] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics, in the order in which they are shown."""
        return tuple(next(iter(self.metrics.values()), {}))

    @property
    def _about(self) -> str:
        count, data = len(set(self.rows.index.tolist())), self.settings.get("data")
        return f"{count} images{f' of {data}' if data else ''}{f', {len(self.failed)} failed' if self.failed else ''}"

    def __repr__(self) -> str:
        lines = (
            f"\n  {name}: {', '.join(f'{metric} {value.value:.1f}' for metric, value in of.items())}"
            for name, of in self.metrics.items()
        )
        return f"EvaluationResult({self._about}; per cent{''.join(lines)})"

    def _repr_html_(self) -> str:
        rows = ((name, *(f"{value.value:.1f}" for value in of.values())) for name, of in self.metrics.items())
        return html_table(rows, ("Pipeline", *self.metric_names), f"{self._about}; per cent")

    def curve(self, metric: str) -> tuple[Array, Array]:
        """Return how a metric depends on the threshold.

        Args:
            metric: "MaxBoxAcc", "MaxBoxAccV2" (the mean over its three IoU), "MaxBoxAccV2@0.3" (0.5, 0.7: at one of
                them) or "PeakIoU".

        Returns:
            Thresholds (1000,) and per cent (P, 1000), both float64.

        Raises:
            InputError: It has no curve, or the data has no truth for it.
        """
        return THRESHOLDS, level_curve(self.rows, metric)[:, LEVEL_OF]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the rows, as `results.json` has it."""
        return {
            "images": len(set(self.rows.index.tolist())),
            "rows": len(self.rows),
            "baseline": self.baseline,
            "metrics": {name: {key: asdict(value) for key, value in of.items()} for name, of in self.metrics.items()},
            "failed": [{"id": name, "error": error} for name, error in self.failed],
            "settings": self.settings,
        }

    def save(self, folder: str | Path) -> None:
        """Write results.json, rows.parquet (one row per image, class and pipeline) and detections.parquet.

        Each file is replaced as a whole; results.json comes last. What was made of other results there (the report,
        thresholds, detections) is removed first.

        Raises:
            InputError: The folder cannot be written.
        """
        import pyarrow.parquet as pq

        place = as_path("folder", folder)
        tables = {_ROWS: rows_table(self.rows, self.pipelines)}
        if self.detections:
            tables[_DETECTIONS] = detections_table(self.detections)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        if _text(place / _RESULTS) != text:
            for path in [path for pattern in _MADE_OF_THEM for path in place.glob(pattern)]:
                path.unlink(missing_ok=True)
        for name, table in tables.items():
            with replacing(place / name) as partial:
                pq.write_table(table, partial, compression="zstd")
        write_text(place / _RESULTS, text)

    @classmethod
    def load(cls, folder: str | Path) -> EvaluationResult:
        """Read what `save` wrote.

        Raises:
            InputError: The folder holds no such files.
        """
        import pyarrow.parquet as pq

        place = as_path("folder", folder)
        try:
            data = parse_json(read_text(place / _RESULTS))
            metrics = {name: {key: _value(entry) for key, entry in of.items()} for name, of in data["metrics"].items()}
            failed = [(entry["id"], entry["error"]) for entry in data["failed"]]
            rows = table_rows(pq.read_table(place / _ROWS))
            ranked = place / _DETECTIONS
            detections = table_detections(pq.read_table(ranked)) if ranked.exists() else {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{place} holds no results of an evaluation ({type(error).__name__}: {error}): expected a folder that "
                "camtools evaluate --out, or EvaluationResult.save, has written"
            ) from error
        return cls(tuple(metrics), rows, metrics, failed, data["settings"], data["baseline"], detections)


def level_curve(rows: Rows, metric: str) -> Array:
    """Return a metric at every level, per cent, (P, 256) float64; see `EvaluationResult.curve`."""
    name, at, iou = metric.partition("@")
    if name == "MaxBoxAcc" and not at:
        return _hit_curve(rows.v1, (0.5,))
    if name == "MaxBoxAccV2" and (not at or iou in map(str, V2_IOUS)):
        return _hit_curve(rows.v2, (float(iou),) if at else V2_IOUS)
    if name == "PeakIoU" and not at and rows.mask_iou is not None:
        known = ~np.isnan(rows.mask_iou[0, :, 0])
        return 100 * rows.mask_iou[:, known].astype(np.float64).mean(1)
    raise InputError(
        f"{metric!r} has no curve over thresholds here: expected MaxBoxAcc, MaxBoxAccV2, MaxBoxAccV2@0.3 (0.5, 0.7) "
        "or, of data with masks, PeakIoU"
    )


def _hit_curve(ious: Array, at: Sequence[float]) -> Array:
    """Return per cent of rows whose IoU reaches a value, the mean over several such, (P, 256) float64."""
    known = torch.from_numpy(ious[:, ~np.isnan(ious[0, :, 0])])
    hits = torch.stack([box_hits(part, at)[0].double().mean(0) for part in known])
    return (100 * hits / max(known.shape[1], 1)).numpy()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _value(entry: dict[str, Any]) -> Value:
    names = {column.name for column in fields(Value)}
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k in names}
    return Value(**known)
