"""`cream_regressor`: a network that learns the boxes which CREAM draws on the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camtools.context_bank import BankUpdates, ContextBank
from camtools.errors import InputError
from camtools.explainer import Explainer
from camtools.heads.box_regressor import _BATCH, BoxRegressor
from camtools.model.cam_model import wrap
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.text import named_pipelines
from camtools.progress import progress_bar
from camtools.steps.cam import CAM
from camtools.steps.cream import CREAM, UnitFeatures, foreground_mask, mean_features
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.minmax import MinMax
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch
from camtools.training.optimizer import head_parameters
from camtools.training.recipe import Recipe
from camtools.training.trainer import Trainer
from camtools.training.validation import Validation

_PAPER = "Xu et al., CVPR 2022"
_OWN = "cream"
_V2 = (0.3, 0.5, 0.7)


@dataclass(frozen=True, kw_only=True)
class CreamRegressorConfig(TrainConfig):
    """Settings of `cream_regressor`. The model to start with has to know the data's classes already."""

    maps: str = option(
        _OWN, "What draws the boxes to learn from: cream, with a bank fitted to the training set, or any pipeline."
    )
    bank: str = option("", "File of a bank that a cream run of this model left; empty: fits one.")
    theta: float = option(
        0.2, "With cream: boxes are drawn above this share of the map's maximum.", source=_PAPER, least=0, most=0.99
    )
    delta: float = option(0.2, "Foreground of the CAM.", source=f"{_PAPER}, eq. 3", least=0, most=0.99)
    sigma: float = option(8.0, "Steepness of the clusters.", source=f"{_PAPER}, eq. 7", least=1e-3)
    iterations: int = option(2, "E-steps.", source=f"{_PAPER}, Table 7", least=1)
    unit: bool = option(False, "Whether bank and clusters average features of length 1, see cream.")
    centre: bool = option(False, "Whether features are taken relative to each image's mean, see cream.")
    flip: bool = option(True, "Whether half of the images are mirrored, with their boxes.", source=_PAPER)
    augment: tuple[str, ...] = option((), "Stays empty: nothing else may move an image against its box.", choices=())
    best: str = option("last", "What is best: last, or GT-known or MaxBoxAccV2, which look at the validation's boxes.")
    examples: int = option(0, "Stays 0: a regressor has no maps to draw.", least=0, most=0, affects=False)


