"""`finetune`: a recipe on a model and a data set, with checkpoints, logs and validation."""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from camtools.checkpoints import weights_hash
from camtools.checks import as_path
from camtools.classes.matching import match_classes
from camtools.datasets.selection import Selection
from camtools.errors import InputError
from camtools.files import locked
from camtools.heads.headed import HeadedModel
from camtools.model.cam_model import unwrapped
from camtools.progress import progress_bar
from camtools.sources.base import LoadedModel
from camtools.training.augment import seeded
from camtools.training.checkpoint import BEST_FILE, FROZEN_FOLDER, IMAGE_FILE, LAST_FILE, TrainingFolder
from camtools.training.data import TrainingSet
from camtools.training.logs import EpochRow, Logs
from camtools.training.recipe import Recipe
from camtools.training.registry import make_recipe
from camtools.training.result import FinetuneResult
from camtools.training.start import (
    ClassFit,
    class_count,
    fit_classes,
    labels_are_shares,
    starting_model,
    training_preprocess,
)
from camtools.training.trainer import Trainer, accelerated
from camtools.training.validation import LAST, LOSS, Validation, check_best, read_pipelines

if TYPE_CHECKING:
    from accelerate import Accelerator

_BUILDING = 1_000_037  # so that a fresh classifier's random numbers are its own


def finetune(
    recipe: str | Recipe,
    model: nn.Module | LoadedModel | str,
    train_set: Any,
    val_set: Any = None,
    *,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    transform: Any = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    **config: Any,
) -> FinetuneResult:
    """Fine-tune a classifier with image labels, so that its maps fit the objects better.

    Boxes and masks of `train_set` are never looked at; those of `val_set` are, to report how well maps fit, and decide
    nothing unless `best` names a metric of theirs. Where the data's classes are not the model's, a fresh linear layer
    takes the classifier's place.

    With `out`, a checkpoint is written after every epoch. A run that was killed and is started again with `resume` ends
    with the weights it would have ended with: on a CPU, to the last bit. Under `accelerate launch` or `torchrun`, the
    processes share the batches: each step sees `batch_size` images per process.

    Args:
        recipe: Name of an installed recipe ("gap", "tap", "minmaxcam" ...), or one with its settings.
        model: A classifier, which is left as it is; what `load_model` returned; or a name for it.
        train_set: A `camtools.datasets` data set of records, a `Subset` of one, or a specification for `open_dataset`.
        val_set: Likewise, or None.
        weights: Checkpoint, for a model by name.
        out: Folder for checkpoints, logs and images.
        resume: Whether to go on with the run in `out`; where there is none yet, one begins.
        device: Where to train: "cpu", or None for a GPU where there is one.
        transform: The model's preprocessing, a `Preprocess` or what makes one; None asks the model.
        class_names: Names of the model's classes in order; None asks the model.
        progress: Whether to say on stderr what happens, with a bar on a terminal.
        **config: Settings of the recipe, see its `Config`.

    Raises:
        InputError: A setting, the data or `out` cannot be used; or a file cannot be written.
        ModelError: The recipe does not fit the model, or the loss is not a number.
        TargetError: The validation set has other classes.
        WeightsError: A checkpoint cannot be read.
    """
    method = make_recipe(recipe, config)
    folder = None if out is None else as_path("out", out)
    if resume and folder is None:
        raise InputError("resume needs the run's folder: expected out=FOLDER (--out)")
    check_best(method.config.best, val_set is not None)
    train, val = Selection(train_set), None if val_set is None else Selection(val_set)
    loaded = starting_model(model, weights, transform, class_names)
    fit = fit_classes(train, class_count(loaded.model), loaded.class_names)
    data = TrainingSet(train, fit.index)
    shares = labels_are_shares(method, data)
    method.check(data.labels, fit.names)
    if val is not None:
        match_classes(val.classes, val.occurring, len(fit.names), fit.names)
    with (
        accelerated(method.config.mixed_precision, device) as accelerator,
        locked(folder if accelerator.is_main_process else None),
    ):
        tuning = _Finetuning(method, loaded, data, val, fit, shares, accelerator, folder, progress)
        return tuning.run(resume)


