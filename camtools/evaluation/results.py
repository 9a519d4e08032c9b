"""What an evaluation found: a row per image and class, the metrics made of the rows, and the files that hold both."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camtools.errors import InputError
from camtools.metrics.scoremap import THRESHOLDS as PROTOCOL_THRESHOLDS

LEVELS = 256
THRESHOLDS: NDArray[np.float64] = PROTOCOL_THRESHOLDS.numpy()
"""The protocol's thresholds: 0, 0.001 ... 0.999 of a map's maximum, (1000,)."""
LEVEL_OF: NDArray[np.int64] = (THRESHOLDS * (LEVELS - 1)).astype(np.int64)
"""The level that each threshold reads, int(255 tau), (1000,)."""
V2_IOUS = (0.3, 0.5, 0.7)

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Ranked:
    """Ranked detections of one pipeline in multi-label images: D of them, and M objects to be found.

    Attributes:
        image: Index in the data set of each detection's image, (D,) int64.
        label: Class of each detection, the model's index, (D,) int64.
        score: The classifier's score, (D,) float32.
        correct: Whether it is a true positive, (D,) bool; those that count for nothing are left out.
        true_image: Image of each object to be found, (M,) int64.
        true_label: Its class, (M,) int64.
    """

    image: Array
    label: Array
    score: Array
    correct: Array
    true_image: Array
    true_label: Array


@dataclass(frozen=True, eq=False)
class Rows:
    """What was measured: P pipelines on N rows, one row per image and class that is in it, in the data set's order.

    Attributes:
        index: Index of the image in the data set, (N,) int64: `dataset.record(index)` has image and truth.
        ids: The images' ids, N.
        labels: The model's index of the class, (N,) int64.
        names: Name of the class, N.
        sizes: (width, height) of the image, (N, 2) int64.
        truth: True boxes of the class, N arrays (n, 4) float32 x0, y0, x1, y1 in pixels of the image; n may be 0.
        rank: How many classes have a larger logit, (N,) int64: 0 where it is the likeliest; -1 without a classifier.
        score: The classifier's probability of the class, (N,) float32; NaN without a classifier.
        v1: IoU of the largest contour's box with the best true box at every level, (P, N, 256) float32; NaN in rows
            without a true box.
        v2: IoU of the best of all contours' boxes, likewise.
        own_iou: IoU of the first box at the pipeline's own threshold with the best true one, (P, N) float32; 0 without
            a box, NaN without a true one.
        own_threshold: That threshold as a fraction of the map's maximum, (P, N) float32; NaN where there is none.
        own_box: That box in pixels of the image, half-open, (P, N, 4) float32; NaN where there is none.
        pointing: 1 where the map's maximum lies in a true box with 18 pixels of tolerance, else 0, (P, N) float32; NaN
            without a true box.
        mask_iou: IoU of truth and mask at every level, (P, N, 256) float32; NaN without a mask in the row, None where
            the data set has no masks.
        own_mask_iou: IoU at the pipeline's own threshold, (P, N) float32; or None.
        on_objects: Pixels on the object in each of PxAP's 1,001 bins of scores, (P, N, 1001) uint16; or None.
        elsewhere: Pixels of the background in each bin, likewise.
    """

    index: Array
    ids: list[str]
    labels: Array
    names: list[str]
    sizes: Array
    truth: list[Array]
    rank: Array
    score: Array
    v1: Array
    v2: Array
    own_iou: Array
    own_threshold: Array
    own_box: Array
    pointing: Array
    mask_iou: Array | None = None
    own_mask_iou: Array | None = None
    on_objects: Array | None = None
    elsewhere: Array | None = None

    def __len__(self) -> int:
        return len(self.ids)


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


@dataclass(frozen=True, eq=False)
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
    timing: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics, in the order in which they are shown."""
        return tuple(next(iter(self.metrics.values()), {}))

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
        """Write results.json, rows.parquet (a row per image, class and pipeline) and detections.parquet.

        Each file is replaced as a whole; results.json comes last.

        Raises:
            InputError: The folder cannot be written.
        """
        from camtools.files import write_json

        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
            write_rows(self.rows, self.pipelines, place / "rows.parquet")
            if self.detections:
                write_detections(self.detections, place / "detections.parquet")
            write_json(self.to_dict(), place / "results.json")
        except OSError as error:
            raise InputError(f"results cannot be written to {place}: {error}. Name another folder") from error

    @classmethod
    def load(cls, folder: str | Path) -> EvaluationResult:
        """Read what `save` wrote.

        Raises:
            InputError: The folder holds no such files.
        """
        place = Path(folder)
        try:
            data = json.loads((place / "results.json").read_text(encoding="utf-8"))
            pipelines = tuple(data["metrics"])
            metrics = {name: {key: _value(found) for key, found in of.items()} for name, of in data["metrics"].items()}
            failed = [(entry["id"], entry["error"]) for entry in data["failed"]]
            rows = read_rows(place / "rows.parquet", pipelines)
            detections = read_detections(place / "detections.parquet")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{place} holds no results of an evaluation ({type(error).__name__}: {error}): expected a folder that "
                "camtools evaluate --out, or EvaluationResult.save, has written"
            ) from error
        return cls(pipelines, rows, metrics, failed, data["settings"], data["baseline"], detections)


