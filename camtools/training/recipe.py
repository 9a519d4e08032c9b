"""What a recipe is: how one method changes the model, chooses batches, and learns from them.

`camtools.finetune` owns everything else: images, augmentation, precision, checkpoints, logs, validation. Recipes are
plug-ins of the entry point group `camtools.recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from camtools.errors import InputError
from camtools.heads.pooling import GAP
from camtools.heads.replace import replace_head
from camtools.training.config import TrainConfig
from camtools.training.data import Batch, Labels, shuffled_batches
from camtools.training.optimizer import head_parameters
from camtools.training.trainer import Trainer
from camtools.training.validation import Validation


class Recipe:
    """A way to fine-tune. Subclasses set the class attributes, and override what their method does differently.

    Args:
        config: Its settings; None for the defaults.

    Attributes:
        name: Its name in commands and files, and that of its entry point.
        Config: Its settings' class.
        pipeline: How the trained model's maps are read: anything `camtools.evaluate` takes. "cam" is measured besides.
        multilabel: False: images have one class, and labels are indices. True: labels are (B, K) shares. None: as the
            data is.
        needs_images: Whether steps change the images, so that what a frozen part makes of them cannot be kept.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[TrainConfig]] = TrainConfig
    pipeline: Any = "cam"
    multilabel: bool | None = False
    needs_images: bool = False
    past_model: bool = False
    own_conv: bool = False

    def __init__(self, config: TrainConfig | None = None) -> None:
        self.config: Any = self.Config() if config is None else config
        if not isinstance(self.config, self.Config):
            raise InputError(f"config is {type(config).__name__}: expected {self.name}'s {self.Config.__name__}")

    @property
    def summary(self) -> str:
        """What it does: the first line of its docstring."""
        return (type(self).__doc__ or "").strip().partition("\n")[0]

    @property
    def place(self) -> dict[str, Any]:
        """Where the head goes, for `camtools.heads.replace_head`: the settings of the same names."""
        place = {name: getattr(self.config, name) for name in ("output_stride", "dilate", "cut_after", "conv")}
        return place | ({"conv": 0} if self.own_conv else {})

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that the method can use the training data; called before anything is built.

        Args:
            labels: Of all training images.
            names: Of the classes.

        Raises:
            InputError: It cannot; says which class lacks what.
        """

    def check_hooks(self) -> None:
        """Check that hooks run, which they don't in a compiled model; for `check` of methods that use `captured`.

        Raises:
            InputError: `compile` is set.
        """
        if self.config.compile:
            raise InputError(
                f"compile=True: {self.name} looks into the forward by a hook, expected compile=False. Leave it out"
            )

    def check_one_class(self) -> None:
        """Check that each image keeps its one class, for `check` of methods that look at that class's map.

        Raises:
            InputError: `augment` has cutmix.
        """
        if "cutmix" in self.config.augment:
            raise InputError(f"augment has cutmix: {self.name} needs one class per image, expected it without")

    def head(self) -> Any:
        """Return what `build` puts in the place of the model's head, see `camtools.heads.replace_head`: here GAP."""
        return GAP()

    def build(self, model: nn.Module, classes: int | None) -> nn.Module:
        """Return what is trained, made of a copy of the caller's model.

        Args:
            model: The caller's own, which must stay as it is: `camtools.heads.replace_head` copies.
            classes: How many classes a fresh classifier has; None to keep the model's own.

        Raises:
            ModelError: The method does not fit the model.
        """
        return replace_head(model, self.head(), classes=classes, **self.place)

    def fast_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters whose rate is `head_lr_factor` times as high: what lies behind the feature map."""
        return head_parameters(model)

    def batches(self, labels: Labels, epoch: int) -> list[list[int]]:
        """Return the images of every step of an epoch, by their positions in the training set.

        Must depend on nothing but the arguments and the settings. With several processes each takes every n-th batch.

        Args:
            labels: Of all training images.
            epoch: From 0.
        """
        return shuffled_batches(len(labels), self.config.batch_size, self.config.seed, epoch)

    def step(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch; here `loss`, its gradients, and an update.

        The model is in training mode. Methods with several updates call `trainer.update` and `trainer.update_only`.

        Returns:
            What is logged: scalars by name, detached; "loss" has to be among them.
        """
        with trainer.precision():
            losses = self.loss(trainer, batch)
        (trainer.update_inner if self.past_model else trainer.update)(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return scalars by name; "loss" is the one that is minimised, the others are logged.

        Here cross-entropy, or binary cross-entropy for recipes with `multilabel` labels, and the accuracy.
        """
        logits = trainer.model(batch.images).float()
        losses = {"loss": self.classification_loss(logits, batch.labels)}
        if batch.labels.ndim == 1:
            losses["accuracy"] = accuracy(logits.detach(), batch.labels)
        return losses

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return (softmax or binary) cross-entropy, a scalar, with the configured label smoothing.

        Args:
            logits: (B, K).
            labels: (B,) indices, or (B, K) shares.
        """
        smoothing = self.config.label_smoothing
        if labels.ndim == 2 and self.multilabel is not False:
            target = labels * (1 - smoothing) + smoothing / 2
            return nn.functional.binary_cross_entropy_with_logits(logits, target)
        return nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def before_training(self, trainer: Trainer) -> None:
        """Run once, before the first epoch and after a checkpoint was loaded."""

    def after_epoch(self, trainer: Trainer) -> None:
        """Run after every epoch's last step, before validation and checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the recipe learnt beside the weights: tensors, numbers and text, as checkpoints keep them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def finished(self, model: nn.Module) -> nn.Module:
        """Return what is evaluated, saved and handed back: here the trained model itself.

        Where a `pipeline` depends on what was learnt, this is the place to bring it up to date.

        Args:
            model: The trained module, or its moving average; unwrapped, in eval mode; or what an earlier call returned.
                Must not be changed.
        """
        return model

    def files(self, model: nn.Module) -> dict[str, Callable[[Path], object]]:
        """Return what is saved beside a model: functions that write a file, by the end of its name.

        Args:
            model: What `finished` returned.
        """
        return {}

    def validate(self, model: nn.Module, validation: Validation) -> dict[str, float]:
        """Return metrics by name, per cent: here those of the model's maps and classes.

        Args:
            model: What `finished` returned.
            validation: Measures it.
        """
        return validation(model)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of images whose class is the likeliest, per cent, a scalar.

    Args:
        logits: (B, K).
        labels: (B,) indices.
    """
    return (logits.argmax(1) == labels).float().mean() * 100


@contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect a module's outputs for a while; the hook comes off after an error, too."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