class _Finetuning:
    """One fine-tune, from its first step or a checkpoint to its last."""

    def __init__(
        self,
        recipe: Recipe,
        loaded: LoadedModel,
        data: TrainingSet,
        val: Selection | None,
        fit: ClassFit,
        shares: bool,
        accelerator: Accelerator,
        folder: Path | None,
        progress: bool,
    ) -> None:
        self.recipe, self.config, self.data, self.fit = recipe, recipe.config, data, fit
        self.folder = TrainingFolder(folder, accelerator.is_main_process)
        self.accelerator, self.shown = accelerator, progress and accelerator.is_main_process
        network, preprocess = loaded.model, training_preprocess(loaded.preprocess, recipe)
        self.home = next((p.device for p in network.parameters()), torch.device("cpu"))
        self.settings = {
            "recipe": recipe.name,
            "start": weights_hash(unwrapped(network)),
            "model": type(unwrapped(network)).__name__,
            **data.fingerprint(),
            "classes": list(fit.names),
            "preprocess": repr(preprocess),
            "processes": accelerator.num_processes,
            "device": accelerator.device.type,
            "validation": None if val is None else val.fingerprint(),
            **self.config.affecting(),
            "mixed_precision": accelerator.mixed_precision,
        }
        with seeded(self.config.seed, _BUILDING):
            built = recipe.build(network, fit.fresh)
        if built is network:
            built = copy.deepcopy(network)
        built.preprocess = preprocess  # type: ignore[assignment]  # what models describe themselves by
        built.class_names = fit.names  # type: ignore[assignment]
        headed = getattr(built, "network", built)  # a BoxRegressor's
        if isinstance(headed, HeadedModel) and loaded.spec:
            headed.origin = replace(headed.origin, source=loaded.spec, source_args=dict(loaded.model_args))
        self.validation = None
        if val is not None:
            pipelines = read_pipelines(recipe.name, recipe.pipeline)
            subset = torch.utils.data.Subset(val.data, val.indices)
            self.validation = Validation(subset, pipelines, self.config, preprocess, fit.names, shares)
        drawn = val is not None and folder is not None and self.config.examples
        self.before = copy.deepcopy(built).to(self.home).eval() if drawn else None
        fast = recipe.fast_parameters(built)
        cache = self._cache(folder)
        self.settings["cached"] = cache is not None
        self.trainer = Trainer(
            self.config, built, fast, data, len(fit.names), shares, preprocess, accelerator, cache, self.shown
        )
        self.history: list[EpochRow] = []
        self.best: dict[str, Any] = {"epoch": 0, "value": None, "state": None}
        self._say(f"{recipe.name}: {len(data)} images, {fit.summary}")
        taught = {label for labels in data.labels for label in labels}
        empty = [name for label, name in enumerate(fit.names) if label not in taught]
        if empty:
            some = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
            self._say(f"{len(empty)} classes have no training image ({some}): the model unlearns them")

    def _cache(self, folder: Path | None) -> Path | None:
        """Return where the outputs of a frozen part are kept; None where they are not.

        Raises:
            InputError: The recipe looks at images in every step.
        """
        config = self.config
        if config.freeze is None or not config.views or config.cache is None:
            return None
        if self.recipe.needs_images:
            raise InputError(
                f"{self.recipe.name} changes images at every step, so the outputs of a frozen part cannot be kept: "
                "expected cache=none, or views=0. Say cache=none"
            )
        if config.cache or folder is not None:
            return Path(config.cache) if config.cache else Path(str(folder)) / FROZEN_FOLDER
        self._temporary = tempfile.TemporaryDirectory(prefix="camtools-")
        return Path(self._temporary.name)

    def run(self, resume: bool) -> FinetuneResult:
        """Train what is left."""
        trainer, config = self.trainer, self.config
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if trainer.device.type == "cuda" else []):
            self._begin(resume)
            with closing(Logs(self.folder.written, trainer.updates)) as logs:
                if not self.history and self.validation is not None:
                    self.history.append({"epoch": 0.0, **self.recipe.validate(self._model(), self.validation)})
                    self._say(f"before training: {_described(self.history[0])}")
                    logs.epoch(self.history, 0)
                self.recipe.before_training(trainer)
                while trainer.epoch < config.epochs:
                    self._epoch(logs)
                    self._save(models=True)
                    logs.epoch(self.history, trainer.updates)
            return self._result()

    def _begin(self, resume: bool) -> None:
        """Load the checkpoint, or see that there is none."""
        state = self.folder.checkpoint(self.settings, resume, self.trainer.device)
        if state is not None:
            self.trainer.load_state_dict(state["trainer"])
            self.recipe.load_state_dict(state["trainer"]["recipe"])
            self.history, self.best = state["history"], state["best"]
            self._say(f"going on after epoch {self.trainer.epoch}, batch {self.trainer.batch}")
        elif resume:
            self._say(f"{self.folder.path} holds no run yet: one begins")
        self.folder.write_settings({**self.config.to_dict(), **self.settings})
        self.accelerator.wait_for_everyone()

    def _epoch(self, logs: Logs) -> None:
        """Train on what is left of an epoch; validate, and keep the model if no epoch before was better."""
        trainer, config, number = self.trainer, self.config, self.trainer.epoch + 1
        batches = trainer.own_batches(self.recipe.batches(self.data.labels, trainer.epoch))
        world = self.accelerator.num_processes
        images = sum(map(len, batches[trainer.batch :])) * world
        start, due = time.perf_counter(), False
        with progress_bar(images, f"Epoch {number}/{config.epochs}", self.shown) as advance:
            for batch in trainer.epoch_batches(batches):
                trainer.learn(batch, self.recipe.step)
                text = ""
                if trainer.batch % config.log_every == 0:
                    means = trainer.means()
                    logs.scalars({f"train/{name}": value for name, value in means.items()}, trainer.updates)
                    text = f"loss {means['loss']:.3f}"
                advance(len(batch.indices) * world, text)
                due = due or bool(config.save_every and trainer.batch % config.save_every == 0)
                if due and trainer.between_updates and trainer.batch < len(batches):
                    trainer.means()  # raises rather than keep what is not a number
                    self._save()
                    due = False
        means = trainer.means(end=True)
        self.recipe.after_epoch(trainer)
        trainer.next_epoch()
        speed = images / max(time.perf_counter() - start, 1e-9)
        row: EpochRow = {"epoch": float(number), "lr": trainer.optimizer.param_groups[0]["lr"], **means}
        validated = self.validation is not None and (number % config.validate_every == 0 or number == config.epochs)
        if self.validation is not None and validated:
            row |= self.recipe.validate(self._model(), self.validation)
        self.history.append(row)
        self._judge(row, validated)
        self._say(f"epoch {number}/{config.epochs}: {_described(row)} ({speed:.1f} images/s)")

    def _judge(self, row: EpochRow, validated: bool) -> None:
        """Keep the model if no epoch before was better; without anything to go by, the last is the best."""
        if self.config.best == LOSS:
            value = -row["loss"]
        elif self.validation is None or self.config.best == LAST:
            value = row["epoch"]
        elif validated:
            value = self.validation.judge(row)
        else:
            return
        if self.best["value"] is None or value > self.best["value"]:
            state = {name: tensor.detach().clone() for name, tensor in self._model().state_dict().items()}
            own = copy.deepcopy(self.recipe.state_dict())
            self.best = {"epoch": int(row["epoch"]), "value": value, "state": state, "recipe": own}

    def _save(self, models: bool = False) -> None:
        """Write the checkpoint; with `models`, the best and last model beside it, before it.

        Raises:
            InputError: A file cannot be written.
        """
        if self.folder.written is None:
            return
        if models:
            model = self._model()
            files = self.recipe.files(model)
            self.folder.write_model(LAST_FILE, model, files)
            if self.best["epoch"] == self.trainer.epoch:
                self.folder.write_model(BEST_FILE, model, files)
        trainer = {**self.trainer.state_dict(), "recipe": self.recipe.state_dict()}
        self.folder.write_checkpoint(self.settings, {"history": self.history, "best": self.best, "trainer": trainer})

    def _result(self) -> FinetuneResult:
        """Hand out the best model, and draw what training changed."""
        self.accelerator.unwrap_model(self.trainer.model, keep_fp32_wrapper=False)  # its forward is its own again
        model = copy.deepcopy(self._model())
        model.load_state_dict(self.best["state"])
        self.recipe.load_state_dict(self.best["recipe"])
        model.to(self.home, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model = self.recipe.finished(model.eval())
        if self.before is not None and self.validation is not None and self.folder.written is not None:
            image = self.validation.before_and_after(self.before, model)
            if image is not None:
                self.folder.write(IMAGE_FILE, image.save)
        paths = self.folder.paths(self.recipe.files(model))
        if paths:
            self._say(f"best epoch {self.best['epoch']}: {paths['best']}")
        self.accelerator.wait_for_everyone()
        settings = {**self.config.to_dict(), **self.settings}
        pipeline = list(read_pipelines(self.recipe.name, self.recipe.pipeline).values())[-1]
        return FinetuneResult(model, self.history, self.best["epoch"], self.fit.names, settings, paths, pipeline)

    def _model(self) -> nn.Module:
        """Return the model that the recipe hands out as training stands."""
        return self.recipe.finished(self.trainer.trained())

    def _say(self, text: str) -> None:
        if self.shown:
            print(text, file=sys.stderr, flush=True)


def _described(row: EpochRow) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "lr"))
