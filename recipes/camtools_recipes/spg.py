"""`spg`: branches learn masks from the classifier's maps, and guide the features before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate

from camtools.heads.layers import of_classes, zero_to_one
from camtools.heads.spg import SPG
from camtools.pipeline.pipeline import Pipeline
from camtools.steps.head_maps import HeadMaps
from camtools.training.augment import input_size
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch, Labels
from camtools.training.recipe import Recipe, accuracy
from camtools.training.trainer import Trainer

_CODE = "wsolevaluation"
_FEWEST, _SHARE = 30, 0.7  # of pixels above a threshold, and the share of the maximum that is taken otherwise


def _threshold(value: float, what: str) -> Any:
    return option(value, f"{what}.", source=_CODE, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class SpgConfig(TrainConfig):
    """Settings of `spg`. `cut_after` names the layer whose output is F; `conv` is the width of the head."""

    map_high: float = _threshold(0.7, "Above it the class map, from 0 to 1, is object for branch B2")
    map_low: float = _threshold(0.01, "Below it the class map is background for branch B2")
    b2_high: float = _threshold(0.5, "Above it what B2 says is object for branch B1")
    b2_low: float = _threshold(0.05, "Below it what B2 says is background for branch B1")
    mean_high: float = _threshold(0.7, "Above it the mean of B1 and B2 is object for branch C")
    mean_low: float = _threshold(0.1, "Below it the mean of B1 and B2 is background for branch C")


class SpgRecipe(Recipe):
    """Self-produced guidance (Zhang et al., ECCV 2018): branches learn masks from the classifier's maps.

    The class map teaches B2 where it is clearly high or low, B2 teaches B1, and their mean teaches C, by binary
    cross-entropy at the input's resolution. All pull the features that they share with the classifier together on
    the object. The map is the classifier's own.
    """

    name = "spg"
    Config = SpgConfig
    past_model = True
    own_conv = True
    pipeline = Pipeline(HeadMaps())

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that each image keeps one class."""
        self.check_one_class()

    def head(self) -> partial[SPG]:
        """Return what makes the head of (channels, classes)."""
        return partial(SPG, width=self.config.conv or 512)

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the cross-entropy and the branches' losses, each of them, and the accuracy."""
        inner, config, labels = trainer.inner, self.config, batch.labels
        found = {name: value.float() for name, value in inner.head.branches(inner.features(batch.images)).items()}  # type: ignore[union-attr,operator]
        logits = found["maps"].mean((2, 3))
        size = input_size(config, trainer.preprocess)
        b1, b2, c, own = (
            interpolate(maps, size, mode="bilinear", align_corners=False)
            for maps in (found["b1"], found["b2"], found["c"], of_classes(found["maps"], labels[:, None]))
        )
        losses = {
            "b2": guidance(b2, zero_to_one(own.detach()), config.map_high, config.map_low),
            "b1": guidance(b1, b2.detach().sigmoid(), config.b2_high, config.b2_low),
            "c": guidance(c, (b1.detach().sigmoid() + b2.detach().sigmoid()) / 2, config.mean_high, config.mean_low),
        }
        classes = cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        loss = classes + torch.stack(list(losses.values())).sum()
        return {"loss": loss, **losses, "accuracy": accuracy(logits.detach(), labels)}


def guidance(logits: Tensor, teacher: Tensor, high: float, low: float) -> Tensor:
    """Return a branch's mean binary cross-entropy where its teacher is clear, a scalar; 0 where it nowhere is.

    Object is where the teacher is above `high`, or above 0.7 of its maximum in an image with fewer than 30 such pixels;
    background, which takes precedence, where it is below `low`.

    Args:
        logits: (B, 1, H, W).
        teacher: In [0, 1], (B, 1, H, W), without gradient.
        high: Threshold of the object.
        low: Threshold of the background.
    """
    few = (teacher > high).sum((2, 3), keepdim=True) < _FEWEST
    level = torch.where(few, teacher.amax((2, 3), keepdim=True) * _SHARE, high)
    background = teacher < low
    known = (teacher > level) | background
    losses = binary_cross_entropy_with_logits(logits, (~background).to(logits), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)
