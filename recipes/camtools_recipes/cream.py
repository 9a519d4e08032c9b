"""`cream`: a plain fine-tune that remembers what each class and its surroundings look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camtools.checkpoints import weights_hash
from camtools.context_bank import BankUpdates, ContextBank
from camtools.errors import InputError
from camtools.steps.cream import foreground_mask, mean_features
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch, Labels
from camtools.training.recipe import Recipe, captured
from camtools.training.trainer import Trainer
from camtools_recipes.cream_maps import PAPER, CreamMapsConfig, cream_pipeline


@dataclass(frozen=True, kw_only=True)
class CreamConfig(CreamMapsConfig):
    """Settings of `cream`."""

    bank_momentum: float = option(
        0.8, "Of the bank; V keeps this share.", source=f"{PAPER}, eq. 4", least=0, most=0.999
    )
    add_cam: bool = option(True, "Whether the CAM is added to the map.", source=f"{PAPER}, eq. 12")


class CreamRecipe(Recipe):
    """CREAM (Xu et al., CVPR 2022): cross-entropy, and a bank of foreground and background features beside it.

    The weights are those that `gap` would give: the bank takes no part in the loss. Every batch's mean features where
    the true class's CAM is above delta of its maximum, and of the rest, update the class's vectors (eq. 3-4). Maps are
    made by soft clustering that starts from them. With `ema`, whose weights are averages, every epoch ends with a pass
    over the plain training images instead, so that the bank is of the weights that it goes with.
    """

    name = "cream"
    Config = CreamConfig

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        self.pipeline, self._step = cream_pipeline(self.config, self.config.add_cam)
        self._updates: BankUpdates | None = None

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that each image keeps one class, and that the bank can look into the forward."""
        self.check_hooks()
        self.check_one_class()

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and accuracy; on the way, the batch updates the bank."""
        if trainer.averaged is not None:
            return super().loss(trainer, batch)
        with captured(trainer.inner.feature_map) as features:  # type: ignore[arg-type]
            losses = super().loss(trainer, batch)
        self.remember(trainer, trainer.inner, features[0].detach().float(), batch.labels)
        return losses

    def after_epoch(self, trainer: Trainer) -> None:
        """Make the bank anew from the averaged weights, where there are such."""
        if trainer.averaged is None:
            return
        if trainer.accelerator.num_processes > 1:
            raise InputError(f"ema={self.config.ema:g}: cream makes its bank in one process then, expected ema=0")
        self._updates, model = None, trainer.trained()
        for batch in trainer.plain_batches():
            with torch.no_grad():
                features = model.features(batch.images)  # type: ignore[operator]
            self.remember(trainer, model, features.float(), batch.labels)

    def remember(self, trainer: Trainer, model: nn.Module, features: Tensor, labels: Tensor) -> None:
        """Update the bank with a batch, image after image, those of all processes in turn.

        Args:
            trainer: Knows the classes.
            model: Whose classifier makes the CAM.
            features: F, (B, C, h, w), without gradient.
            labels: (B,).
        """
        from accelerate.utils import gather_object

        classifier: nn.Linear = model.classifier  # type: ignore[assignment]
        with torch.autocast(features.device.type, enabled=False):
            weight = classifier.weight.detach().float()
            maps = torch.einsum("bc,bchw->bhw", weight[labels], features)[:, None]
            mask = foreground_mask(maps, self.config.delta)
            if self.config.unit:
                features = nn.functional.normalize(features, dim=1)
            parts = [[value.cpu() for value in mean_features(features, inside)] for inside in (mask, ~mask)]
        if self._updates is None:
            self._updates = BankUpdates(trainer.classes, self.config.bank_momentum)
        for targets, every in gather_object([(labels.cpu()[:, None], parts)]):
            for part, (means, present) in enumerate(every):
                self._updates.add(part, targets, torch.ones_like(present), means, present)

    def state_dict(self) -> dict[str, Any]:
        """Return the bank on its way."""
        return {} if self._updates is None else {"values": self._updates.values, "counts": self._updates.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self._updates = None
        if state:
            self._updates = BankUpdates(state["counts"].shape[1], self.config.bank_momentum)
            self._updates.values, self._updates.counts = (state[name].cpu().clone() for name in ("values", "counts"))

    def bank(self, model: nn.Module) -> ContextBank | None:
        """Return the bank as it stands; None before the first batch.

        Args:
            model: Whose features these are.
        """
        if self._updates is None:
            return None
        return self._updates.bank(
            layer="feature_map",
            side="output",
            model=type(model).__name__,
            weights=weights_hash(model),
            momentum=self.config.bank_momentum,
            delta=self.config.delta,
        )

    def finished(self, model: nn.Module) -> nn.Module:
        """Return the model, and read its maps with the bank as it stands."""
        self._step.bank = self.bank(model)
        return model

    def files(self, model: nn.Module) -> dict[str, Callable[[Path], object]]:
        """Return the bank's file, "bank.safetensors", which `ContextBank.load` reads."""
        bank = self.bank(model)
        return {} if bank is None else {"bank.safetensors": bank.save}
