"""`decoder`: a fine map of the object, learnt from what the trained classifier draws on the training images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, unfold

from camtools.errors import InputError, ModelError
from camtools.heads.decoder import MapDecoder
from camtools.heads.headed import HeadedModel
from camtools.heads.pooling import GAP
from camtools.heads.replace import replace_head
from camtools.model.cam_model import CamModel, wrap
from camtools.model.guard import untouched
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.text import one_pipeline
from camtools.steps.decode import Decode
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.minmax import MinMax
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch
from camtools.training.recipe import Recipe
from camtools.training.trainer import Trainer
from camtools_recipes.teacher import TaughtConfig, explained

_PAPER = "F-CAM, Belharbi et al., WACV 2022"
_REACH = 2  # positions to each side that the colour term looks at


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TaughtConfig):
    """Settings of `decoder`. The model to start with has to know the data's classes; it stays as it is."""

    optimizer: str = option("adamw", "What makes steps of gradients.", choices=("sgd", "adamw"))
    lr: float = option(6e-3, "Learning rate of the decoder.", least=0)
    weight_decay: float = option(1e-2, "Of all weights.", least=0)
    epochs: int = option(1, "Passes over the training images; with more it learns its teacher's mistakes too.", least=1)
    maps: str = option("best", "The pipeline whose maps are learnt from.")
    above: float = option(
        0.07,
        "What is so much above the pipeline's threshold is learnt as object.",
        source=f"after {_PAPER}, whose seeds are drawn at random; chosen for best on 600 training images of CUB",
        least=0,
        most=1,
    )
    below: float = option(
        0.18, "What is so much below it is learnt as background; between them nothing is learnt.", least=0, most=1
    )
    width: int = option(32, "Channels of the decoder's layers.", least=1)
    stages: int = option(3, "Earlier stages it sees beside F, the coarsest first.", least=1)
    colour: float = option(
        0.0,
        "Weight of the colour term: neighbours that look alike are both object or both not.",
        source=_PAPER,
        least=0,
    )
    colour_sigma: float = option(0.5, "Distance of normalised colours at which neighbours count exp(-1/2).", least=1e-3)
    size: float = option(0.0, "Weight of the size term, which keeps object and background from vanishing.", least=0)
    theta: float = option(0.5, "Boxes are drawn above this share of the map's maximum.", least=0, most=0.99)
    augment: tuple[str, ...] = option(
        ("flip",),
        "crop, flip, vflip and colour, as elsewhere: maps move with their images.",
        choices=("crop", "flip", "vflip", "colour"),
    )
    best: str = option(
        "last",
        "Which epoch's model is the result: the last, that of the lowest training loss, or that of the best metric of "
        "camtools.evaluate, such as MaxBoxAccV2, which looks at the validation set's boxes.",
    )


