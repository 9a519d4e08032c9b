"""The numbers of an evaluation as a table: for the terminal, and as Markdown for a page or a paper's draft."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from camtools.errors import InputError
from camtools.evaluation.results import EvaluationResult, Value

MARK = "*"
"""Stands at a delta whose 95 % interval leaves 0 out."""
_NONE = "–"
_FIRST = ("data", "calibration", "protocol", "model", "weights", "scoremaps", "bootstrap", "seed")
_LISTED = 10  # failed images that are named


class _Line(NamedTuple):
    """A pipeline's line in a metric's block, as text."""

    metric: str
    pipeline: str
    cells: list[str]
    significant: int
    """1 where the pipeline is better than the baseline, -1 where it is worse, 0 where that is open."""


def table(result: EvaluationResult, metrics: Sequence[str] | None = None) -> Table:
    """Return the table for a terminal: a block per metric, a line per pipeline.

    Columns are the value at the threshold best for this data, that threshold, the difference to the baseline with its
    95 % interval (from two pipelines on), and the value at the threshold chosen on calibration data (where there is
    one). Differences whose interval leaves 0 out have a star and a colour. The caption says what was measured.

    Args:
        result: Of an evaluation.
        metrics: Some of `result.metric_names`; None for all.

    Raises:
        InputError: There is no such metric.
    """
    headings, lines = _lines(result, metrics)
    grid = Table(caption=Text(_caption(result)), caption_justify="left")
    grid.add_column("Metric", no_wrap=True)
    grid.add_column("Pipeline", overflow="fold")
    for heading in headings:
        grid.add_column(Text(heading), justify="right")
    for number, line in enumerate(lines):
        place = number % len(result.pipelines)
        style = {1: "bold green", -1: "bold red", 0: ""}[line.significant]
        cells = [
            Text(cell, style if heading.startswith("Δ") else "")
            for heading, cell in zip(headings, line.cells, strict=True)
        ]
        metric = Text(line.metric if place == 0 else "")
        grid.add_row(metric, Text(line.pipeline), *cells, end_section=place == len(result.pipelines) - 1)
    return grid


def markdown(result: EvaluationResult, metrics: Sequence[str] | None = None) -> str:
    """Return the table of `table` in Markdown, every line with its metric, and below it the caption.

    Raises:
        InputError: There is no such metric.
    """
    headings, lines = _lines(result, metrics)
    rows = [["Metric", "Pipeline", *headings], *([line.metric, line.pipeline, *line.cells] for line in lines)]
    rows = [[_escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if k < 2 else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    aligned = [
        " | ".join(f"{cell:{'<' if k < 2 else '>'}{widths[k]}}" for k, cell in enumerate(row))
        for row in (rows[0], rule, *rows[1:])
    ]
    grid = "\n".join(f"| {row} |" for row in aligned)
    caption = _escaped(_caption(result), "").replace("\n", "  \n")  # two blanks break the line
    return f"{grid}\n\n{caption}\n"


def _lines(result: EvaluationResult, metrics: Sequence[str] | None) -> tuple[list[str], list[_Line]]:
    """Return the headings after metric and pipeline, and the lines."""
    names = result.metric_names if metrics is None else tuple(metrics)
    unknown = [name for name in names if name not in result.metric_names]
    if isinstance(metrics, str) or unknown or not names:
        known = ", ".join(result.metric_names) or "none"
        raise InputError(f"metrics={metrics!r}: expected some of those that the result has: {known}")
    blocks = [(name, pipeline, result.metrics[pipeline][name]) for name in names for pipeline in result.pipelines]
    values = [value for _, _, value in blocks]
    columns: dict[str, Callable[[Value], str]] = {
        "Value": lambda value: _number(value.value),
        "Threshold": lambda value: _thresholds(value.threshold),
    }
    if any(value.delta is not None for value in values):
        mark = {0: " ", 1: MARK, -1: MARK}
        columns[f"Δ to {result.baseline}"] = lambda value: _number(value.delta, signed=True) + mark[_significant(value)]
    if any(value.low is not None for value in values):
        columns["95 % interval"] = _interval
    if any(value.calibrated is not None for value in values):
        columns["Calibrated"] = lambda value: _number(value.calibrated)
        columns["Its threshold"] = lambda value: _thresholds(value.calibrated_threshold)
    return list(columns), [
        _Line(name, pipeline, [write(value) for write in columns.values()], _significant(value))
        for name, pipeline, value in blocks
    ]


def _significant(value: Value) -> int:
    if value.low is None or value.high is None:
        return 0
    return 1 if value.low > 0 else -1 if value.high < 0 else 0


def _number(value: float | None, *, signed: bool = False, exact: bool = False) -> str:
    """Write a number with one decimal (two if `exact`), a true minus sign, and no sign at a zero."""
    if value is None or value != value:
        return _NONE
    text = format(value, f"{'+' if signed else ''}.{2 if exact else 1}f")
    return text[1:] if text[0] in "+-" and float(text) == 0 else text.replace("-", "−")


def _interval(value: Value) -> str:
    if value.low is None or value.high is None or value.low != value.low:
        return _NONE
    near = _significant(value) != 0 and min(abs(value.low), abs(value.high)) < 0.05  # would be rounded to 0
    return f"{_number(value.low, signed=True, exact=near)} to {_number(value.high, signed=True, exact=near)}"


def _thresholds(threshold: float | tuple[float, ...] | None) -> str:
    parts = () if threshold is None else threshold if isinstance(threshold, tuple) else (threshold,)
    return " / ".join(f"{part:.3f}" for part in parts) or _NONE


def _caption(result: EvaluationResult) -> str:
    """Say what the numbers are, of which images, and how they were measured."""
    values = [value for of in result.metrics.values() for value in of.values()]
    rows, images = len(result.rows), len(set(result.rows.index.tolist()))
    counts = f"{images:,} image{'s' * (images != 1)}"
    counts += f" ({rows:,} with their classes)" if rows != images else ""
    lines = [f"Per cent; {counts}, {len(result.failed):,} failed{_failed(result.failed)}."]
    if any(value.threshold is not None for value in values):
        lines.append("Threshold: the best for this data, as a fraction of the map’s maximum.")
    if any(value.calibrated is not None for value in values):
        lines[-1] += " Calibrated: at the threshold best for the calibration data."
    if any(value.low is not None for value in values):
        mark = f"; {MARK} leaves 0 out" * any(_significant(value) for value in values)
        lines.append(f"95 % interval: paired bootstrap over images{mark}.")
    settings = "; ".join(_settings(result.settings))
    return "\n".join([*lines, f"Settings: {settings}."] if settings else lines)


def _failed(failed: Sequence[tuple[str, str]]) -> str:
    if not failed:
        return ""
    more = f" and {len(failed) - _LISTED:,} more" if len(failed) > _LISTED else ""
    return f" ({', '.join(name for name, _ in failed[:_LISTED])}{more})"


def _settings(settings: dict[str, Any]) -> Iterable[str]:
    """Write the settings that say what was measured; results.json has the others."""
    for key in _FIRST:
        value = settings.get(key)
        if isinstance(value, dict):
            value = value.get("data") or ", ".join(map(str, value))
        if value is not None:
            yield f"{key} {value}"


def _escaped(text: str, also: str = "|") -> str:
    """Keep Markdown from reading marks in names."""
    for mark in ("\\", "*", "_", "`", "<", *also):
        text = text.replace(mark, "\\" + mark)
    return text if "\n" not in text or not also else " ".join(text.split())
