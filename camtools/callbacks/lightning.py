"""A callback for Lightning: the explanations of fixed images, every n epochs, in the trainer's own loggers."""

from __future__ import annotations

import sys
from typing import Any

from camtools.callbacks.panel import log_explanations
from camtools.checks import whole
from camtools.errors import InputError

try:
    if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
        raise ImportError("the caller uses the other of the two packages")
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:
        Callback = None  # type: ignore[assignment, misc]


class ExplanationCallback(Callback or object):  # type: ignore[misc]
    """Log the explanations of the same images before training and every few epochs.

    Args:
        images: A list of images; see `camtools.explain`.
        target: A class for each image, or one for all; None takes the likeliest.
        every: Epochs from one figure to the next.
        classifier: Name of the attribute that is the classifier, such as "net" or "model.backbone", where the
            `LightningModule`'s own forward gives no logits; None takes the module itself.
        logger: Where figures go, see `send_image`; None takes the trainer's loggers.
        **options: Of `camtools.callbacks.log_explanations`: `pipeline`, `tag`, `transform`, `class_names`, ...

    Raises:
        InputError: Lightning is not installed, or `every` is no whole number above 0.

    Example:
        >>> from camtools.callbacks.lightning import ExplanationCallback
        >>> trainer = Trainer(callbacks=[ExplanationCallback(photos, target=labels, transform=preprocess)])
    """

    def __init__(
        self,
        images: Any,
        target: Any = None,
        every: int = 1,
        *,
        classifier: str | None = None,
        logger: Any = None,
        **options: Any,
    ) -> None:
        if Callback is None:
            raise InputError("this callback is Lightning's, which is not installed: pip install lightning")
        super().__init__()
        self.images, self.target, self.every = images, target, whole("every", every)
        self.classifier, self.logger, self.options = classifier, logger, options

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Log the model as it starts."""
        self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log it every few epochs."""
        if (trainer.current_epoch + 1) % self.every == 0:
            self._log(trainer, pl_module)

    def _log(self, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            model = module.get_submodule(self.classifier) if self.classifier else module
            logger = list(trainer.loggers) if self.logger is None else self.logger
            log_explanations(model, self.images, logger, trainer.global_step, target=self.target, **self.options)
