"""A callback for HF transformers' Trainer: the explanations of fixed images, every n epochs, where it reports to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from camtools.callbacks.panel import log_explanations
from camtools.checks import whole
from camtools.errors import InputError

try:
    from transformers import TrainerCallback
except ImportError:
    TrainerCallback = None  # type: ignore[assignment, misc]


class ExplanationCallback(TrainerCallback or object):  # type: ignore[misc]
    """Log the explanations of the same images before training and every few epochs.

    Args:
        images: A list of images; see `camtools.explain`.
        target: A class for each image, or one for all; None takes the likeliest.
        every: Epochs from one figure to the next.
        logger: Where figures go, see `camtools.callbacks.send_image`. None takes what `TrainingArguments.report_to`
            names of "tensorboard" (in OUTPUT_DIR/runs/explanations), "wandb" and "mlflow".
        **options: Of `camtools.callbacks.log_explanations`: `pipeline`, `tag`, `transform`, `class_names`, ...

    Raises:
        InputError: transformers is not installed, or `every` is no whole number above 0.

    Example:
        >>> from camtools.callbacks.huggingface import ExplanationCallback
        >>> Trainer(model, args, train_dataset=data, callbacks=[ExplanationCallback(photos, target=labels)])
    """

    def __init__(self, images: Any, target: Any = None, every: int = 1, *, logger: Any = None, **options: Any) -> None:
        if TrainerCallback is None:
            raise InputError("this callback is that of transformers, which is not installed: pip install transformers")
        self.images, self.target, self.every = images, target, whole("every", every)
        self.logger, self.options = logger, options

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Log the model as it starts."""
        if self.logger is None and state.is_world_process_zero:
            self.logger = _loggers(args)
        self._log(state, known["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Log it every few epochs."""
        if round(state.epoch) % self.every == 0:
            self._log(state, known["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Have event files written out."""
        for logger in self.logger if isinstance(self.logger, list) else [self.logger]:
            if hasattr(logger, "flush"):
                logger.flush()

    def _log(self, state: Any, model: Any) -> None:
        if state.is_world_process_zero:
            log_explanations(model, self.images, self.logger, state.global_step, target=self.target, **self.options)


def _loggers(args: Any) -> list[Any]:
    """Return what the trainer reports to, as far as it takes images."""
    found: list[Any] = []
    if "tensorboard" in args.report_to:
        from torch.utils.tensorboard import SummaryWriter

        found.append(SummaryWriter(str(Path(args.output_dir) / "runs" / "explanations")))
    if "wandb" in args.report_to:
        found.append(sys.modules["wandb"].run)
    if "mlflow" in args.report_to:
        found.append(sys.modules["mlflow"])
    return found
