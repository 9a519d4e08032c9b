"""What an evaluation measures: a row per image and class, and ranked detections; in memory and as Parquet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[Any]
Choose = Callable[[Array], Array]
"""From the index of every row's image to the rows' positions wanted."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """Ranked detections of one pipeline in multi-label images: D of them, and M objects to be found.

    Attributes:
        image: Index in the data set of each detection's image, (D,) int64.
        label: Class of each detection, the model's index, (D,) int64.
        score: The classifier's score, (D,) float32; of boxes times the map's maximum in the box's part.
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

    def pick(self, choose: Choose) -> Ranked:
        """Return some detections and objects, in an order chosen by the indices of their images."""
        ours, theirs = choose(self.image), choose(self.true_image)
        detected = (self.image[ours], self.label[ours], self.score[ours], self.correct[ours])
        return Ranked(*detected, self.true_image[theirs], self.true_label[theirs])


KINDS = ("boxes", "points")
Detections = Mapping[str, Mapping[str, Ranked]]
"""For each pipeline its ranked detections of both kinds; empty where the data is not multi-label."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What was measured: P pipelines on N rows, one row per image and class that is in it, in the data set's order.

    Columns that were not measured are None: `rank` and `score` without a classifier, those of the pipeline's own
    threshold for score maps from files, and those of masks where the data set has none.

    Attributes:
        index: Index of the image in the data set, (N,) int64: `dataset.record(index)` has image and truth.
        ids: The images' ids, N.
        labels: The model's index of the class, (N,) int64.
        names: Name of the class, N.
        sizes: (width, height) of the image, (N, 2) int64.
        truth: True boxes of the class, N arrays (n, 4) float32 x0, y0, x1, y1 in pixels of the image; n may be 0.
        v1: IoU of the largest contour's box with the best true box at every level, (P, N, 256) float32; NaN in rows
            without a true box.
        v2: IoU of the best of all contours' boxes, likewise.
        pointing: 1 where the map's maximum lies in a true box with 18 pixels of tolerance, else 0, (P, N) float32; NaN
            without a true box.
        rank: How many classes have a larger logit, (N,) int64: 0 where it is the likeliest.
        score: The classifier's probability of the class, (N,) float32.
        own_iou: IoU of the first box at the pipeline's own threshold with the best true one, (P, N) float32; 0 without
            a box, NaN without a true one.
        own_threshold: That threshold as a fraction of the map's maximum, (P, N) float32; NaN for a map of zeros.
        own_box: That box in pixels of the image, half-open, (P, N, 4) float32; NaN where the mask is empty.
        mask_iou: IoU of truth and mask at every level, (P, N, 256) float32; NaN without a mask in the row.
        own_mask_iou: IoU at the pipeline's own threshold, (P, N) float32; likewise.
        on_objects: Pixels on the object in each of PxAP's 1,001 bins of scores, (P, N, 1001) uint16.
        elsewhere: Pixels of the background in each bin, likewise.
    """

    index: Array
    ids: list[str]
    labels: Array
    names: list[str]
    sizes: Array
    truth: list[Array]
    v1: Array
    v2: Array
    pointing: Array
    rank: Array | None = None
    score: Array | None = None
    own_iou: Array | None = None
    own_threshold: Array | None = None
    own_box: Array | None = None
    mask_iou: Array | None = None
    own_mask_iou: Array | None = None
    on_objects: Array | None = None
    elsewhere: Array | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> dict[str, Any]:
        """Return what was measured, by attribute."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def pick(self, choose: Choose) -> Rows:
        """Return some rows, in an order chosen by the indices of their images."""
        chosen = choose(self.index)
        return Rows(**{name: _picked(name, value, chosen) for name, value in self.columns().items()})

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """Return rows of the same pipelines, one part after another."""
        first = parts[0]
        return Rows(**{name: _joined(name, [getattr(part, name) for part in parts]) for name in first.columns()})

    @staticmethod
    def stacked(parts: Sequence[Rows]) -> Rows:
        """Return the same rows of several pipelines, one part after another."""
        measured = [name for name in parts[0].columns() if name in _PAIRED]
        paired: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in measured}
        return replace(parts[0], **paired)


_LISTS = ("v1", "v2", "mask_iou", "on_objects", "elsewhere")  # a list in every row
_SINGLE = ("own_iou", "own_threshold", "pointing", "own_mask_iou")
_PAIRED = (*_LISTS, *_SINGLE, "own_box")  # per pipeline and row
_EDGES = ("x0", "y0", "x1", "y1")


def _picked(name: str, value: Any, chosen: Array) -> Any:
    if isinstance(value, list):
        return [value[position] for position in chosen]
    return value[:, chosen] if name in _PAIRED else value[chosen]


def _joined(name: str, parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    return np.concatenate(parts, axis=1 if name in _PAIRED else 0)


def join_detections(parts: Sequence[Detections], pipelines: Sequence[str]) -> dict[str, dict[str, Ranked]]:
    """Return the detections of several sets of images, one after another; a set may lack those that it has none of."""
    kinds = [kind for kind in KINDS if any(kind in part.get(name, {}) for part in parts for name in pipelines)]
    return {
        name: {kind: _join_ranked([part[name][kind] for part in parts if kind in part.get(name, {})]) for kind in kinds}
        for name in (pipelines if kinds else ())
    }


def _join_ranked(parts: Sequence[Ranked]) -> Ranked:
    return Ranked(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Ranked)))


def rows_table(rows: Rows, pipelines: Sequence[str]) -> pa.Table:
    """Return a table with a row per image, class and pipeline; pipelines of one row lie together."""
    import pyarrow as pa

    count = len(pipelines)
    known = rows.columns()
    columns: dict[str, Any] = {
        "index": np.repeat(rows.index, count),
        "id": pa.array([name for name in rows.ids for _ in pipelines], pa.string()),
        "pipeline": pa.array(list(pipelines) * len(rows), pa.string()),
        "label": np.repeat(rows.labels, count),
        "name": pa.array([name for name in rows.names for _ in pipelines], pa.string()),
        "width": np.repeat(rows.sizes[:, 0], count),
        "height": np.repeat(rows.sizes[:, 1], count),
        **{name: np.repeat(known[name], count) for name in ("rank", "score") if name in known},
        "truth": pa.array([box.reshape(-1).tolist() for box in rows.truth for _ in pipelines], pa.list_(pa.float32())),
        **{name: known[name].T.reshape(-1) for name in _SINGLE if name in known},
    }
    if rows.own_box is not None:
        columns |= {f"own_{edge}": rows.own_box[..., i].T.reshape(-1) for i, edge in enumerate(_EDGES)}
    for name in _LISTS:
        if name in known:
            flat = pa.array(np.ascontiguousarray(known[name].swapaxes(0, 1)).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, known[name].shape[-1])
    return pa.table(columns)


def table_rows(table: pa.Table) -> Rows:
    """Return the rows of a table that `rows_table` made."""
    count = len(set(table["pipeline"].to_pylist()))
    there = set(table.column_names)

    def single(name: str) -> Any:
        return table[name].to_numpy()[::count].copy()

    def paired(name: str) -> Any:
        return table[name].to_numpy().reshape(-1, count).T.copy()

    def lists(name: str) -> Any:
        flat = table[name].combine_chunks().flatten().to_numpy()
        return flat.reshape(-1, count, table.schema.field(name).type.list_size).swapaxes(0, 1).copy()

    own_box = np.stack([paired(f"own_{edge}") for edge in _EDGES], -1) if "own_x0" in there else None
    return Rows(
        index=single("index"),
        ids=table["id"].to_pylist()[::count],
        labels=single("label"),
        names=table["name"].to_pylist()[::count],
        sizes=np.stack([single("width"), single("height")], 1),
        truth=[np.array(box, dtype=np.float32).reshape(-1, 4) for box in table["truth"].to_pylist()[::count]],
        own_box=own_box,
        **{name: single(name) for name in ("rank", "score") if name in there},
        **{name: paired(name) for name in _SINGLE if name in there},
        **{name: lists(name) for name in _LISTS if name in there},
    )


def detections_table(detections: Detections) -> pa.Table:
    """Return a table of ranked detections and, marked as such, the objects to be found."""
    import pyarrow as pa

    parts = []
    for pipeline, kinds in detections.items():
        for kind, ranked in kinds.items():
            detected, true = len(ranked.image), len(ranked.true_image)
            columns = {
                "pipeline": pa.repeat(pipeline, detected + true),
                "kind": pa.repeat(kind, detected + true),
                "index": np.concatenate([ranked.image, ranked.true_image]),
                "label": np.concatenate([ranked.label, ranked.true_label]),
                "score": np.concatenate([ranked.score, np.full(true, np.nan, dtype=np.float32)]),
                "correct": np.concatenate([ranked.correct, np.zeros(true, dtype=bool)]),
                "true": np.arange(detected + true) >= detected,
            }
            parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def table_detections(table: pa.Table) -> dict[str, dict[str, Ranked]]:
    """Return the detections of a table that `detections_table` made."""
    index, label, score, correct, true = (
        table[name].to_numpy() for name in ("index", "label", "score", "correct", "true")
    )
    groups = np.array([table["pipeline"].to_pylist(), table["kind"].to_pylist()], dtype=object)
    detections: dict[str, dict[str, Ranked]] = {}
    for pipeline, kind in dict.fromkeys(zip(*groups, strict=True)):
        here = (groups[0] == pipeline) & (groups[1] == kind)
        ours, theirs = here & ~true, here & true
        ranked = Ranked(index[ours], label[ours], score[ours], correct[ours], index[theirs], label[theirs])
        detections.setdefault(pipeline, {})[kind] = ranked
    return detections