class DecoderRecipe(Recipe):
    """A fine, class-agnostic map from the maps of the trained classifier (after F-CAM, Belharbi et al., WACV 2022).

    Before the first epoch the classifier draws the map of every training image's class. A decoder of its stages'
    features learns to tell what is clearly above the pipeline's threshold from what is clearly below. What is common to
    many images stays, the mistakes on single ones do not. The classifier, frozen, gives the class and its score as
    before, and the decoder the map, in one forward.
    """

    name = "decoder"
    Config = DecoderConfig
    past_model = True

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        self.pipeline = Pipeline([Decode(), MinMax(), FixedThreshold(self.config.theta)])
        self._drawing, _ = one_pipeline(self.config.maps)
        self._teacher: nn.Module | None = None
        self._maps: Tensor | None = None
        self._watched: CamModel | None = None

    def build(self, model: nn.Module, classes: int | None) -> nn.Module:
        """Return the classifier with a fresh decoder, which alone learns.

        Raises:
            InputError: The classifier does not know the data's classes.
            ModelError: Its head cannot be kept, or the network has no earlier stage.
        """
        if classes is not None:
            raise InputError(
                f"decoder learns from the maps of a classifier that knows the data's {classes} classes, but this one "
                "has others: expected one trained on them. Run gap first, and start with its model"
            )
        own = isinstance(model, HeadedModel)
        built: Any = copy.deepcopy(model) if own else replace_head(model, GAP())
        if not own and built.origin.cut:
            raise ModelError(
                f"the head of {type(model).__name__} is not pooling + linear, so decoder cannot keep it: expected a "
                "model that is. Train it by gap first, which gives it such a head"
            )
        stages = _stages(wrap(built), wrap(built).example(), self.config.stages)
        for parameter in built.parameters():
            parameter.requires_grad_(False)
        built.decoder = MapDecoder([stage.shape[1] for stage in stages], self.config.width).to(stages[0].device)
        self._teacher = model
        return built  # type: ignore[no-any-return]

    def fast_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return none: the decoder is all that learns."""
        return []

    def before_training(self, trainer: Trainer) -> None:
        """Draw the maps to learn from; a resumed run has them already."""
        self._watched = wrap(trainer.inner)  # which finds the stages once
        if self._maps is not None:
            return
        assert self._teacher is not None
        stages = _stages(self._watched, next(iter(trainer.plain_batches([0]))).images, self.config.stages)
        grid = stages[-1].shape[2:]
        maps = torch.zeros(len(trainer.data), *grid, device=trainer.device)
        size = self.config.teacher_size
        for index, found in explained(trainer, self._teacher, self._drawing, "Drawing maps", size):
            # Signed distance to the threshold, so that 0 is the object's edge whatever the pipeline.
            maps[index] = interpolate((found.map - found.threshold)[None, None].to(maps), grid, mode="area")[0, 0]
        self._maps = trainer.accelerator.reduce(maps, "sum").cpu().half()  # each process has drawn its own images' only

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the terms, and each."""
        assert self._maps is not None and self._watched is not None
        decoder: Any = trainer.inner.decoder
        logits = decoder(_stages(self._watched, batch.images, self.config.stages)).float()[:, 0]
        target = trainer.maps_of(batch, self._maps[batch.indices].float()).to(logits)
        target = interpolate(target[:, None], logits.shape[1:], mode="area")[:, 0]
        losses = {"seeds": seed_loss(logits, target, self.config.above, self.config.below)}
        if self.config.colour:
            images = interpolate(batch.images.float(), logits.shape[1:], mode="area")
            losses["colour"] = self.config.colour * colour_loss(logits.sigmoid(), images, self.config.colour_sigma)
        if self.config.size:
            losses["size"] = self.config.size * size_loss(logits.sigmoid())
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def state_dict(self) -> dict[str, Any]:
        """Return the maps to learn from."""
        return {} if self._maps is None else {"maps": self._maps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._maps = state["maps"].cpu() if state else None


def _stages(model: CamModel, images: Tensor, count: int) -> list[Tensor]:
    """Return F and earlier stages, coarse to fine, without gradient, in eval mode."""
    with untouched(model), torch.no_grad():
        found = model.activations(images, pyramid=count)
    return [found.features, *(found.pyramid or ())]


def seed_loss(logits: Tensor, target: Tensor, above: float, below: float) -> Tensor:
    """Return the mean binary cross-entropy over positions that are clearly object or clearly not, a scalar.

    Args:
        logits: (B, h, w).
        target: Map less the threshold, (B, h, w).
        above: It is object where it is more than this,
        below: and background where it is less than minus this.
    """
    inside = target > above
    known = inside | (target < -below)
    losses = binary_cross_entropy_with_logits(logits, inside.to(logits), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)


def colour_loss(maps: Tensor, images: Tensor, sigma: float) -> Tensor:
    """Return the relaxed Potts energy of neighbours that look alike, over the sum of their weights, a scalar.

    sum_ij w_ij (m_i (1 - m_j) + (1 - m_i) m_j) / sum_ij w_ij for j within 2 positions of i,
    w_ij = exp(-||x_i - x_j||^2 / (2 sigma^2)); 0 where a map is 0 everywhere, or 1.

    Source: Obukhov et al., "Gated CRF loss", 2019; F-CAM has a dense CRF in its place.

    Args:
        maps: In [0, 1], (B, h, w).
        images: Colours, (B, 3, h, w).
        sigma: Distance of colours.
    """
    side = 2 * _REACH + 1

    def around(values: Tensor) -> Tensor:
        return unfold(values, side, padding=_REACH).unflatten(1, (values.shape[1], -1))

    near = around(torch.ones_like(images[:1, :1]))[:, 0]  # 0 outside of the image
    centre = images.flatten(2)[:, :, None]
    weights = (-(around(images) - centre).square().sum(1) / (2 * sigma**2)).exp() * near
    own, other = maps.flatten(1)[:, None], around(maps[:, None])[:, 0]
    return (weights * (own * (1 - other) + (1 - own) * other)).sum() / weights.sum()


def size_loss(maps: Tensor) -> Tensor:
    """Return -log of the mean of the maps, and of what they leave, averaged over images, a scalar.

    Source: F-CAM's absolute size constraint, with the logarithm as its barrier.

    Args:
        maps: In [0, 1], (B, h, w).
    """
    area = maps.mean((1, 2)).clamp(1e-6, 1 - 1e-6)
    return -(area.log() + (1 - area).log()).mean()