class CreamRegressor(Recipe):
    """Pseudo boxes from CREAM, then a class-agnostic box regressor on them (Xu et al., CVPR 2022, section 4.1).

    Before the first epoch the given classifier draws a box on every training image, of its true class. A network with
    the classifier's body and four sigmoid outputs learns them by their mean squared error.
    """

    name = "cream_regressor"
    Config = CreamRegressorConfig

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        own = self.config
        if own.maps == _OWN:
            step = CREAM(iterations=own.iterations, sigma=own.sigma, delta=own.delta, centre=own.centre)
            before = [CAM(), UnitFeatures()] if own.unit else [CAM()]
            self.pipeline = Pipeline([*before, step, MinMax(), FixedThreshold(own.theta)])
        else:
            self.pipeline = list(named_pipelines(own.maps).values())[-1]
        self._teacher: nn.Module | None = None
        self._boxes: Tensor | None = None

    def build(self, model: nn.Module, classes: int | None) -> nn.Module:
        """Return a regressor with the classifier's body; the classifier stays at hand for the boxes.

        Raises:
            InputError: The classifier does not know the data's classes, or its bank cannot be used.
        """
        if classes is not None:
            raise InputError(
                f"cream_regressor learns from the maps of a classifier that knows the data's {classes} classes, but "
                "this one has others: expected one trained on them. Run gap or cream first, and start with its model"
            )
        if self.config.bank:
            step = self._cream  # refused before a file is looked for
            step.bank = ContextBank.load(self.config.bank, model)
        self._teacher = model
        return BoxRegressor.of(model, self.config.output_stride)

    def fast_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the fresh layer's."""
        return head_parameters(model.network)  # type: ignore[arg-type]

    def before_training(self, trainer: Trainer) -> None:
        """Draw the boxes to learn from; a resumed run has them already.

        Raises:
            InputError: No image got a box.
        """
        if self._boxes is not None:
            return
        assert self._teacher is not None
        if self.config.maps == _OWN and not self.config.bank:
            self._cream.bank = self._fitted(trainer)
        explainer = Explainer(self._teacher, self.pipeline, device=trainer.device, batch_size=self.config.batch_size)
        boxes = torch.zeros(len(trainer.data), 4, device=trainer.device)
        with progress_bar(len(trainer.data), "Drawing boxes", trainer.accelerator.is_main_process) as tick:
            for batch in trainer.plain_batches():
                height, width = batch.images.shape[-2:]
                sides = torch.tensor([width, height, width, height])
                found: Any = explainer(batch.images, target=batch.labels.tolist())
                for index, one in zip(batch.indices.tolist(), found, strict=True):
                    if one.box is not None:
                        boxes[index] = (one.box.cpu() / sides).to(boxes)
                tick(len(batch.indices))
        if trainer.accelerator.num_processes > 1:
            boxes = trainer.accelerator.reduce(boxes, "sum")  # each process has drawn its own images' only
        self._boxes = boxes.cpu()
        if not self._boxes.any():
            raise InputError(
                f"maps={self.config.maps!r} draws no box on any training image: expected some. Lower theta, or take "
                "another pipeline"
            )

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of the four shares, over the images that have a box."""
        assert self._boxes is not None
        target, images = self._boxes[batch.indices].to(batch.images), batch.images
        known = target.any(1)
        if self.config.flip:
            turned = (torch.rand(len(target)) < 0.5).to(images.device)
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
            target = torch.where(turned[:, None], mirrored(target), target)
        found = trainer.model(images).float()
        errors = (found - target.float()).square().mean(1)
        return {"loss": (errors * known).sum() / known.sum().clamp_min(1)}

    def validate(self, model: nn.Module, validation: Validation) -> dict[str, float]:
        """Return GT-known and MaxBoxAccV2 of the regressor's boxes; there is no threshold to choose."""
        assert isinstance(model, BoxRegressor)
        ious = box_hits(model, validation.data, validation.config.val_limit, validation.config.batch_size)
        share = {iou: 100 * float((ious >= iou).float().mean()) for iou in _V2}
        names = {"GT-known": share[0.5], "MaxBoxAccV2": sum(share.values()) / len(share)}
        return {f"{self.name}/{name}": value for name, value in names.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the boxes to learn from."""
        return {} if self._boxes is None else {"boxes": self._boxes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._boxes = state["boxes"].cpu() if state else None

    @property
    def _cream(self) -> CREAM:
        found = next((step for step in self.pipeline if isinstance(step, CREAM)), None)
        if found is None:
            raise InputError(f"bank={self.config.bank!r} goes with maps='cream', but maps is {self.config.maps!r}")
        return found

    def _fitted(self, trainer: Trainer) -> ContextBank:
        """Return a bank of the training images as they are, the mean over all of each class."""
        assert self._teacher is not None
        from camtools.model.device import on_device

        model, sums = wrap(on_device(self._teacher, trainer.device)), None
        for batch in trainer.plain_batches():
            with torch.no_grad():
                found = model.activations(batch.images)
                features = found.features.float()
                maps = torch.einsum("bkc,bchw->bkhw", found.weights(batch.labels).float(), features)
            mask = foreground_mask(maps, self.config.delta)
            if self.config.unit:
                features = nn.functional.normalize(features, dim=1)
            sums = sums or BankUpdates(trainer.classes, features.shape[1], None)
            labels = batch.labels.cpu()[:, None]
            for part, inside in enumerate((mask, ~mask)):
                sums.add(part, labels, torch.ones_like(labels, dtype=torch.bool), *mean_features(features, inside))
        assert sums is not None
        if trainer.accelerator.num_processes > 1:
            values, counts = sums.values.to(trainer.device), sums.counts.to(trainer.device)
            sums.values = trainer.accelerator.reduce(values, "sum").cpu()
            sums.counts = trainer.accelerator.reduce(counts, "sum").cpu()
        foreground, background = sums.vectors()
        return ContextBank(foreground, background, sums.counts.T.contiguous(), mode="mean", delta=self.config.delta)


def mirrored(boxes: Tensor) -> Tensor:
    """Return boxes of the mirrored images: x0, y0, x1, y1 as shares, (B, 4), to 1 - x1, y0, 1 - x0, y1."""
    return torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], dim=1)


def box_hits(regressor: BoxRegressor, data: Any, limit: int | None = None, batch_size: int = _BATCH) -> Tensor:
    """Return the IoU of every image's box with its best true one.

    Args:
        regressor: Left as it was.
        data: What `camtools.evaluate` takes; images without a true box are passed over.
        limit: At most this many images.
        batch_size: Images per forward.

    Returns:
        (N,) float32 in [0, 1].

    Raises:
        InputError: No image has a true box.
    """
    from torchvision.ops import box_iou

    from camtools.datasets.selection import Selection

    selection = Selection(data, limit)
    found: list[Tensor] = []
    for start in range(0, len(selection.indices), batch_size):
        records = [selection.record(index) for index in selection.indices[start : start + batch_size]]
        truths = [record.boxes[~record.boxes.isnan().any(1)] for record in records]
        known = [i for i, truth in enumerate(truths) if len(truth)]
        if known:
            boxes = regressor.boxes([records[i].image for i in known], batch_size)
            found += [box_iou(boxes[row : row + 1], truths[i]).max() for row, i in enumerate(known)]
    if not found:
        raise InputError(f"{selection.spec}: no image has a true box, expected some to measure the boxes against")
    return torch.stack(found)
