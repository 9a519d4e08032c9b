"""The papers' table on birds: every method from one start, on what a frozen part gives, read by every preset."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Subset

from camtools.datasets.base import ListedDataset
from camtools.datasets.record import Record
from camtools.datasets.spec import open_dataset
from camtools.errors import InputError
from camtools.evaluation.evaluator import evaluate
from camtools.explainer import Explainer
from camtools.files import parse_json, replacing, write_json, write_text
from camtools.heads.box_regressor import BoxRegressor
from camtools.heads.saved import load_headed
from camtools.pipeline.pipeline import Pipeline
from camtools.steps.centre import Centre
from camtools.steps.cream import CREAM
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.minmax import MinMax
from camtools.training.checkpoint import BEST_FILE
from camtools.training.finetuner import finetune
from camtools.training.result import FinetuneResult
from camtools_recipes.reproduce import PLAN_FILE, RecipeRun, save_ious
from camtools_recipes.reproduce_report import (
    BARS_FILE,
    CSV_FILE,
    SHEET_FILE,
    TABLE_FILE,
    bars,
    csv,
    markdown,
    report_lines,
    sheet_of,
)

BASE = "gap"
_SHEET_IMAGES = 4
METRICS = ("top-1", "MaxBoxAccV2", "MaxBoxAcc")
READINGS: dict[str, Any] = {name: name for name in ("cam", "rcam", "adaptive", "fast", "best")}
_FLIPPED = ("crop", "flip")
_MEAN = {"lr": 5e-2}  # a mean of sparse maps gives small gradients; chosen by the loss of the first two epochs
_AS_IT_IS = {"cut_after": None, "conv": None}  # the baseline's network is cut already
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gap": ("cream", _MEAN),  # the same weights, and a bank
    "tap": ("tap", {}),
    "wgap": ("wgap", {"lr": 1e-3}),
    "adl": ("adl", _MEAN),
    "has": ("gap", {**_MEAN, "augment": (*_FLIPPED, "has"), "has_cell": 32}),
    "cutmix": ("gap", {**_MEAN, "augment": (*_FLIPPED, "cutmix")}),
    "bas": ("bas", {}),
    "minmaxcam": ("minmaxcam", {"cache": None, "crr": 10.0, "frr": 10.0}),
    "i2c": ("i2c", _MEAN),
    "acol": ("acol", {"conv": 128}),  # of several convolutions, which cost what one of 1,024 does
    "spg": ("spg", {"conv": 128, "optimizer": "adamw", "lr": 1e-4}),  # SGD does not start five fresh convolutions
    "psol": (
        "cream_regressor",
        {"maps": "ddt", "teacher_size": 448, "hidden": 512, "form": "xywh", "augment": _FLIPPED},
    ),
    "cream_regressor": ("cream_regressor", {"augment": _FLIPPED, **_AS_IT_IS}),
    "regressor of best": ("cream_regressor", {"maps": "best", "augment": _FLIPPED, **_AS_IT_IS}),
    "decoder": ("decoder", {"epochs": 1, "lr": 6e-3, "stages": 2, "freeze": None, **_AS_IT_IS}),
}
"""The table's rows, in order of running: a recipe and its settings where they are not those of all."""
TAUGHT = ("cream_regressor", "regressor of best", "decoder")
"""Rows that learn from the baseline's maps, and begin with its network."""


@dataclass(frozen=True)
class CubBudget:
    """How much of everything, and the network.

    Attributes:
        classes: How many of the 200, spread over the list.
        every: Every n-th test image.
        epochs: Passes over the training images.
        seeds: Runs per row.
        model: Name of the classifier to begin with.
        cut_after: Where it ends, and what is frozen; at stride 16, so that maps are 14 x 14 of 224 pixels.
        conv: Channels of the fresh convolution.
        views: Augmented versions of each image.
    """

    classes: int = 200
    every: int = 1
    epochs: int = 24
    seeds: int = 3
    model: str = "torchvision/mobilenet_v2"
    cut_after: str = "features.13"
    conv: int = 1024
    views: int = 4

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all rows share: everything that is trained is fresh, at 10 times the rate."""
        own = {"epochs": self.epochs, "conv": self.conv, "views": self.views, "lr": 5e-3, "examples": 0}
        return own | {"cut_after": self.cut_after, "freeze": self.cut_after, "protocol": "wsol"}


class Few(ListedDataset):
    """Some classes of a data set, with indices of their own.

    Args:
        data: All of it.
        names: Of the classes; those that it lacks have no image.
    """

    def __init__(self, data: ListedDataset, names: Sequence[str]) -> None:
        self.index = {label: names.index(name) for label, name in enumerate(data.classes) if name in names}
        self.data, self.own = data, [i for i in range(len(data)) if data.labels_of(i)[0] in self.index]
        super().__init__((data.ids[i] for i in self.own), names, None, "record")

    def labels_of(self, index: int) -> list[int]:
        """Return an image's class."""
        return [self.index[self.data.labels_of(self.own[index])[0]]]

    def record(self, index: int) -> Record:
        """Return an image with its box and its class here."""
        record = self.data.record(self.own[index])
        return replace(record, labels=record.labels.new_tensor([self.index[int(label)] for label in record.labels]))


