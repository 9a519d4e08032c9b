"""`i2c`: strong positions of two images of a class, and of the class's images so far, have like features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pairwise_distance

from camtools.errors import InputError
from camtools.heads.layers import zero_to_one
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch, Labels, balanced_batches
from camtools.training.recipe import Recipe, accuracy
from camtools.training.trainer import Trainer

_CODE = "the authors' code for CUB"
_FEWEST, _SHARE = 30, 0.7  # of positions above the threshold, and the share of the maximum that is taken otherwise
_FORGET = 0.002  # the centres' rate is exp(-_FORGET * updates)


@dataclass(frozen=True, kw_only=True)
class I2cConfig(TrainConfig):
    """Settings of `i2c`. A batch has pairs of images of `batch_size` / 2 classes, or of as many as there are."""

    stochastic: float = option(0.008, "Weight of the distance between both images' seeds.", source=_CODE, least=0)
    centres: float = option(0.003, "Weight of the distance to the class's centre.", source=_CODE, least=0)
    seeds: int = option(3, "Random strong positions per image.", source=_CODE, least=1)
    strong: float = option(0.7, "Above it the map, from 0 to 1, is strong.", source=_CODE, least=0, most=1)


class I2cRecipe(Recipe):
    """Inter-image communication (Zhang et al., ECCV 2020): objects of a class have like features in all its images.

    A batch has two images of each of its classes. In each, some random positions are drawn where the true class's map
    is strong. The loss is cross-entropy, plus the distances between both images' features there, plus the distance of
    their mean to the class's centre, which follows these means ever more slowly.
    """

    name = "i2c"
    Config = I2cConfig
    past_model = True

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        self._centres: Tensor | None = None
        self._counts: Tensor | None = None

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that pairs can be made of the images."""
        if self.config.batch_size < 2:
            raise InputError("batch_size=1: i2c needs pairs of images of a class, expected at least 2")
        self.check_one_class()

    def batches(self, labels: Labels, epoch: int) -> list[list[int]]:
        """Return batches of two images of each of so many classes; a class with one image repeats it."""
        single = [own[0] for own in labels]
        classes = min(self.config.batch_size // 2, len(set(single)))
        return balanced_batches(single, classes, 2, self.config.seed, epoch)

    def before_training(self, trainer: Trainer) -> None:
        """Check that one process sees all images of a class.

        Raises:
            InputError: There are several.
        """
        if trainer.accelerator.num_processes > 1:
            raise InputError("i2c keeps its classes' centres in one process, but there are several: expected one")

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum, the two distances, and the accuracy; the centres move."""
        inner: Any = trainer.inner
        features, labels = inner.features(batch.images), batch.labels
        logits = inner.logits_of(features).float()
        features = features.float()
        with torch.no_grad():
            weight = inner.classifier.weight.float()[labels]
            maps = zero_to_one(torch.einsum("bc,bchw->bhw", weight, features))
        seeds = seed_features(features, maps, self.config.strong, self.config.seeds)
        pairs = seeds.unflatten(0, (-1, 2))  # (P, 2, n, C)
        stochastic = pairwise_distance(pairs[:, 0].flatten(0, 1), pairs[:, 1].flatten(0, 1)).mean()
        means, classes = pairs.mean((1, 2)), labels[::2]
        centre = pairwise_distance(self._towards(means.detach(), classes, trainer.classes), means).mean()
        loss = cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        loss = loss + self.config.stochastic * stochastic + self.config.centres * centre
        accurate = accuracy(logits.detach(), labels)
        return {"loss": loss, "stochastic": stochastic, "centre": centre, "accuracy": accurate}

    def _towards(self, means: Tensor, classes: Tensor, count: int) -> Tensor:
        """Return the centres that means are drawn to, (P, C), and move them on; a new class's is its first mean."""
        if self._centres is None or self._counts is None:
            self._centres, self._counts = means.new_zeros(count, means.shape[1]), means.new_zeros(count)
        counts = self._counts[classes]
        target = torch.where((counts > 0)[:, None], self._centres[classes], means)
        rate = (-_FORGET * counts).exp()[:, None]
        self._centres[classes] = (1 - rate) * target + rate * means
        self._counts[classes] = counts + 1
        return target

    def state_dict(self) -> dict[str, Any]:
        """Return the centres."""
        return {} if self._centres is None else {"centres": self._centres, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._centres, self._counts = (state[name].clone() if state else None for name in ("centres", "counts"))


def seed_features(features: Tensor, maps: Tensor, strong: float, count: int) -> Tensor:
    """Return the features at random positions where maps are strong, (B, count, C).

    Positions are drawn with replacement among those above `strong`, or above 0.7 of the maximum in an image with fewer
    than 30 such.

    Args:
        features: F, (B, C, h, w).
        maps: From 0 to 1, (B, h, w); a constant one has all positions alike.
        strong: Threshold.
        count: Of positions.
    """
    values = maps.flatten(1)
    few = (values > strong).sum(1, keepdim=True) < _FEWEST
    level = torch.where(few, values.amax(1, keepdim=True) * _SHARE, strong)
    chances = (values > level).float()
    chances = torch.where(chances.sum(1, keepdim=True) > 0, chances, 1.0)
    chosen = torch.multinomial(chances, count, replacement=True)
    return features.flatten(2).transpose(1, 2).gather(1, chosen[..., None].expand(-1, -1, features.shape[1]))
