"""`tap`: pooling over strong activations only, so that small objects and large ones weigh alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from camtools.heads.pooling import TAP
from camtools.heads.replace import replace_head
from camtools.training.config import TrainConfig, option
from camtools.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TapConfig(TrainConfig):
    """Settings of `tap`."""

    theta: float = option(
        0.1,
        "Positions above it count: a share of each channel's maximum; with relative=false the value itself.",
        source="Bae et al., ECCV 2020; the slides have an absolute 0.05",
    )
    relative: bool = option(True, "Whether theta is a share of the maximum.", source="Bae et al., ECCV 2020")


class TapRecipe(Recipe):
    """Thresholded average pooling (RCAM, Bae et al., ECCV 2020), read with NWC and PaS.

    p_c = sum 1(F_c > t) F_c / sum 1(F_c > t), t = theta * max F_c.
    """

    name = "tap"
    Config = TapConfig
    pipeline = "rcam"

    def build(self, model: nn.Module, classes: int | None) -> nn.Module:
        """Put TAP in the place of the model's pooling."""
        head = TAP(theta=self.config.theta, relative=self.config.relative)
        return replace_head(model, head, classes=classes, output_stride=self.config.output_stride)
