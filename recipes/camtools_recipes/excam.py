"""`excam`: WILDCAT whose maps lose in training what earlier maps of their class have."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camtools.errors import InputError, ModelError
from camtools.heads.dropout import ADL
from camtools.heads.headed import HeadedModel
from camtools.heads.twin import Twin
from camtools.heads.wildcat import ExCAM, Wildcat
from camtools.model.adapter import FeatureSpec
from camtools.steps.wildcat_maps import READINGS
from camtools.training.config import option
from camtools.training.data import Batch, Labels
from camtools.training.optimizer import head_parameters
from camtools.training.recipe import captured
from camtools.training.trainer import Trainer
from camtools_recipes.wildcat import WildcatConfig, WildcatRecipe

_SECOND = "second"  # the second classifier's place with ACoL: in the head, or a whole network's beside it


@dataclass(frozen=True, kw_only=True)
class ExCamConfig(WildcatConfig):
    """Settings of `excam`. The defaults are section 3.3; the thesis's other experiments are combined freely."""

    dropout: str = option(
        "sequential",
        "What changes maps in training: sequential; adl, a draw per map (3.8.3); none, which leaves WILDCAT.",
        choices=("sequential", "adl", "none"),
    )
    read: str = option(
        "max",
        "How a class's maps become one: their maximum at each position, their mean, the first, or masked, their mean "
        "after the dropout.",
        source="the thesis does not say; why not the mean: docs/recipes.md",
        choices=READINGS,
        affects=False,
    )
    delta: float = option(
        0.5, "Threshold on the maps' sigmoid, of dropout and ACoL.", source="ex-CAM thesis, 3.3", least=1e-3, most=0.999
    )
    learnable: bool = option(False, "Whether the dropout's delta is learnt.", source="ex-CAM thesis, 3.3")
    adl_rate: float = option(0.75, "Chance of the drop mask.", source="Choe and Shim, CVPR 2019", least=0, most=1)
    adl_gamma: float = option(
        0.9, "Its threshold, a share of the maximum.", source="Choe and Shim, CVPR 2019", least=0, most=1
    )
    exclusivity: float = option(
        0.0, "lambda, weight of the pairwise L2 between a class's maps, which is subtracted (3.8.1).", least=0
    )
    acol: str = option(
        "none",
        "A second classifier that sees the image, or its features, without what the first has; their maps are "
        "averaged (3.8.2; Zhang et al., CVPR 2018). network: it is a second whole network, and sees the image. The "
        "thesis trains the first one before it, here both learn in every step.",
        choices=("none", "image", "features", "network"),
    )


class ExCamRecipe(WildcatRecipe):
    """ex-CAM: WILDCAT with intra-class sequential dropout over its maps (thesis, section 3.3).

    In training the first map of a class keeps its important part, and each later one loses what it and all before it
    found. The thesis does not say how the maps are read at test: here by their maximum.
    """

    name = "excam"
    Config = ExCamConfig

    @property
    def needs_images(self) -> bool:  # type: ignore[override]
        """Whether a step looks at images anew: with `acol="image"` and `acol="network"`."""
        return self.config.acol in ("image", "network")

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that settings don't exclude each other."""
        config = self.config
        if config.exclusivity or config.acol != "none":
            self.check_hooks()
        if config.exclusivity and config.maps < 2:
            raise InputError(f"exclusivity={config.exclusivity:g} with maps={config.maps}: expected 2 maps at least")
        if config.acol != "none" and "cutmix" in config.augment:
            raise InputError("augment has cutmix: acol erases what the true classes' maps find, expected it without")
        if config.learnable and config.dropout != "sequential":
            raise InputError(f"learnable=True with dropout={config.dropout!r}: expected dropout='sequential'")

    def head(self) -> partial[Any]:
        """Return what makes the head of (channels, classes)."""
        config, plain = self.config, super().head()
        if config.dropout == "sequential":
            return partial(ExCAM, delta=config.delta, learnable=config.learnable, **plain.keywords)
        if config.dropout == "none":
            return plain
        return partial(plain, adl=ADL(config.adl_rate, config.adl_gamma, per_map=True))

    def build(self, model: nn.Module, classes: int | None) -> nn.Module:
        """Put the head in the place of pooling and classifier; with ACoL, a second one in it, or a second network.

        Raises:
            ModelError: With `acol="network"`, the model is made of two networks already.
        """
        built = super().build(model, classes)
        if self.config.acol == "network":
            if isinstance(built.body, Twin):
                raise ModelError("acol='network': the model is made of two networks already, expected one to start "
                                 "with. Give the classifier that it was made of, or acol='image'")  # fmt: skip
            built.add_module(_SECOND, super().build(model, classes))
        elif self.config.acol != "none":
            head: Wildcat = built.head  # type: ignore[assignment]
            second = self.head()(head.channels, head.classes)
            head.add_module(_SECOND, second.to(head.conv.weight.device, head.conv.weight.dtype))
        return built

    def fast_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return what lies behind the feature map, of both networks where there are two."""
        second = getattr(model, _SECOND, None)
        return head_parameters(model) + ([] if second is None else head_parameters(second))

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the classification loss, plus the second classifier's, minus lambda times the exclusivity."""
        config, inner = self.config, trainer.inner
        if not config.exclusivity and config.acol == "none":
            return super().loss(trainer, batch)
        if config.acol != "none" and trainer.accelerator.num_processes > 1:
            raise InputError(f"acol={config.acol!r} trains in one process, but there are several: expected acol='none'")
        head: Wildcat = inner.head  # type: ignore[assignment]
        with captured(head.conv) as outputs, captured(inner.feature_map) as features:  # type: ignore[arg-type]
            logits = trainer.model(batch.images).float()
        maps = outputs[0].unflatten(1, (-1, head.M))
        losses = self.losses_of(trainer, logits, batch.labels)
        if config.acol != "none":
            others = self.second_logits(inner, batch, maps.mean(2), features[0])
            second = self.losses_of(trainer, others.float(), batch.labels)["loss"]
            losses |= {"loss": losses["loss"] + second, "second": second.detach()}
        if config.exclusivity:
            apart = exclusivity(maps)
            losses |= {"loss": losses["loss"] - config.exclusivity * apart, "exclusivity": apart.detach()}
        return losses

    def second_logits(self, inner: Any, batch: Batch, maps: Tensor, features: Tensor) -> Tensor:
        """Return the second classifier's logits, (B, K), of what is left without the first one's regions.

        Args:
            inner: What is trained.
            batch: Its images and labels.
            maps: The first one's class maps, (B, K, h, w).
            features: F, (B, C, h, w).
        """
        whole = self.config.acol == "network"
        size = batch.images.shape[-2:]
        erased = true_regions(maps, batch.labels, self.config.delta, size if whole else None)[:, None]
        logits: Tensor
        if whole:
            logits = inner.second(batch.images * ~erased)
        elif self.config.acol == "features":
            logits = inner.head.second(features * ~erased)
        else:
            mask = nn.functional.interpolate(erased.float(), size) > 0
            logits = inner.head.second(inner.features(batch.images * ~mask))
        return logits

    def finished(self, model: nn.Module) -> nn.Module:
        """Return the model; with ACoL a copy with one head, whose maps are the mean of both."""
        if hasattr(model, _SECOND):
            model = joined(model)  # type: ignore[arg-type]
        elif hasattr(model.head, _SECOND):
            model = copy.deepcopy(model)
            merge(model.head)  # type: ignore[arg-type]
        return super().finished(model)


