"""Every recipe on the same scenes, from the same start, with the same seeds and budget: the runs, one after another."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camtools.datasets.record import Record
from camtools.datasets.scenes import Scenes, scene_classifier
from camtools.errors import InputError
from camtools.evaluation.evaluator import evaluate
from camtools.evaluation.results import EvaluationResult
from camtools.files import parse_json, read_text, replacing, write_text
from camtools.heads.box_regressor import BoxRegressor
from camtools.training.finetuner import finetune
from camtools.training.result import FinetuneResult
from camtools_recipes.cream_regressor import box_ious

PLAN_FILE, BOXES_FILE = "plan.json", "boxes.npz"
OBJECTS = (1, 3)  # creatures per multi-label scene

_GENTLE: dict[str, Any] = {"lr": 1e-3}
_FRESH: dict[str, Any] = {"lr": 1e-2, "augment": ("flip",), "k_max": 0.05, "k_min": 0.05}
# Chosen on scenes of the train split with other seeds than those of the runs; docs/reproduce.md says how.
SINGLE: dict[str, dict[str, Any]] = {
    "gap": _GENTLE,
    "tap": _GENTLE,
    "wgap": {"lr": 3e-4},
    "minmaxcam": {**_GENTLE, "epochs": 3, "crr": 2000.0, "frr": 100.0},
    "cream": {**_GENTLE, "unit": True, "centre": True},
    "cream_regressor": {**_GENTLE, "unit": True, "theta": 0.15},
}
MULTI: dict[str, dict[str, Any]] = {
    "wildcat": _FRESH,
    "excam": {**_FRESH, "delta": 0.9, "learnable": True, "read": "mean"},
}
READINGS = ("cam", "rcam", "adaptive")
"""Presets with which `gap` is read: what maps gain without any other training."""


@dataclass(frozen=True)
class Budget:
    """How much of everything.

    Attributes:
        train: Training scenes of one creature; `multi` of several.
        test: Test scenes, of either kind.
        epochs: Passes over them; `multi_epochs` likewise, as these heads are fresh.
        seeds: Runs per recipe.
    """

    train: int = 300
    multi: int = 400
    test: int = 300
    epochs: int = 8
    multi_epochs: int = 6
    seeds: int = 3

    @classmethod
    def quick(cls, seeds: int) -> Budget:
        """Return one that shows soon that everything runs; its figures mean nothing."""
        return cls(train=50, multi=50, test=16, epochs=1, multi_epochs=1, seeds=seeds)


@dataclass(frozen=True, eq=False)
class RecipeRun:
    """One recipe with one seed.

    Attributes:
        recipe: Its name.
        seed: Of the training.
        result: On the test scenes, "cam" and the recipe's own reading, under its name, among the pipelines.
        ious: Of a regressor's boxes, (N,), one per row of `result`; None for others.
    """

    recipe: str
    seed: int
    result: EvaluationResult
    ious: Any = None

    @classmethod
    def load(cls, recipe: str, seed: int, folder: Path) -> RecipeRun:
        """Return a finished run from its folder."""
        boxes = folder / BOXES_FILE
        ious = np.load(boxes, allow_pickle=False)["ious"] if boxes.exists() else None
        return cls(recipe, seed, EvaluationResult.load(folder / "test"), ious)


class InMemory(Scenes):
    """Scenes, each drawn once and kept; arguments as of `Scenes`."""

    def __init__(self, split: str, n: int, **options: Any) -> None:
        super().__init__(split, n, **options)
        self._record = cache(super().record)

    def record(self, index: int) -> Record:
        """Return a record, drawn at the first call."""
        return self._record(index)


def run_all(
    folder: str | Path, budget: Budget, recipes: Sequence[str] | None = None, *, device: str | None = None
) -> list[RecipeRun]:
    """Run what is not done yet; a run that was killed goes on where it was.

    Args:
        folder: Of all runs, each in RECIPE/seedN.
        budget: How much of everything.
        recipes: Some of the names in `SINGLE` and `MULTI`; None for all.
        device: Where to train: "cpu", or None for a GPU where there is one.

    Returns:
        All runs, in the plan's order.

    Raises:
        InputError: A recipe is unknown, or the folder holds runs of another budget.
    """
    place, wanted = Path(folder), _wanted(recipes)
    _check_plan(place, budget)
    sets = {multi: scene_sets(budget, multi) for multi in (False, True)}
    runs, todo = [], [(name, seed) for seed in range(budget.seeds) for name in wanted]
    start = time.perf_counter()
    for number, (name, seed) in enumerate(todo):
        own = place / name / f"seed{seed}"
        if not (own / "test" / "results.json").exists():
            done = f"{number + 1}/{len(todo)}, {time.perf_counter() - start:.0f} s"
            print(f"[{done}] {name}, seed {seed}", file=sys.stderr, flush=True)
            _run(name, seed, own, budget, sets[name in MULTI], device)
        runs.append(RecipeRun.load(name, seed, own))
    return sorted(runs, key=lambda run: (wanted.index(run.recipe), run.seed))


def scene_sets(budget: Budget, multi: bool) -> tuple[InMemory, InMemory]:
    """Return the training and test scenes, of one creature or of several, drawn when first looked at."""
    options: dict[str, Any] = {"objects": OBJECTS, "mixed": True} if multi else {}
    train = InMemory("train", budget.multi if multi else budget.train, **options)
    return train, InMemory("test", budget.test, **options)


def trained(
    recipe: str, seed: int, folder: Path, budget: Budget, train: Scenes, device: str | None = None
) -> FinetuneResult:
    """Return a recipe's run, from its checkpoint as far as that goes."""
    model = scene_classifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPUs
    options = {"epochs": budget.multi_epochs if recipe in MULTI else budget.epochs, **{**SINGLE, **MULTI}[recipe]}
    return finetune(recipe, model, train, out=folder, resume=True, device=device, progress=False, seed=seed, **options)


