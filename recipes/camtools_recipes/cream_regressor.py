"""`cream_regressor`: a network that learns the boxes which CREAM draws on the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torchvision.ops import box_iou

from camtools.context_bank import BankUpdates, ContextBank
from camtools.datasets.selection import Selection
from camtools.engine import Engine
from camtools.errors import InputError
from camtools.heads.box_regressor import BoxRegressor
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.text import named_pipelines
from camtools.progress import progress_bar
from camtools.steps.cam import CAM
from camtools.steps.cream import CREAM, UnitFeatures
from camtools.steps.ddt import DDT, principal_direction
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.max_norm import MaxNorm
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch
from camtools.training.optimizer import head_parameters
from camtools.training.recipe import Recipe
from camtools.training.trainer import Trainer
from camtools.training.validation import Validation
from camtools_recipes.cream_maps import PAPER, CreamMapsConfig, cream_pipeline
from camtools_recipes.teacher import TaughtConfig, explained

_OWN, _DDT = "cream", "ddt"
_IOUS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2


@dataclass(frozen=True, kw_only=True)
class CreamRegressorConfig(CreamMapsConfig, TaughtConfig):
    """Settings of `cream_regressor`. The model to start with has to know the data's classes, unless `maps` is ddt."""

    maps: str = option(
        _OWN,
        "What draws the boxes to learn from: cream, with a bank fitted to the training set; ddt, the principal "
        "component of each class's features, which PSOL (Zhang et al., CVPR 2020) learns from; or any pipeline.",
    )
    hidden: int = option(
        0, "Width of a hidden layer, Linear-ReLU, before the four outputs; 0: none. PSOL's code: 512.", least=0
    )
    form: str = option(
        "corners",
        "What is learnt of a box: corners x0, y0, x1, y1, or xywh, its corner and its sides, as in PSOL's code.",
        choices=("corners", "xywh"),
    )
    bank: str = option("", "File of a bank that a cream run of this model left; empty: fits one.")
    augment: tuple[str, ...] = option(
        ("flip",),
        "crop, flip, vflip and colour, as elsewhere: boxes move with their images.",
        source=f"{PAPER}; PSOL crops too",
        choices=("crop", "flip", "vflip", "colour"),
    )
    best: str = option(
        "last",
        "Which epoch's model is the result: the last, that of the lowest training loss, or that of the best "
        "GT-known@own or MaxBoxAccV2, which look at the validation set's boxes.",
        choices=("last", "loss", "GT-known@own", "MaxBoxAccV2"),
    )
    examples: int = option(0, "Stays 0: a regressor has no maps to draw.", least=0, most=0, affects=False)


