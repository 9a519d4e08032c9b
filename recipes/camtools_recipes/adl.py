"""`adl`: by chance, layers lose their strongest region in training, or have it stressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from camtools.heads.dropout import ADL
from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch, Labels
from camtools.training.frozen import layer_of
from camtools.training.recipe import Recipe
from camtools.training.trainer import Trainer

_PAPER = "Choe and Shim, CVPR 2019"


@dataclass(frozen=True, kw_only=True)
class AdlConfig(TrainConfig):
    """Settings of `adl`."""

    layers: tuple[str, ...] = option(
        (),
        "Names of the layers behind which regions are dropped, as in named_modules(); none: F alone. The paper's VGG16 "
        "has it behind the third and fourth pooling and the last convolution.",
    )
    drop_rate: float = option(0.75, "Chance of the drop mask.", source=_PAPER, least=0, most=1)
    gamma: float = option(
        0.8, "What is dropped: positions above this share of the largest attention.", source=_PAPER, least=0, most=1
    )


class AdlRecipe(Recipe):
    """Attention-based dropout layer (Choe and Shim, CVPR 2019): F loses its strongest region, or has it stressed.

    Attention is the mean over channels. One draw per layer and batch decides whether positions above `gamma` of its
    maximum are dropped, or everything is multiplied by its sigmoid. Nothing is left of it in the trained model.
    """

    name = "adl"
    Config = AdlConfig

    def check(self, labels: Labels, names: Sequence[str]) -> None:
        """Check that hooks run."""
        self.check_hooks()

    def loss(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """Return cross-entropy and accuracy of the batch with its regions dropped."""
        names = [layer_of(trainer.inner, name) for name in self.config.layers] or ["feature_map"]
        with dropping(trainer.inner, names, ADL(self.config.drop_rate, self.config.gamma)):
            return super().loss(trainer, batch)


@contextmanager
def dropping(model: nn.Module, layers: Sequence[str], dropout: nn.Module) -> Iterator[None]:
    """Send the outputs of layers through a dropout for a while.

    Args:
        model: The model.
        layers: Dotted names of modules.
        dropout: From (B, C, h, w) to the same.
    """

    def drop(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        dropped: Tensor = dropout(output)
        return dropped

    with ExitStack() as hooks:
        for layer in layers:  # first, since the hook that captures F has to see what is left
            handle = model.get_submodule(layer).register_forward_hook(drop, prepend=True)
            hooks.callback(handle.remove)
        yield
