"""`wgap`: pooling weighted by the activations' own softmax."""

from __future__ import annotations

from dataclasses import dataclass

from camtools.heads.pooling import WGAP
from camtools.training.config import TrainConfig, option
from camtools.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class WgapConfig(TrainConfig):
    """Settings of `wgap`."""

    lr: float = option(
        3e-4, "Learning rate of the backbone. What is pooled is many times a mean, and at 0.001 maps lose.", least=0
    )
    divide: bool = option(
        False, "Whether to divide by H x W, as the paper's eq. 1 has it; a fine-tune then starts from tiny logits."
    )


class WgapRecipe(Recipe):
    """Weighted global average pooling (Zhang et al., eq. 1), read with absolute weights and the adaptive threshold.

    G_c = sum S_c F_c, S_c the softmax of F_c over the positions.
    """

    name = "wgap"
    Config = WgapConfig
    pipeline = "adaptive"

    def head(self) -> WGAP:
        """Return the pooling with these settings."""
        return WGAP(divide=self.config.divide)