def level_curve(rows: Rows, metric: str) -> Array:
    """Return a metric at every level, per cent, (P, 256) float64; see `EvaluationResult.curve`."""
    name, at, iou = metric.partition("@")
    if name == "MaxBoxAcc" and not at:
        return box_hits(rows.v1, (0.5,))
    if name == "MaxBoxAccV2" and (not at or iou in map(str, V2_IOUS)):
        wanted = (float(iou),) if at else V2_IOUS
        return box_hits(rows.v2, wanted)
    if name == "PeakIoU" and not at and rows.mask_iou is not None:
        known = ~np.isnan(rows.mask_iou[0, :, 0])
        return 100 * rows.mask_iou[:, known].astype(np.float64).mean(1)
    raise InputError(
        f"{metric!r} has no curve over thresholds here: expected MaxBoxAcc, MaxBoxAccV2, MaxBoxAccV2@0.3 (0.5, 0.7) "
        "or, of data with masks, PeakIoU"
    )


def box_hits(ious: Array, at: Sequence[float]) -> Array:
    """Return per cent of rows whose IoU reaches a value, the mean over several such, (P, 256) float64."""
    known = ious[:, ~np.isnan(ious[0, :, 0])]
    parts = [(known >= np.float32(one)).sum(1) for one in at]
    return np.mean([100 * part / max(known.shape[1], 1) for part in parts], axis=0)


def _value(found: dict[str, Any]) -> Value:
    names = {one.name for one in fields(Value)}
    known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items() if key in names}
    return Value(**known)


_LISTS = ("v1", "v2", "mask_iou", "on_objects", "elsewhere")  # a list in every row
_SINGLE = ("own_iou", "own_threshold", "pointing", "own_mask_iou")
_EDGES = ("x0", "y0", "x1", "y1")


