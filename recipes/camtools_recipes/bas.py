"""`bas`: a generator of foreground maps learns to leave nothing of the class outside of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from camtools.heads.bas import BAS
from camtools.pipeline.pipeline import Pipeline
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.head_maps import HeadMaps
from camtools.steps.minmax import MinMax
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch, Labels
from camtools.training.recipe import Recipe, accuracy
from camtools.training.trainer import Trainer

_PAPER, _CODE = "Wu et al., CVPR 2022", "the authors' code for CUB and MobileNetV1"


@dataclass(frozen=True, kw_only=True)
class BasConfig(TrainConfig):
    """Settings of `bas`. `cut_after` names the layer whose output is F; `conv` is the width of the head's convolution.

    The paper cuts MobileNetV1 and ResNet-50 before their last stage, at 28 x 28 positions.
    """

    area: float = option(1.5, "Weight of the map's mean.", source=_CODE, least=0)
    guidance: float = option(0.5, "Weight of the foreground's cross-entropy.", source=_CODE, least=0)
    top_k: int = option(
        200,
        "Maps are the mean of those of so many classes, the ones with the highest scores.",
        source=f"{_CODE}; 80 with VGG16",
        least=1,
        affects=False,
    )
    theta: float = option(0.5, "Boxes are drawn above this share of the map's maximum.", least=0, most=0.99)


class BasRecipe(Recipe):
    """Background activation suppression (Wu et al., CVPR 2022): a map outside of which the class's score vanishes.

    S is the class's score, S_b that of F times 1 - M, with the classifier held still. The loss is cross-entropy, plus
    that of the class maps times M, plus S_b / S where S_b < S, plus the mean of M. The map is the mean of many
    classes' M.
    """

    name = "bas"
    Config = BasConfig
    past_model = True
    own_conv = True

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        self.pipeline = Pipeline([HeadMaps(), MinMax(), FixedThreshold(self.config.theta)])

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that each image keeps one class."""
        self.check_one_class()

    def head(self) -> partial[BAS]:
        """Return what makes the head of (channels, classes)."""
        return partial(BAS, width=self.config.conv or 1024, top_k=self.config.top_k)

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of all four, and the accuracy."""
        inner, labels = trainer.inner, batch.labels
        features = inner.features(batch.images)  # type: ignore[operator]
        losses = bas_losses(inner.head, features, labels)  # type: ignore[arg-type]
        config = self.config
        total = losses["class"] + config.guidance * losses["guidance"] + losses["background"]
        return {
            "loss": total + config.area * losses["area"],
            **{name: value.detach() for name, value in losses.items() if name not in ("class", "logits")},
            "accuracy": accuracy(losses["logits"].detach(), labels),
        }


def bas_losses(head: BAS, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return BAS's four losses, scalars, and the logits, (B, K).

    Args:
        head: Classifier and generator.
        features: F, (B, C, h, w).
        labels: (B,).

    Returns:
        "class" and "guidance" (eq. 4), "background" (eq. 2 and 3), "area" (eq. 5) and "logits".
    """
    rows = torch.arange(len(labels), device=labels.device)
    mask, maps = head.foreground(features, labels[:, None]), head.class_maps(features)
    logits, inside = maps.float().mean((2, 3)), (maps * mask).float().mean((2, 3))
    still = {name: value.detach() for name, value in head.named_parameters()}
    outside = functional_call(head, still, (features.detach() * (1 - mask),)).float()[rows, labels]
    score = logits.detach()[rows, labels]
    ratio = outside / (score + 1e-8)
    return {
        "class": nn.functional.cross_entropy(logits, labels),
        "guidance": nn.functional.cross_entropy(inside, labels),
        "background": torch.where(outside < score, ratio, 0.0).mean(),
        "area": mask.float().mean(),
        "logits": logits,
    }
