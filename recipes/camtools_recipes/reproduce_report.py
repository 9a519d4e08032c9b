"""What the runs of `camtools reproduce scenes` show: a table with intervals, bars, and maps before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from camtools.datasets.record import Record
from camtools.datasets.scenes.network import scene_classifier
from camtools.evaluation.bootstrap import image_weights, interval
from camtools.evaluation.report.curve import COLOURS, INK, STYLE
from camtools.evaluation.results import V2_IOUS
from camtools.evaluation.rows import Array
from camtools.evaluation.statistics import Measured, Statistic, mean_of, replicate
from camtools.explainer import Explainer
from camtools.files import replacing, write_text
from camtools.heads.box_regressor import BoxRegressor
from camtools.plot import compare
from camtools.training.validation import top1_hits
from camtools_recipes.reproduce import MULTI, READINGS, SINGLE, Budget, RecipeRun, scene_sets, trained

TABLE_FILE, CSV_FILE, BARS_FILE, SHEET_FILE = "table.md", "table.csv", "bars.png", "sheet.png"
SINGLE_METRICS, MULTI_METRICS = ("top-1", "MaxBoxAccV2", "PxAP"), ("top-1", "LocalizationMAP", "MaxBoxAccV2", "PxAP")
REPLICATES = 1000
_SHEET_SCENES = 4


@dataclass(frozen=True)
class ReportCell:
    """One metric of one recipe, per cent.

    Attributes:
        value: Mean over seeds; None where there is no such metric (a regressor has no map).
        values: Of every seed.
        delta: Mean difference to the baseline of the same seed; None for the baseline itself.
        low: Lower end of its 95 % interval.
        high: Its upper end.
    """

    value: float | None
    values: tuple[float, ...] = ()
    delta: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ReportLine:
    """One recipe and reading.

    Attributes:
        recipe: Its name.
        reading: The pipeline's name, or its steps, or "regressor".
        cells: By metric, differences to the baseline as its first line reads it.
        alike: By metric, differences to the baseline read as this line is; empty where the baseline is not, or is this.
    """

    recipe: str
    reading: str
    cells: dict[str, ReportCell]
    alike: dict[str, ReportCell] = field(default_factory=dict)


class _Estimate(NamedTuple):
    """A metric of every seed: (seeds,), and under every replicate's images, (R, seeds)."""

    values: tuple[float, ...]
    replicates: Array


def lines(runs: Sequence[RecipeRun], replicates: int = REPLICATES) -> tuple[list[ReportLine], list[ReportLine]]:
    """Return the table's lines: of single-label recipes against `gap` read as CAM, of multi-label against `wildcat`.

    Intervals are of a paired bootstrap over images and seeds: a replicate draws images and seeds with replacement,
    the same for both, and each seed's model is compared with the baseline's of the same seed.

    Args:
        runs: From `run_all`.
        replicates: Of the bootstrap.
    """
    found = []
    for names, base, first, metrics in (
        (SINGLE, "gap", "cam", SINGLE_METRICS),
        (MULTI, "wildcat", "wildcat", MULTI_METRICS),
    ):
        own = [run for run in runs if run.recipe in names]
        readings = {run.recipe: _readings(run.recipe) for run in own}
        found.append(report_lines(own, base, first, metrics, readings, replicates))
    return found[0], found[1]


def report_lines(
    runs: Sequence[RecipeRun],
    base: str,
    first: str,
    metrics: Sequence[str],
    readings: Mapping[str, Sequence[str]],
    replicates: int = REPLICATES,
) -> list[ReportLine]:
    """Return the lines of runs on the same images.

    Args:
        runs: Of each recipe as many seeds; of those with fewer than the baseline, its own seeds are compared.
        base: The recipe that differences are to, as `first` reads its maps.
        first: The name of a pipeline.
        metrics: Of `camtools.evaluate`, and "top-1".
        readings: The pipelines' names of every recipe.
        replicates: Of the bootstrap over images and seeds.
    """
    if not any(run.recipe == base for run in runs):
        return []
    names = [base, *(name for name in dict.fromkeys(run.recipe for run in runs) if name != base)]
    seeds = {name: [run for run in runs if run.recipe == name] for name in names}
    weights = image_weights(len(_measured(runs[0]).images), replicates)
    readings = {**readings, base: tuple(dict.fromkeys([first, *readings[base]]))}
    baselines: dict[str, dict[str, _Estimate | None]] = {}
    report: list[ReportLine] = []
    for name, reading in [(recipe, reading) for recipe in names for reading in readings[recipe]]:
        label = _label(seeds[name][0], reading)
        own = {metric: _estimate(seeds[name], metric, reading, weights) for metric in metrics}
        theirs = {} if name == base else baselines.get(label, {})
        if name == base:
            baselines[label] = own
        main = next(iter(baselines.values()))
        cells = {metric: _cell(own[metric], None if main is own else main[metric]) for metric in metrics}
        both = [metric for metric in metrics if metric != "top-1" and own[metric] and theirs.get(metric)]
        alike = {metric: _cell(own[metric], theirs[metric]) for metric in both}
        report.append(ReportLine(name, label, cells, alike))
    return report