def cub_sets(root: str | Path, budget: CubBudget) -> tuple[Few, Any]:
    """Return the training and test images.

    Args:
        root: Of CUB-200-2011 as it is published; or a folder with train/ and test/, and train.csv and test.csv as
            `BoxFolder` reads them.
        budget: Says how many classes and images.

    Raises:
        InputError: It is neither.
    """
    listed = Path(root, "train.csv").exists()
    specs = [f"boxfolder:{root}/{split}" if listed else f"cub:{root}?split={split}" for split in ("train", "test")]
    train, test = map(open_dataset, specs)
    names = train.classes[:: max(1, len(train.classes) // budget.classes)][: budget.classes]
    few = Few(test, names)  # type: ignore[arg-type]
    return Few(train, names), Subset(few, range(0, len(few), budget.every))  # type: ignore[arg-type]


def run_cub(
    folder: str | Path,
    root: str | Path,
    budget: CubBudget,
    rows: Sequence[str] | None = None,
    *,
    weights: str | Path | None = None,
    minutes: float | None = None,
    device: str | None = None,
) -> list[RecipeRun]:
    """Run what is not done yet; a run that was killed goes on where it was.

    Args:
        folder: Of all runs, each in ROW/seedN, and of the frozen features.
        root: Of the data, see `cub_sets`.
        budget: How much of everything.
        rows: Some of `ROWS`; None for all.
        weights: Checkpoint of the classifier; None for the published one.
        minutes: No further run is begun after so many; None for all.
        device: Where to train: "cpu", or None for a GPU where there is one.

    Returns:
        The runs that are done, in the order of `ROWS`.

    Raises:
        InputError: A row is unknown, or the folder holds runs of another budget.
    """
    unknown = [name for name in rows or () if name not in ROWS]
    if unknown:
        raise InputError(f"rows={list(rows or ())!r}: expected some of {', '.join(ROWS)}")
    wanted = [name for name in ROWS if rows is None or name in rows or name == BASE]
    place, start, runs = Path(folder), time.perf_counter(), []
    check_cub_plan(place, budget)
    train, test = cub_sets(root, budget)
    for seed in range(budget.seeds):
        for name in wanted:
            own, spent = place / name / f"seed{seed}", (time.perf_counter() - start) / 60
            if not (own / "test" / "results.json").exists():
                if minutes is not None and spent >= minutes:
                    continue
                print(f"[{spent:.0f} min] {name}, seed {seed}", file=sys.stderr, flush=True)
                _run(name, seed, own, budget, train, test, weights, device)
            runs.append(RecipeRun.load(name, seed, own))
    return sorted(runs, key=lambda run: (wanted.index(run.recipe), run.seed))


def trained(
    name: str,
    seed: int,
    folder: Path,
    budget: CubBudget,
    train: Few,
    weights: str | Path | None = None,
    device: str | None = None,
) -> FinetuneResult:
    """Return a row's run, from its checkpoint as far as that goes.

    Args:
        name: The row's.
        seed: Of the training.
        folder: Of the run.
        budget: How much of everything.
        train: Training images.
        weights: Of the network to begin with.
        device: Where to train.
    """
    recipe, own = ROWS[name]
    settings = {"cache": str(folder.parents[1] / "frozen"), **budget.settings, **own}
    start: dict[str, Any] = {"model": budget.model, "weights": weights}
    if name in TAUGHT:
        start = {"model": load_headed(_base(folder))}
    return finetune(
        recipe, train_set=train, out=folder, resume=True, device=device, progress=False, seed=seed, **start, **settings
    )


def _base(folder: Path) -> Path:
    """Return the file of the baseline with the same seed."""
    return folder.parents[1] / BASE / folder.name / BEST_FILE


def _run(
    name: str,
    seed: int,
    folder: Path,
    budget: CubBudget,
    train: Few,
    test: Any,
    weights: str | Path | None,
    device: str | None,
) -> None:
    """Train and evaluate; the evaluation's results.json is written last, so where it is all is done."""
    result = trained(name, seed, folder, budget, train, weights, device)
    model, pipelines = result.model, readings(name, result.pipeline)
    if isinstance(model, BoxRegressor):
        save_ious(folder, model, test)
        model, pipelines = load_headed(_base(folder)), {"cam": "cam"}  # whose classes go with the boxes
    evaluation = evaluate(model, test, pipelines, protocol="wsol", bootstrap=0, progress=False)
    evaluation.save(folder / "test")


def readings(row: str, pipeline: Pipeline) -> Mapping[str, Any]:
    """Return how a row's maps are read: by all presets and, where it has one, its own way.

    Args:
        row: Its name; the baseline is also read as CREAM, and CREAM as its Table 5 varies it.
        pipeline: The recipe's own.
    """
    if row != BASE:
        return {row: pipeline, **READINGS} if row in ("bas", "acol", "spg", "decoder") else READINGS
    cam, step, *rest = list(pipeline)
    assert isinstance(step, CREAM)
    alone = CREAM(step.bank, step.iterations, step.sigma, step.delta, add_cam=False)
    centred = CREAM(step.bank, step.iterations, step.sigma, step.delta, add_cam=False, centre=True)
    own = {name: Pipeline([cam, one, *rest]) for name, one in (("z alone", alone), ("z, centred", centred))}
    floor = Pipeline([Centre(), MinMax(), FixedThreshold(0.5)])
    return {**READINGS, "cream": pipeline, **own, "centre": floor}


def write_cub_report(
    folder: str | Path,
    root: str | Path,
    runs: Sequence[RecipeRun],
    budget: CubBudget,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
) -> list[Path]:
    """Write the table (Markdown and CSV), the bars, and a sheet of maps.

    Args:
        folder: That of the runs.
        root: Of the data.
        runs: From `run_cub`.
        budget: Theirs.
        weights: Likewise.
        device: Where the sheet's models run.

    Returns:
        The files.

    Raises:
        InputError: There is no run of the baseline yet, or a file cannot be written.
    """
    place = Path(folder)
    if not any(run.recipe == BASE for run in runs):
        raise InputError(f"{folder} holds no finished run of {BASE}, which others are compared with. Give more minutes")
    found = {run.recipe: list(run.result.pipelines) for run in runs}
    lines = report_lines(runs, BASE, "cam", METRICS, found)
    write_text(place / TABLE_FILE, markdown(lines))
    write_text(place / CSV_FILE, csv(lines))
    drawn = {BARS_FILE: bars(lines, []), SHEET_FILE: cub_sheet(place, root, runs, budget, weights, device)}
    for name, image in drawn.items():
        with replacing(place / name) as partial:
            image.save(partial)
    return [place / name for name in (TABLE_FILE, CSV_FILE, *drawn)]


def cub_sheet(
    folder: Path,
    root: str | Path,
    runs: Sequence[RecipeRun],
    budget: CubBudget,
    weights: str | Path | None = None,
    device: str | None = None,
) -> Image.Image:
    """Draw a few test images with the first seed's maps, every row of the table read its own way, in RGB.

    Arguments are as of `write_cub_report`.
    """
    train, test = cub_sets(root, budget)
    records = [test[len(test) * number // _SHEET_IMAGES] for number in range(min(_SHEET_IMAGES, len(test)))]
    columns: list[tuple[str, Explainer]] = []
    for name in dict.fromkeys(run.recipe for run in runs):
        own = folder / name / f"seed{runs[0].seed}"
        result = trained(name, runs[0].seed, own, budget, train, weights, device)
        if isinstance(result.model, BoxRegressor):
            columns.append((name, Explainer(load_headed(_base(own)), "cam", boxes_from=result.model)))
        else:
            columns.append((name, Explainer(result.model, "cam" if name == BASE else result.pipeline)))
    return sheet_of(columns, records, [int(record.labels[0]) for record in records])


def check_cub_plan(folder: Path, budget: CubBudget) -> None:
    """Check that the folder is of this budget and these settings; write down those of a new one.

    Raises:
        InputError: It holds runs of another.
    """
    plan = json.loads(json.dumps({"cub": asdict(budget) | {"seeds": None}, "rows": ROWS}))
    path = folder / PLAN_FILE
    known = parse_json(path.read_text(encoding="utf-8")) if path.exists() else plan
    both = {name for name in known["rows"] if name in ROWS}
    if known["cub"] != plan["cub"] or any(known["rows"][name] != plan["rows"][name] for name in both):
        raise InputError(
            f"{folder} holds runs of another budget or of other settings ({PLAN_FILE}): expected the same to go on. "
            "Choose another folder (--out)"
        )
    write_json(plan, path)
