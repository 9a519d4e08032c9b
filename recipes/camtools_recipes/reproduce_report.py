"""What the runs of `camtools reproduce scenes` show: a table with intervals, bars, and maps before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from camtools.evaluation.results import V2_IOUS, Array
from camtools.evaluation.statistics import Estimate, Measured, Statistic, image_weights, interval, replicate
from camtools.files import replacing, write_text
from camtools_recipes.reproduce import MULTI, READINGS, SINGLE, Budget, Run, Sets, trained

TABLE_FILE, CSV_FILE, BARS_FILE, SHEET_FILE = "table.md", "table.csv", "bars.png", "sheet.png"
SINGLE_METRICS, MULTI_METRICS = ("top-1", "MaxBoxAccV2", "PxAP"), ("top-1", "LocalizationMAP", "MaxBoxAccV2", "PxAP")
REPLICATES = 1000
_SHEET_SCENES = 4


@dataclass(frozen=True)
class Cell:
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
class Line:
    """One recipe and reading.

    Attributes:
        recipe: Its name.
        reading: The pipeline's name, or its steps, or "regressor".
        cells: By metric, differences to the baseline as its first line reads it.
        alike: By metric, differences to the baseline read as this line is; empty where the baseline is not, or is this.
    """

    recipe: str
    reading: str
    cells: dict[str, Cell]
    alike: dict[str, Cell] = field(default_factory=dict)


class _Share(Statistic):
    """The share of images for which something holds, or the mean of several such shares."""

    def __init__(self, parts: list[Array]) -> None:
        self.parts = [part.astype(np.float64) for part in parts]

    def __call__(self, weights: Array) -> Estimate:
        """Evaluate it."""
        rows = weights.astype(np.float64)
        found = np.mean([rows @ part for part in self.parts], axis=0) / rows.sum(1)
        return Estimate(100 * found, np.zeros((len(rows), 0), dtype=np.int64))


def lines(runs: Sequence[Run], replicates: int = REPLICATES) -> tuple[list[Line], list[Line]]:
    """Return the table's lines: of single-label recipes against `gap` read as CAM, of multi-label against `wildcat`.

    Intervals are of a paired bootstrap over images and seeds: a replicate draws images and seeds with replacement,
    the same for both, and each seed's model is compared with the baseline's of the same seed.

    Args:
        runs: From `run_all`.
        replicates: Of the bootstrap.
    """
    single = _lines([run for run in runs if run.recipe in SINGLE], "gap", "cam", SINGLE_METRICS, replicates)
    multi = _lines([run for run in runs if run.recipe in MULTI], "wildcat", "wildcat", MULTI_METRICS, replicates)
    return single, multi


def _lines(runs: list[Run], base: str, reading: str, metrics: Sequence[str], replicates: int) -> list[Line]:
    """Return the lines of one kind of scenes."""
    if not runs:
        return []
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    ours = {name: [run for run in runs if run.recipe == name] for name in recipes}
    images = len(_measured(runs[0]).images)
    weights = image_weights(images, replicates)
    drawn = image_weights(len(ours[base]), replicates, seed=1).astype(np.float64)
    found: list[Line] = []
    first = _words(ours[base][0], reading)
    baselines: dict[tuple[str, str], tuple[list[float], Array]] = {}  # by reading and metric

    def against(base_reading: str, metric: str, values: list[float], each: Array) -> Cell:
        theirs, others = baselines[base_reading, metric]
        differences = ((each - others) * drawn).sum(1) / drawn.sum(1)
        delta = float(np.mean(np.subtract(values, theirs)))
        return Cell(float(np.mean(values)), tuple(values), delta, *interval(differences))

    for name in [base, *(one for one in recipes if one != base)]:
        readings = [reading, *(one for one in _readings(name) if one != reading)] if name == base else _readings(name)
        for pipeline in readings:
            words = _words(ours[name][0], pipeline)
            cells: dict[str, Cell] = {}
            alike: dict[str, Cell] = {}
            for metric in metrics:
                statistics = [_statistic(run, metric, pipeline) for run in ours[name]]
                if any(one is None for one in statistics):
                    cells[metric] = Cell(None)
                    continue
                ones = np.ones((1, images), dtype=np.uint8)
                values = [float(one(ones).value[0]) for one in statistics if one is not None]
                each = np.stack([replicate(one, weights) for one in statistics if one is not None], axis=1)
                if name == base:
                    baselines[words, metric] = values, each
                elif (words, metric) in baselines and metric != "top-1":
                    alike[metric] = against(words, metric, values, each)
                if (name, pipeline) == (base, reading):
                    cells[metric] = Cell(float(np.mean(values)), tuple(values))
                else:
                    cells[metric] = against(first, metric, values, each)
            found.append(Line(name, words, cells, alike))
    return found


def _readings(recipe: str) -> tuple[str, ...]:
    if recipe == "gap":
        return READINGS
    return (recipe,) if recipe in ("cream_regressor", "minmaxcam") else (recipe, "cam")


def _words(run: Run, pipeline: str) -> str:
    """Say how maps are read, without what every pipeline has."""
    if run.ious is not None:
        return "its own boxes"
    if pipeline in READINGS:
        return pipeline
    kinds = {"tap": "rcam", "wgap": "adaptive", "minmaxcam": "cam", "cream": "cream", **dict.fromkeys(MULTI, "sigmoid")}
    return kinds.get(pipeline, pipeline)


def _measured(run: Run) -> Measured:
    return Measured(run.result.pipelines, run.result.rows, run.result.detections)


def _statistic(run: Run, metric: str, pipeline: str) -> Statistic | None:
    """Return a metric as a function of the images' weights; None where there is none."""
    measured = _measured(run)
    if metric == "top-1":
        images = measured.images
        least = np.full(len(images), np.iinfo(np.int64).max)
        np.minimum.at(least, np.searchsorted(images, run.result.rows.index), run.result.rows.rank)
        return _Share([least == 0])
    if run.ious is not None:
        return _Share([run.ious >= iou for iou in V2_IOUS]) if metric == "MaxBoxAccV2" else None
    return measured.statistic(metric, pipeline) if pipeline in measured.pipelines else None


