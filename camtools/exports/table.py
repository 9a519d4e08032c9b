"""Results as rows of a table: Parquet, and pandas or Arrow in memory. A row per image and class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from camtools.checks import one_of
from camtools.explanation import Explanation
from camtools.exports.item import ImageExport, Result, Writer
from camtools.files import replacing
from camtools.regions import extra

_GROUP = 4096  # rows that are written together


def results_frame(results: Iterable[Any], to: Literal["pandas", "arrow"] = "pandas") -> Any:
    """Return results as a table with a row per image and class.

    Columns: file (the image's path; empty where it did not come from a file), height, width, label, name, score, x0,
    y0, x1, y1 (the first box, half-open, in pixels; empty where there is none), boxes, box_scores, pixels (of the
    mask), threshold, exact, layer and pipeline.

    Args:
        results: Explanations or segmentations, or lists of them as `explain` returns; a generator is read once.
        to: "pandas" for a `DataFrame`, "arrow" for a `pyarrow.Table`.

    Raises:
        InputError: `to` is neither, or pandas is not installed.
    """
    one_of("to", to, ("pandas", "arrow"))
    if to == "pandas":
        extra("pandas", "export")
    import pyarrow as pa

    rows = [row for result in _flat(results) for row in _rows(result, result.source)]
    table = pa.Table.from_pylist(rows, schema=_schema())
    return table.to_pandas() if to == "pandas" else table


def parquet(path: Path, class_names: Sequence[str] | None) -> Writer:
    """Write a Parquet file with the rows of `results_frame`; `file` is relative to the root."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = _schema()
    rows: list[dict[str, Any]] = []
    with replacing(path) as partial, ParquetWriter(partial, schema) as writer:
        while (item := (yield)) is not None:
            rows += _item_rows(item)
            if len(rows) >= _GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _item_rows(item: ImageExport) -> list[dict[str, Any]]:
    return [row for result in item.results for row in _rows(result, item.file)]


def _rows(result: Result, file: str | None) -> Iterator[dict[str, Any]]:
    thresholds = (result.threshold,) if isinstance(result, Explanation) else result.backgrounds
    height, width = result.size
    about = {"file": file, "height": height, "width": width}
    made = {"exact": result.exact, "layer": result.layer, "pipeline": result.pipeline}
    for region, threshold in zip(result.regions, thresholds, strict=True):
        boxes = region.boxes.tolist()
        first = dict(zip(("x0", "y0", "x1", "y1"), boxes[0] if boxes else [None] * 4, strict=True))
        named = {"label": region.label, "name": region.name, "score": region.score}
        mask = {"boxes": boxes, "box_scores": region.box_scores, "pixels": int(region.mask.sum())}
        yield about | named | first | mask | {"threshold": threshold} | made


def _flat(results: Any) -> Iterator[Result]:
    if hasattr(results, "regions"):
        yield results
        return
    for result in results:
        yield from _flat(result)


def _schema() -> Any:
    import pyarrow as pa

    corner = [(name, pa.int32()) for name in ("x0", "y0", "x1", "y1")]
    return pa.schema(
        [
            ("file", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("label", pa.int32()),
            ("name", pa.string()),
            ("score", pa.float32()),
            *corner,
            ("boxes", pa.list_(pa.list_(pa.int32(), 4))),
            ("box_scores", pa.list_(pa.float32())),
            ("pixels", pa.int64()),
            ("threshold", pa.float32()),
            ("exact", pa.bool_()),
            ("layer", pa.string()),
            ("pipeline", pa.string()),
        ]
    )