def _estimate(runs: list[RecipeRun], metric: str, pipeline: str, weights: Array) -> _Estimate | None:
    """Return a metric of every seed; None where there is none."""
    statistics = [statistic for run in runs if (statistic := _statistic(run, metric, pipeline))]
    if len(statistics) < len(runs):
        return None
    ones = np.ones((1, weights.shape[1]), dtype=np.uint8)
    values = tuple(float(statistic(ones).value[0]) for statistic in statistics)
    return _Estimate(values, np.stack([replicate(statistic, weights) for statistic in statistics], axis=1))


def _cell(own: _Estimate | None, base: _Estimate | None) -> ReportCell:
    """Return a metric with its difference to the baseline's, of the same seeds."""
    if own is None:
        return ReportCell(None)
    value = float(np.mean(own.values))
    if base is None:
        return ReportCell(value, own.values)
    count = len(own.values)
    drawn = image_weights(count, len(own.replicates), seed=1).astype(np.float64)  # how often each has each seed
    differences = ((own.replicates - base.replicates[:, :count]) * drawn).sum(1) / drawn.sum(1)
    delta = float(np.mean(np.subtract(own.values, base.values[:count])))
    return ReportCell(value, own.values, delta, *interval(differences))


def _readings(recipe: str) -> tuple[str, ...]:
    if recipe == "gap":
        return READINGS
    return (recipe,) if recipe in ("cream_regressor", "minmaxcam") else (recipe, "cam")


def _label(run: RecipeRun, pipeline: str) -> str:
    """Return how maps are read, without what every pipeline has."""
    if run.ious is not None:
        return "its own boxes"
    labels = {"tap": "rcam", "wgap": "adaptive", "minmaxcam": "cam", **dict.fromkeys(MULTI, "sigmoid")}
    return labels.get(pipeline, pipeline)


def _measured(run: RecipeRun) -> Measured:
    return Measured(run.result.pipelines, run.result.rows, run.result.detections)


def _statistic(run: RecipeRun, metric: str, pipeline: str) -> Statistic | None:
    """Return a metric as a function of the images' weights; None where there is none."""
    measured = _measured(run)
    everyone = np.arange(len(measured.images))
    if metric == "top-1":
        return mean_of([top1_hits(run.result.rows, measured.images)], everyone)
    if run.ious is not None:
        at = {"MaxBoxAccV2": V2_IOUS, "MaxBoxAcc": (0.5,)}.get(metric)
        return None if at is None else mean_of([run.ious >= iou for iou in at], everyone)
    return measured.statistic(metric, pipeline) if pipeline in measured.pipelines else None


