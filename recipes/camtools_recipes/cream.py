"""`cream`: a plain fine-tune that remembers what each class and its surroundings look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camtools.context_bank import BankUpdates, ContextBank
from camtools.errors import InputError
from camtools.pipeline.pipeline import Pipeline
from camtools.steps.cam import CAM
from camtools.steps.cream import CREAM, UnitFeatures, foreground_mask, mean_features
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.minmax import MinMax
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch, Labels
from camtools.training.recipe import Recipe
from camtools.training.trainer import Trainer

_PAPER = "Xu et al., CVPR 2022"


@dataclass(frozen=True, kw_only=True)
class CreamConfig(TrainConfig):
    """Settings of `cream`. The paper's maps are 28 x 28 of 224 pixels: output_stride=8 where the model's is larger."""

    delta: float = option(
        0.2, "Share of its maximum above which the CAM is foreground.", source=f"{_PAPER}, eq. 3", least=0, most=0.99
    )
    bank_momentum: float = option(
        0.8, "Of the bank; V keeps this share.", source=f"{_PAPER}, eq. 4", least=0, most=0.999
    )
    sigma: float = option(8.0, "Steepness of the clusters.", source=f"{_PAPER}, eq. 7", least=1e-3)
    iterations: int = option(2, "E-steps at test.", source=f"{_PAPER}, Table 7", least=1)
    unit: bool = option(
        False,
        "Whether bank and clusters average features of length 1. The paper averages them as they are, and of features "
        "of very different length that gives the direction of the longest.",
    )
    centre: bool = option(
        False, "Whether features are taken relative to each image's mean when maps are made. Not in the paper."
    )
    add_cam: bool = option(True, "Whether the CAM is added to the map.", source=f"{_PAPER}, eq. 12")
    theta: float = option(
        0.2, "Boxes are drawn above this share of the map's maximum.", source=_PAPER, least=0, most=0.99
    )


class Cream(Recipe):
    """CREAM (Xu et al., CVPR 2022): cross-entropy, and a bank of foreground and background features beside it.

    The weights are those that `gap` would give: the bank takes no part in the loss. Every batch's mean features where
    the true class's CAM is above delta of its maximum, and of the rest, update the class's vectors (eq. 3-4). Maps are
    made by soft clustering that starts from them.
    """

    name = "cream"
    Config = CreamConfig

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        own = self.config
        self._step = CREAM(
            iterations=own.iterations, sigma=own.sigma, delta=own.delta, add_cam=own.add_cam, centre=own.centre
        )
        before = [CAM(), UnitFeatures()] if own.unit else [CAM()]
        self.pipeline = Pipeline([*before, self._step, MinMax(), FixedThreshold(own.theta)])
        self._updates: BankUpdates | None = None

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Refuse what mixes classes in an image, or keeps the bank from looking."""
        refuse_compiled(self.name, self.config)
        if "cutmix" in self.config.augment:
            raise InputError("augment has cutmix: cream needs one class per image, expected it without")

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and accuracy; on the way, the batch updates the bank."""
        with captured(trainer.inner.feature_map) as features:  # type: ignore[arg-type]
            found = super().loss(trainer, batch)
        self.remember(trainer, features[0].detach().float(), batch.labels)
        return found

    def remember(self, trainer: Trainer, features: Tensor, labels: Tensor) -> None:
        """Update the bank with a batch, image after image; processes share their images.

        Args:
            trainer: Whose classifier makes the CAM.
            features: F, (B, C, h, w), without gradient.
            labels: (B,).
        """
        classifier: nn.Linear = trainer.inner.classifier  # type: ignore[assignment]
        with torch.autocast(features.device.type, enabled=False):
            weight = classifier.weight.detach().float()
            maps = torch.einsum("bc,bchw->bhw", weight[labels], features)[:, None]
            mask = foreground_mask(maps, self.config.delta)
            if self.config.unit:
                features = nn.functional.normalize(features, dim=1)
            parts = [mean_features(features, inside) for inside in (mask, ~mask)]
        gathered = [self._gathered(trainer, one) for part in parts for one in part]
        every, valid = (
            self._gathered(trainer, labels),
            self._gathered(trainer, torch.ones_like(labels, dtype=torch.bool)),
        )
        if self._updates is None:
            self._updates = BankUpdates(trainer.classes, features.shape[1], self.config.bank_momentum)
        for number in (0, 1):
            means, found = gathered[2 * number : 2 * number + 2]
            self._updates.add(number, every.cpu()[:, None], valid.cpu()[:, None], means, found)

    def state_dict(self) -> dict[str, Any]:
        """Return the bank on its way."""
        return {} if self._updates is None else {"values": self._updates.values, "counts": self._updates.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self._updates = None
        if state:
            values, counts = state["values"].cpu(), state["counts"].cpu()
            self._updates = BankUpdates(counts.shape[1], values.shape[2], self.config.bank_momentum)
            self._updates.values, self._updates.counts = values.clone(), counts.clone()

    def bank(self, model: nn.Module) -> ContextBank | None:
        """Return the bank as it stands; None before the first batch.

        Args:
            model: Whose features these are.
        """
        from camtools.checkpoints import weights_hash

        if self._updates is None:
            return None
        foreground, background = self._updates.vectors()
        return ContextBank(
            foreground,
            background,
            self._updates.counts.T.contiguous(),
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

    @staticmethod
    def _gathered(trainer: Trainer, value: Tensor) -> Tensor:
        """Return all processes' rows, in their order; zeros make up for shorter batches."""
        accelerator = trainer.accelerator
        if accelerator.num_processes == 1:
            return value
        found: Tensor = accelerator.gather(accelerator.pad_across_processes(value, dim=0))
        return found


@contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect a module's outputs for a while; the hook comes off after an error, too."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output)

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def refuse_compiled(name: str, config: TrainConfig) -> None:
    """Refuse `compile`, under which hooks do not run.

    Raises:
        InputError: It is set.
    """
    if config.compile:
        raise InputError(f"compile=True: {name} looks into the forward by a hook, expected compile=False. Leave it out")