def markdown(found: Sequence[Line]) -> str:
    """Return lines as a Markdown table."""
    if not found:
        return ""
    metrics = list(found[0].cells)
    alike = [metric for metric in metrics if any(metric in line.alike for line in found)]
    head = ["recipe", "read with", *metrics, *(f"{metric} to `{found[0].recipe}` read alike" for metric in alike)]
    rows = [
        [
            f"`{line.recipe}`",
            line.reading,
            *(_text(line.cells[metric]) for metric in metrics),
            *(_difference(line.alike.get(metric)) for metric in alike),
        ]
        for line in found
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _text(cell: Cell) -> str:
    if cell.value is None:
        return ""
    difference = _difference(cell)
    return f"{cell.value:.1f} ({difference})" if difference else f"{cell.value:.1f}"


def _difference(cell: Cell | None) -> str:
    if cell is None or cell.delta is None or cell.low is None or cell.high is None:
        return ""
    return f"{cell.delta:+.1f}, {cell.low:+.1f} to {cell.high:+.1f}"


def csv(found: Sequence[Line]) -> str:
    """Return lines as comma-separated values, a line a metric, with every seed's value."""
    rows = ["recipe,reading,metric,value,delta,low,high,seeds"]
    for line in found:
        for metric, cell in line.cells.items():
            numbers = [cell.value, cell.delta, cell.low, cell.high]
            texts = ["" if one is None else f"{one:.4f}" for one in numbers]
            seeds = " ".join(f"{one:.4f}" for one in cell.values)
            rows.append(",".join([line.recipe, line.reading, metric, *texts, seeds]))
    return "\n".join(rows) + "\n"


def write_report(folder: str | Path, runs: Sequence[Run], budget: Budget, *, device: str | None = None) -> list[Path]:
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
    paths = [place / name for name in (TABLE_FILE, CSV_FILE, BARS_FILE, SHEET_FILE)]
    write_text(paths[0], "\n".join(text for text in (markdown(single), markdown(multi)) if text))
    write_text(paths[1], csv([*single, *multi]))
    with replacing(paths[2]) as partial:
        bars(single, multi).save(partial)
    image = sheet(place, runs, budget, device)
    if image is None:
        return paths[:3]
    with replacing(paths[3]) as partial:
        image.save(partial)
    return paths


def bars(single: Sequence[Line], multi: Sequence[Line]) -> Any:
    """Draw the differences to the baseline with their intervals, a panel a metric.

    Returns:
        An RGB PIL image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    from camtools.evaluation.report.curve import COLOURS, DPI, INK, letters

    panels = [(found, metric) for found in (single, multi) if found for metric in found[0].cells if metric != "top-1"]
    figure = Figure(figsize=(4.6 * max(1, len(panels)), 4.2), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for number, (found, metric) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        base, shown = found[0], [line for line in found if line.cells[metric].delta is not None]
        for row, line in enumerate(reversed(shown)):
            cell = line.cells[metric]
            assert cell.delta is not None
            low, high = (cell.delta if end is None else end for end in (cell.low, cell.high))
            errors = [[max(0.0, cell.delta - low)], [max(0.0, high - cell.delta)]]
            axes.barh(row, cell.delta, color=COLOURS[1], height=0.62, xerr=errors, ecolor=INK, capsize=3)
        axes.axvline(0, color=INK, linewidth=1)
        names = [f"{line.recipe}: {line.reading}" for line in reversed(shown)]
        axes.set_yticks(range(len(shown)), names, fontproperties=letters(8))
        for label in axes.get_xticklabels():
            label.set_fontproperties(letters(8))
        words = f"{metric}, difference to {base.recipe}: {base.reading} ({base.cells[metric].value or 0:.1f} %)"
        axes.set_title(words, fontproperties=letters(8.5, bold=True))
    figure.tight_layout()
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def sheet(folder: Path, runs: Sequence[Run], budget: Budget, device: str | None = None) -> Any:
    """Draw a few test scenes with the first seed's maps: a row a scene, the start model first.

    Returns:
        An RGB PIL image; None without a single-label recipe.
    """
    from camtools.datasets.scenes import scene_classifier
    from camtools.explainer import Explainer
    from camtools.heads.box_regressor import BoxRegressor
    from camtools.plot import compare

    recipes = [name for name in dict.fromkeys(run.recipe for run in runs) if name in SINGLE]
    if not recipes:
        return None
    sets, seed = Sets(budget), runs[0].seed
    records = [sets.test[i] for i in range(min(_SHEET_SCENES, len(sets.test)))]
    images, labels = [record.image for record in records], [record.label for record in records]
    columns: list[tuple[str, Any]] = [("before: cam", Explainer(scene_classifier(), "cam"))]
    for name in recipes:
        found = trained(name, seed, folder / name / f"seed{seed}", budget, sets, device)
        regressor = found.model if isinstance(found.model, BoxRegressor) else None
        model = scene_classifier() if regressor is not None else found.model
        pipeline = "cam" if regressor is not None else found.pipeline
        columns.append((name, Explainer(model, pipeline, boxes_from=regressor)))
    explained: list[Any] = [explainer(images, target=labels) for _, explainer in columns]
    rows = [list(row) for row in zip(*explained, strict=True)]
    truth = [record.boxes for record in records]
    return compare(rows, titles=[title for title, _ in columns], truth=truth, height=150, image=True)