def markdown(lines: Sequence[ReportLine]) -> str:
    """Return lines as a Markdown table."""
    if not lines:
        return ""
    metrics = list(lines[0].cells)
    alike = [metric for metric in metrics if any(metric in line.alike for line in lines)]
    head = ["recipe", "read with", *metrics, *(f"{metric} to `{lines[0].recipe}` read alike" for metric in alike)]
    rows = [
        [
            f"`{line.recipe}`",
            line.reading,
            *(_text(line.cells[metric]) for metric in metrics),
            *(_difference(line.alike.get(metric)) for metric in alike),
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _text(cell: ReportCell) -> str:
    if cell.value is None:
        return ""
    difference = _difference(cell)
    return f"{cell.value:.1f} ({difference})" if difference else f"{cell.value:.1f}"


def _difference(cell: ReportCell | None) -> str:
    if cell is None or cell.delta is None or cell.low is None or cell.high is None:
        return ""
    return f"{cell.delta:+.1f}, {cell.low:+.1f} to {cell.high:+.1f}"


def csv(lines: Sequence[ReportLine]) -> str:
    """Return lines as comma-separated values, one row per recipe, reading and metric, with every seed's value."""
    rows = ["recipe,reading,metric,value,delta,low,high,seeds"]
    for line in lines:
        for metric, cell in line.cells.items():
            numbers = [cell.value, cell.delta, cell.low, cell.high]
            texts = ["" if number is None else f"{number:.4f}" for number in numbers]
            seeds = " ".join(f"{value:.4f}" for value in cell.values)
            rows.append(",".join([line.recipe, line.reading, metric, *texts, seeds]))
    return "\n".join(rows) + "\n"


def write_report(
    folder: str | Path, runs: Sequence[RecipeRun], budget: Budget, *, device: str | None = None
) -> list[Path]:
    """Write the table (Markdown and CSV), the bars, and the sheet of maps.

    Args:
        folder: That of the runs.
        runs: From `run_all`.
        budget: Theirs.
        device: Where the sheet's models run.

    Returns:
        The files.

    Raises:
        InputError: One cannot be written.
    """
    place = Path(folder)
    single, multi = lines(runs)
    write_text(place / TABLE_FILE, "\n".join(text for text in (markdown(single), markdown(multi)) if text))
    write_text(place / CSV_FILE, csv([*single, *multi]))
    names = [TABLE_FILE, CSV_FILE]
    for name, image in ((BARS_FILE, bars(single, multi)), (SHEET_FILE, sheet(place, runs, budget, device))):
        if image is not None:
            with replacing(place / name) as partial:
                image.save(partial)
            names.append(name)
    return [place / name for name in names]


def bars(single: Sequence[ReportLine], multi: Sequence[ReportLine]) -> Image.Image:
    """Draw the differences to the baseline with their intervals: one panel per metric, in RGB."""
    panels = [(group, metric) for group in (single, multi) if group for metric in group[0].cells if metric != "top-1"]
    with style.context(("default", STYLE | {"axes.grid.axis": "x"})):
        rows = max([len(group) for group in (single, multi)])
        canvas = FigureCanvasAgg(
            Figure(figsize=(4.6 * max(1, len(panels)), max(4.2, 0.24 * rows)), layout="constrained")
        )
        for number, (group, metric) in enumerate(panels):
            axes = canvas.figure.add_subplot(1, len(panels), number + 1)
            shown = [line for line in reversed(group) if line.cells[metric].delta is not None]
            deltas = np.array([line.cells[metric].delta for line in shown], dtype=float)
            ends = [(line.cells[metric].low, line.cells[metric].high) for line in shown]
            low, high = np.array(ends, dtype=float).reshape(-1, 2).T
            errors = np.nan_to_num(np.maximum([deltas - low, high - deltas], 0))
            axes.barh(range(len(shown)), deltas, 0.62, xerr=errors, color=COLOURS[1], ecolor=INK, capsize=3)
            axes.axvline(0, color=INK, linewidth=1)
            axes.set_yticks(range(len(shown)), [f"{line.recipe}: {line.reading}" for line in shown])
            base = group[0]
            axes.set_title(
                f"{metric}, difference to\n{base.recipe}: {base.reading} ({base.cells[metric].value or 0:.1f} %)"
            )
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def sheet(folder: Path, runs: Sequence[RecipeRun], budget: Budget, device: str | None = None) -> Image.Image | None:
    """Draw a few test scenes with the first seed's maps: one row per scene, the start model first.

    Returns:
        RGB; None without a single-label recipe.
    """
    recipes = [name for name in dict.fromkeys(run.recipe for run in runs) if name in SINGLE]
    if not recipes:
        return None
    (train, test), seed = scene_sets(budget, multi=False), runs[0].seed
    records = [test[i] for i in range(min(_SHEET_SCENES, len(test)))]
    labels = [record.label for record in records]
    columns: list[tuple[str, Any]] = [("before: cam", Explainer(scene_classifier(), "cam"))]
    for name in recipes:
        result = trained(name, seed, folder / name / f"seed{seed}", budget, train, device)
        if isinstance(result.model, BoxRegressor):
            columns.append((name, Explainer(scene_classifier(), "cam", boxes_from=result.model)))
        else:
            columns.append((name, Explainer(result.model, result.pipeline)))
    return sheet_of(columns, records, labels)


def sheet_of(columns: Sequence[tuple[str, Explainer]], records: Sequence[Record], labels: Sequence[int]) -> Image.Image:
    """Draw images in rows, one column per model, with the true boxes.

    Args:
        columns: Title and model of each.
        records: The images.
        labels: Their classes, in the models' indices.
    """
    images = [record.image for record in records]
    explained: list[Any] = [explainer(images, target=list(labels)) for _, explainer in columns]
    rows = [list(row) for row in zip(*explained, strict=True)]
    truth = [record.boxes for record in records]
    return compare(rows, titles=[title for title, _ in columns], truth=truth, height=150, image=True)
