"""Rows on disk: Parquet for them, JSON for the rest, each file replaced as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from camtools.evaluation.results import Ranked, Rows

_LISTS = ("v1", "v2", "mask_iou", "on_objects", "elsewhere")  # a list in every row
_SINGLE = ("own_iou", "own_threshold", "pointing", "own_mask_iou")
_EDGES = ("x0", "y0", "x1", "y1")


def write_json(data: Any, path: Path) -> None:
    """Write a JSON file all or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def write_rows(rows: Rows, pipelines: tuple[str, ...], path: Path) -> None:
    """Write a row a picture, class and pipeline; pipelines of one row lie together."""
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
            many, true = len(found.picture), len(found.true_picture)
            parts.append(
                pa.table(
                    {
                        "pipeline": pa.array([pipeline] * (many + true), pa.string()),
                        "kind": pa.array([kind] * (many + true), pa.string()),
                        "index": np.concatenate([found.picture, found.true_picture]),
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