def write_rows(rows: Rows, pipelines: tuple[str, ...], path: Path) -> None:
    """Write a row per image, class and pipeline; pipelines of one row lie together."""
    import pyarrow as pa

    count = len(pipelines)

    def each(values: Any) -> Any:
        return np.repeat(np.asarray(values), count, axis=0)

    columns: dict[str, Any] = {
        "index": each(rows.index),
        "id": pa.array([name for name in rows.ids for _ in pipelines], pa.string()),
        "pipeline": pa.array(list(pipelines) * len(rows), pa.string()),
        "label": each(rows.labels),
        "name": pa.array([name for name in rows.names for _ in pipelines], pa.string()),
        "width": each(rows.sizes[:, 0]),
        "height": each(rows.sizes[:, 1]),
        "rank": each(rows.rank),
        "score": each(rows.score),
        "truth": pa.array([box.reshape(-1).tolist() for box in rows.truth for _ in pipelines], pa.list_(pa.float32())),
    }
    for name in _SINGLE:
        values = getattr(rows, name)
        if values is not None:
            columns[name] = values.T.reshape(-1)
    for position, edge in enumerate(_EDGES):
        columns[f"own_{edge}"] = rows.own_box[..., position].T.reshape(-1)
    for name in _LISTS:
        values = getattr(rows, name)
        if values is not None:
            flat = np.ascontiguousarray(values.swapaxes(0, 1))
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), values.shape[-1])
    _write(pa.table(columns), path)


def read_rows(path: Path, pipelines: tuple[str, ...]) -> Rows:
    """Read what `write_rows` wrote."""
    import pyarrow.parquet as pq

    table, count = pq.read_table(path), len(pipelines)

    def single(name: str) -> Any:
        return table[name].to_numpy()[::count].copy()

    def paired(name: str) -> Any:
        return table[name].to_numpy().reshape(-1, count).T.copy()

    def lists(name: str) -> Any:
        flat = table[name].combine_chunks().flatten().to_numpy()
        width = table.schema.field(name).type.list_size
        return flat.reshape(-1, count, width).swapaxes(0, 1).copy()

    there = set(table.column_names)
    truth = table["truth"].to_pylist()[::count]
    return Rows(
        index=single("index"),
        ids=table["id"].to_pylist()[::count],
        labels=single("label"),
        names=table["name"].to_pylist()[::count],
        sizes=np.stack([single("width"), single("height")], 1),
        truth=[np.array(box, dtype=np.float32).reshape(-1, 4) for box in truth],
        rank=single("rank"),
        score=single("score"),
        own_box=np.stack([paired(f"own_{edge}") for edge in _EDGES], -1),
        **{name: paired(name) for name in _SINGLE if name in there},
        **{name: lists(name) for name in _LISTS if name in there},
    )


_COLUMNS = ("index", "label", "score", "correct", "true")


def write_detections(detections: dict[str, dict[str, Ranked]], path: Path) -> None:
    """Write ranked detections and, marked as such, the objects to be found."""
    import pyarrow as pa

    parts = []
    for pipeline, kinds in detections.items():
        for kind, found in kinds.items():
            many, true = len(found.image), len(found.true_image)
            parts.append(
                pa.table(
                    {
                        "pipeline": pa.array([pipeline] * (many + true), pa.string()),
                        "kind": pa.array([kind] * (many + true), pa.string()),
                        "index": np.concatenate([found.image, found.true_image]),
                        "label": np.concatenate([found.label, found.true_label]),
                        "score": np.concatenate([found.score, np.full(true, np.nan, dtype=np.float32)]),
                        "correct": np.concatenate([found.correct, np.zeros(true, dtype=bool)]),
                        "true": np.arange(many + true) >= many,
                    }
                )
            )
    _write(pa.concat_tables(parts), path)


def read_detections(path: Path) -> dict[str, dict[str, Ranked]]:
    """Read what `write_detections` wrote; nothing where there is no such file."""
    if not path.exists():
        return {}
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = {name: table[name].to_numpy() for name in _COLUMNS}
    groups = list(zip(table["pipeline"].to_pylist(), table["kind"].to_pylist(), strict=True))
    out: dict[str, dict[str, Ranked]] = {}
    for pipeline, kind in dict.fromkeys(groups):
        here = np.array([group == (pipeline, kind) for group in groups])
        found, true = here & ~columns["true"], here & columns["true"]
        index, label, score, correct = (columns[name] for name in ("index", "label", "score", "correct"))
        read = Ranked(index[found], label[found], score[found], correct[found], index[true], label[true])
        out.setdefault(pipeline, {})[kind] = read
    return out


def _write(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)