def exclusivity(maps: Tensor) -> Tensor:
    """Return the sum over ordered pairs (i, j) of a class's maps of ||F_i - F_j||^2, mean over images and classes.

    Source: ex-CAM thesis, 3.8.1, L_PW; the means keep lambda independent of batch and number of classes. It has no
    upper bound, so a large lambda makes the loss diverge.

    Args:
        maps: (B, K, M, h, w).
    """
    flat = maps.float().flatten(3)
    # sum_ij |F_i - F_j|^2 = 2 M sum_i |F_i|^2 - 2 |sum_i F_i|^2, about the mean, where nothing cancels
    centred = flat - flat.mean(2, keepdim=True)
    return 2 * maps.shape[2] * centred.square().sum((2, 3)).mean()


def true_regions(maps: Tensor, labels: Tensor, delta: float, size: Sequence[int] | None = None) -> Tensor:
    """Return where the sigmoid of any true class's map is above delta, (B, h, w) bool, or (B, H, W) with a `size`.

    Args:
        maps: Class maps, (B, K, h, w).
        labels: (B,) indices, or (B, K) shares, of which those above 0 are true.
        delta: Threshold, above 0.
        size: (H, W) that the largest sigmoid is resized to before the threshold.
    """
    true = labels > 0 if labels.ndim == 2 else nn.functional.one_hot(labels, maps.shape[1]).bool()
    found = (maps.detach().sigmoid() * true[..., None, None]).amax(1)
    if size is not None:
        found = nn.functional.interpolate(found[:, None].float(), tuple(size), mode="bilinear")[:, 0]
    return found > delta


def joined(model: HeadedModel) -> HeadedModel:
    """Make one model of two trained networks, whose maps are the mean of both, map by map; the given one stays.

    Features stand side by side, F = [F_A; F_B]; the head's weights are [W_A, W_B] / 2, its bias the mean.
    """
    first = copy.deepcopy(model)
    second: Any = first.get_submodule(_SECOND)
    delattr(first, _SECOND)
    head: Any = first.head
    conv, other = head.conv, second.head.conv
    conv.weight = nn.Parameter(torch.cat([conv.weight.detach(), other.weight.detach()], 1) / 2)
    conv.bias = nn.Parameter((conv.bias.detach() + other.bias.detach()) / 2)
    head.channels = conv.in_channels = conv.weight.shape[1]
    first.head = second.head = nn.Identity()
    origin = replace(first.origin, spec=FeatureSpec("join"), tail="first")
    made = HeadedModel(
        Twin(first, second), head, None, origin, preprocess=first.preprocess, class_names=first.class_names
    )
    return made.train(model.training)


def merge(head: Wildcat) -> None:
    """Make one head of two, in place: a mean of linear maps is the map of the mean weights."""
    second: Wildcat = head.get_submodule(_SECOND)  # type: ignore[assignment]
    with torch.no_grad():
        for own, other in zip(head.conv.parameters(), second.conv.parameters(), strict=True):
            own.copy_((own + other) / 2)
    delattr(head, _SECOND)