def _run(recipe: str, seed: int, folder: Path, budget: Budget, sets: tuple[Scenes, Scenes], device: str | None) -> None:
    """Train and evaluate; the evaluation's results.json is written last, so where it is all is done."""
    train, test = sets
    result = trained(recipe, seed, folder, budget, train, device)
    model: Any = result.model
    pipelines: dict[str, Any] = {"cam": "cam", recipe: result.pipeline}
    if recipe == "gap":
        pipelines = {name: name for name in READINGS}
    if isinstance(model, BoxRegressor):
        save_ious(folder, model, test)
        model = scene_classifier()  # whose classes go with the boxes
    activation: Any = "sigmoid" if recipe in MULTI else "softmax"
    evaluation = evaluate(model, test, pipelines, protocol="native", activation=activation, bootstrap=0, progress=False)
    evaluation.save(folder / "test")


def save_ious(folder: Path, model: BoxRegressor, test: Any) -> None:
    """Write how well a regressor's boxes fit, for `RecipeRun.load`."""
    with replacing(folder / BOXES_FILE) as partial:
        np.savez(partial, ious=box_ious(model, test).numpy())


def _wanted(recipes: Sequence[str] | None) -> list[str]:
    known = [*SINGLE, *MULTI]
    if recipes is None:
        return known
    unknown = [name for name in recipes if name not in known]
    if unknown or not recipes:
        raise InputError(f"recipes={list(recipes)!r}: expected some of {', '.join(known)}")
    needed = {*recipes, *(base for base, of in (("gap", SINGLE), ("wildcat", MULTI)) if {*recipes} & {*of})}
    return [name for name in known if name in needed]  # what deltas are to comes along


def _is_plan(path: Path, plan: Any) -> bool:
    try:
        return bool(parse_json(read_text(path)) == plan)
    except (OSError, ValueError):  # damaged
        return False


def _check_plan(folder: Path, budget: Budget) -> None:
    """Check that the folder is of this budget and these settings; write down those of a new one."""
    plan = {"scenes": vars(budget) | {"seeds": None}, "recipes": {**SINGLE, **MULTI}}
    text, path = json.dumps(plan, indent=1), folder / PLAN_FILE
    if not path.exists():
        write_text(path, text + "\n")
    elif not _is_plan(path, json.loads(text)):
        raise InputError(
            f"{folder} holds runs of another budget or of other settings ({PLAN_FILE}): expected the same to go on. "
            "Choose another folder (--out)"
        )
