"""`minmaxcam`: regularise what the maps keep of the image, in a second update of every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camtools.errors import InputError, ModelError
from camtools.heads.layers import zero_to_one
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch, Labels, balanced_batches
from camtools.training.recipe import Recipe
from camtools.training.trainer import Trainer

_SLIDES = "Wang et al., BMVC 2021, slides"


@dataclass(frozen=True, kw_only=True)
class MinMaxCamConfig(TrainConfig):
    """Settings of `minmaxcam`. A batch has classes_per_batch x set_size images; `batch_size` is for validation."""

    lr: float = option(1e-4, "Learning rate of the backbone.", source="Wang et al., BMVC 2021", least=0)
    set_size: int = option(5, "S, images of each class in a batch.", source=f"{_SLIDES}, Table 3", least=2)
    classes_per_batch: int = option(5, "Classes in a batch.", source="Wang et al., BMVC 2021; 12 there too", least=1)
    crr: float = option(1.0, "lambda 1, weight of the common region regularisation.", source=_SLIDES, least=0)
    frr: float = option(
        1.0, "lambda 2, weight of the full region regularisation; 10 there too.", source=_SLIDES, least=0
    )
    channels: str = option(
        "mean", "Whether squared distances are means or sums over channels.", choices=("mean", "sum")
    )


class MinMaxCamRecipe(Recipe):
    """MinMaxCAM (Wang et al., BMVC 2021): two updates per batch, the second of the classifier through its maps.

    Stage I is cross-entropy, for all weights. In stage II the backbone B is frozen and in evaluation mode. H is the
    min-max normalised CAM of the true class at the input's size, f = GAP(B(I * H)) and f0 = GAP(B(I)). The loss is
    lambda 1 * CRR + lambda 2 * FRR, and only the classifier's weights move.
    """

    name = "minmaxcam"
    Config = MinMaxCamConfig
    needs_images = True

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that there are enough classes for a batch, and that nothing mixes classes or updates."""
        config = self.config
        present = len({label for own in labels for label in own})
        if present < config.classes_per_batch:
            raise InputError(
                f"classes_per_batch={config.classes_per_batch}, but the training images are of {present} classes: "
                f"expected at most that many. Set classes_per_batch={max(1, present)}"
            )
        if config.accumulate > 1:
            raise InputError(
                f"accumulate={config.accumulate}: minmaxcam makes two updates of every batch, expected 1. Lower "
                "classes_per_batch instead"
            )
        self.check_one_class()

    def batches(self, labels: Labels, epoch: int) -> list[list[int]]:
        """Return batches of S images of each of so many classes; a class with fewer than S repeats some."""
        config = self.config
        single = [own[0] for own in labels]
        return balanced_batches(single, config.classes_per_batch, config.set_size, config.seed, epoch)

    def step(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Make both updates."""
        losses = super().step(trainer, batch)
        weight = class_weight(trainer.inner)
        with frozen(trainer.inner, weight):
            with trainer.precision():
                common, full = self.regularisers(trainer.inner, weight, batch)
                loss = self.config.crr * common + self.config.frr * full
            trainer.update_only(loss, [weight])
        return {**losses, "crr": common.detach(), "frr": full.detach()}

    def regularisers(self, model: nn.Module, weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return CRR and FRR, scalars that depend on the class weights through H.

        Args:
            model: Has `features(x)`, in evaluation mode, its parameters without gradients.
            weight: The classifier's, (K, C), with gradient.
            batch: Images and their classes.
        """
        with torch.no_grad():
            features = model.features(batch.images)  # type: ignore[operator]
        with torch.autocast(features.device.type, enabled=False):
            maps = torch.einsum("bc,bchw->bhw", weight[batch.labels].float(), features.float())
        masks = nn.functional.interpolate(
            zero_to_one(maps)[:, None], batch.images.shape[-2:], mode="bilinear", align_corners=False
        )
        kept = model.features(batch.images * masks).float().mean((2, 3))  # type: ignore[operator]
        whole = features.float().mean((2, 3))
        mean = self.config.channels == "mean"
        return common_region(kept, batch.labels, mean), full_region(kept, whole, mean)


def common_region(features: Tensor, labels: Tensor, mean: bool = True) -> Tensor:
    """Return CRR, the mean over classes of 1 / (S (S - 1)) sum_i sum_j ||f_i - f_j||^2; 0 where no class has two.

    Args:
        features: f, (B, C).
        labels: Each image's class, (B,).
        mean: Whether the squared distance is divided by C.
    """
    squared = (features[:, None] - features[None]).square()
    distances = squared.mean(2) if mean else squared.sum(2)
    same = labels[:, None] == labels[None]
    members = same.sum(1)  # S of each image's class
    pairs = (members * (members - 1)).clamp_min(1)
    # Each class has S rows: the sum over its rows of 1 / S counts it once.
    classes = (1 / members)[members > 1].sum().clamp_min(1)
    return ((distances * same).sum(1) / pairs).sum() / classes


def full_region(features: Tensor, whole: Tensor, mean: bool = True) -> Tensor:
    """Return FRR, the mean over images of ||f_i - f0_i||^2.

    Args:
        features: f, (B, C).
        whole: f0, (B, C).
        mean: Whether the squared distance is divided by C.
    """
    squared = (features - whole).square()
    return (squared.mean(1) if mean else squared.sum(1)).mean()


def class_weight(model: nn.Module) -> nn.Parameter:
    """Return the classifier's weight, (K, C): the parameter itself.

    Raises:
        ModelError: The model has none.
    """
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        raise ModelError(
            f"minmaxcam moves the weight of a linear classifier, which {type(model).__name__} lacks: expected a model "
            "whose head is pooling + linear"
        )
    weight: nn.Parameter = classifier.weight  # type: ignore[assignment]  # nn.Linear declares a Tensor
    return weight


@contextmanager
def frozen(model: nn.Module, besides: Tensor) -> Iterator[None]:
    """Put a model into evaluation mode, with no gradients but one parameter's, for a while."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(parameter is besides)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
