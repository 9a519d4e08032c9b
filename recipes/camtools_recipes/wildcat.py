"""`wildcat`: several maps per class, pooled over the class, then over the highest and lowest positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from camtools.heads.wildcat import Wildcat
from camtools.pipeline.pipeline import Pipeline
from camtools.steps.sigmoid import ScoreThreshold, Sigmoid
from camtools.steps.wildcat_maps import READINGS, WildcatMaps
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch
from camtools.training.recipe import Recipe, accuracy
from camtools.training.trainer import Trainer

_THESIS = "ex-CAM thesis, 4.2"


@dataclass(frozen=True, kw_only=True)
class WildcatConfig(TrainConfig):
    """Settings of `wildcat`, and of recipes that derive from it."""

    maps: int = option(8, "M, maps per class.", source=_THESIS, least=1)
    k_max: float = option(0.2, "k+, share of the positions that count as highest.", source=_THESIS, least=0.001, most=1)
    k_min: float = option(0.2, "k-, share that counts as lowest; 0: none.", source=_THESIS, least=0, most=1)
    alpha: float = option(0.6, "Weight of the lowest.", source=_THESIS)
    halve: bool = option(False, "Whether to halve the sum, as the released code of WILDCAT does.")
    read: str = option(
        "mean",
        "How a class's maps become one: their mean, the first, their maximum at each position, or masked, their mean "
        "after ex-CAM's dropout.",
        source="Durand et al., eq. 3; ex-CAM's by measurement",
        choices=READINGS,
        affects=False,
    )
    cut: float = option(
        0.5, "Boxes are drawn where the map's sigmoid is above it.", source="ex-CAM thesis, 3.3", least=0, most=0.99
    )


class WildcatRecipe(Recipe):
    """WILDCAT (Durand et al., CVPR 2017) with the settings of the ex-CAM thesis; single- and multi-label data.

    A fresh head with several maps per class takes the place of pooling and classifier. Binary cross-entropy where
    images have several classes, cross-entropy where each has one. Maps are read as scores: their sigmoid, bias
    included, above 0.5.
    """

    name = "wildcat"
    Config = WildcatConfig
    multilabel = None

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        maps = WildcatMaps(self.config.read, delta=getattr(self.config, "delta", 0.5))
        self.pipeline = Pipeline([maps, Sigmoid(), ScoreThreshold(self.config.cut)])

    def head(self) -> partial[Wildcat]:
        """Return what makes the head of (channels, classes)."""
        own = self.config
        return partial(Wildcat, M=own.maps, k_max=own.k_max, k_min=own.k_min, alpha=own.alpha, halve=own.halve)

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the classification loss, and of single-label data the accuracy."""
        return self.losses_of(trainer, trainer.model(batch.images).float(), batch.labels)

    def losses_of(self, trainer: Trainer, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss of logits, (B, K), and the accuracy where each image has one class.

        Labels of single-label data are shares after CutMix, and stay with the softmax.
        """
        if trainer.shares:
            return {"loss": self.classification_loss(logits, labels)}
        smoothing = self.config.label_smoothing
        losses = {"loss": nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)}
        return losses | ({"accuracy": accuracy(logits.detach(), labels)} if labels.ndim == 1 else {})
