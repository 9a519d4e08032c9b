"""`acol`: a second classifier learns from what the first one did not look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from camtools.heads.acol import ACoL
from camtools.pipeline.pipeline import Pipeline
from camtools.steps.head_maps import HeadMaps
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch, Labels
from camtools.training.recipe import Recipe, accuracy
from camtools.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class AcolConfig(TrainConfig):
    """Settings of `acol`. `cut_after` names the layer whose output is F; `conv` is the width of the classifiers."""

    delta: float = option(
        0.7,
        "Where the first classifier's map, from 0 to 1, is at least this, the second sees nothing.",
        source="wsolevaluation; Zhang et al., CVPR 2018, tried 0.5 to 0.9",
        least=0.01,
        most=1,
    )


class AcolRecipe(Recipe):
    """Adversarial complementary learning (Zhang et al., CVPR 2018): two classifiers, one on what the other leaves.

    Two heads of fresh convolutions share the network. The loss is the sum of their cross-entropies; the second one's
    features are 0 where the first one's map of the true class is strong. The map is the larger of both.
    """

    name = "acol"
    Config = AcolConfig
    past_model = True
    own_conv = True
    pipeline = Pipeline(HeadMaps())

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that each image keeps one class."""
        self.check_one_class()

    def head(self) -> partial[ACoL]:
        """Return what makes the head of (channels, classes)."""
        return partial(ACoL, width=self.config.conv or 1024, delta=self.config.delta)

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of both cross-entropies, the second one's, and the first one's accuracy."""
        inner: Any = trainer.inner
        first, second = inner.head.both(inner.features(batch.images), batch.labels)
        logits, others = first.float().mean((2, 3)), second.float().mean((2, 3))
        smoothing, erased = self.config.label_smoothing, cross_entropy(others, batch.labels)
        loss = cross_entropy(logits, batch.labels, label_smoothing=smoothing) + erased
        return {"loss": loss, "erased": erased, "accuracy": accuracy(logits.detach(), batch.labels)}