class CreamRegressorRecipe(Recipe):
    """Pseudo boxes from CREAM, then a class-agnostic box regressor on them (Xu et al., CVPR 2022, section 4.1).

    Before the first epoch the given classifier draws a box on every training image, of its true class. A network with
    the classifier's body and four sigmoid outputs learns them by their mean squared error.
    """

    name = "cream_regressor"
    Config = CreamRegressorConfig

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        self._cream: CREAM | None = None
        self._ddt = DDT() if self.config.maps == _DDT else None
        if self.config.maps == _OWN:
            self.pipeline, self._cream = cream_pipeline(self.config)
        elif self._ddt is not None:
            self.pipeline = Pipeline([self._ddt, MaxNorm(), FixedThreshold(0.0)])
        else:
            self.pipeline = list(named_pipelines(self.config.maps).values())[-1]
        self._teacher: nn.Module | None = None
        self._boxes: Tensor | None = None

    def build(self, model: nn.Module, classes: int | None) -> nn.Module:
        """Return a regressor with the classifier's body; the classifier stays at hand for the boxes.

        Raises:
            InputError: The classifier does not know the data's classes, or its bank cannot be used.
        """
        if classes is not None and self._ddt is None:
            raise InputError(
                f"cream_regressor learns from the maps of a classifier that knows the data's {classes} classes, but "
                "this one has others: expected one trained on them. Run gap or cream first, and start with its model"
            )
        if self.config.bank:
            if self._cream is None:
                raise InputError(f"bank={self.config.bank!r} goes with maps='cream', but maps is {self.config.maps!r}")
            self._cream.bank = ContextBank.load(self.config.bank, model)
        self._teacher = model
        return BoxRegressor.of(model, hidden=self.config.hidden, form=self.config.form, **self.place)

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
        if self._cream is not None and not self.config.bank:
            self._cream.bank = self._fitted(trainer, self._teacher)
        if self._ddt is not None:
            self._find_common(self._ddt, trainer, self._teacher)
        boxes, size = torch.zeros(len(trainer.data), 4, device=trainer.device), self.config.teacher_size
        for index, explanation in explained(trainer, self._teacher, self.pipeline, "Drawing boxes", size):
            if explanation.box is not None:
                height, width = explanation.map.shape
                boxes[index] = (explanation.box.cpu() / torch.tensor([width, height, width, height])).to(boxes)
        self._boxes = trainer.accelerator.reduce(boxes, "sum").cpu()  # each process has drawn its own images' only
        if not self._boxes.any():
            raise InputError(
                f"maps={self.config.maps!r} draws no box on any training image: expected some. Lower theta, or take "
                "another pipeline"
            )

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of the four shares, over the images that have a box."""
        assert self._boxes is not None
        target = trainer.boxes_of(batch, self._boxes[batch.indices]).to(batch.images)
        known = (target[:, 2:] > target[:, :2]).all(1)
        learnt = trainer.model(batch.images).float()
        if self.config.form == "xywh":
            target, learnt = (torch.cat([box[:, :2], box[:, 2:] - box[:, :2]], 1) for box in (target, learnt))
        errors = (learnt - target.float()).square().mean(1)
        return {"loss": (errors * known).sum() / known.sum().clamp_min(1)}

    def validate(self, model: nn.Module, validation: Validation) -> dict[str, float]:
        """Return GT-known@own and MaxBoxAccV2 of the regressor's boxes; there is no threshold to choose."""
        assert isinstance(model, BoxRegressor)
        ious = box_ious(model, validation.data, validation.config.val_limit, validation.config.batch_size)
        shares = {iou: 100 * float((ious >= iou).float().mean()) for iou in _IOUS}
        metrics = {"GT-known@own": shares[0.5], "MaxBoxAccV2": sum(shares.values()) / len(shares)}
        return {f"{self.name}/{name}": value for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the boxes to learn from."""
        return {} if self._boxes is None else {"boxes": self._boxes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._boxes = state["boxes"].cpu() if state else None

    def _find_common(self, step: DDT, trainer: Trainer, teacher: nn.Module) -> None:
        """Find what the images of each class have in common."""
        if trainer.accelerator.num_processes > 1:
            raise InputError("maps='ddt' looks at all images of a class in one process, but there are several")
        engine = Engine(teacher, [Pipeline([CAM()])], device=trainer.device)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        with progress_bar(len(trainer.data), "Looking for what classes share") as advance:
            for label in sorted({own[0] for own in trainer.data.labels}):
                members = [i for i, own in enumerate(trainer.data.labels) if own[0] == label]
                batches = trainer.plain_batches(members, self.config.teacher_size)
                found[label] = principal_direction(
                    torch.cat([engine.forward(batch.images).activations.features.float().cpu() for batch in batches])
                )
                advance(len(members))
        step.mean, step.vectors = (torch.zeros(trainer.classes, len(found[min(found)][0])) for _ in range(2))
        for label, (mean, vector) in found.items():
            step.mean[label], step.vectors[label] = mean, vector

    def _fitted(self, trainer: Trainer, teacher: nn.Module) -> ContextBank:
        """Return a bank of the training images as they are, the mean over all of each class."""
        steps = [CAM(), UnitFeatures()] if self.config.unit else [CAM()]
        engine, updates = Engine(teacher, [Pipeline(steps)], device=trainer.device), BankUpdates(trainer.classes)
        for batch in trainer.plain_batches(size=self.config.teacher_size):
            state = engine.maps(engine.forward(batch.images), batch.labels.cpu()[:, None])[0]
            updates.add_maps(state, torch.ones(len(batch.labels), 1, dtype=torch.bool), self.config.delta)
        gathered = gather_object([(updates.values, updates.counts)])
        updates.values, updates.counts = (torch.stack(parts).sum(0) for parts in zip(*gathered, strict=True))
        return updates.bank(mode="mean", delta=self.config.delta)


def box_ious(regressor: BoxRegressor, data: Any, limit: int | None = None, batch_size: int = 32) -> Tensor:
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
    selection = Selection(data, limit)
    ious: list[Tensor] = []
    for start in range(0, len(selection.indices), batch_size):
        records = [selection.record(index) for index in selection.indices[start : start + batch_size]]
        truths = [record.boxes[~record.boxes.isnan().any(1)] for record in records]
        known = [i for i, truth in enumerate(truths) if len(truth)]
        if known:
            boxes = regressor.boxes([records[i].image for i in known], batch_size)
            ious += [box_iou(boxes[row : row + 1], truths[i]).max() for row, i in enumerate(known)]
    if not ious:
        raise InputError(f"{selection.spec}: no image has a true box, expected some to measure the boxes against")
    return torch.stack(ious)
