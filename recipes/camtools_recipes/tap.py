"""`tap`: pooling over strong activations only, so that small objects and large ones weigh alike."""

from __future__ import annotations

from dataclasses import dataclass

from camtools.heads.pooling import TAP
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

    def head(self) -> TAP:
        """Return the pooling with these settings."""
        return TAP(theta=self.config.theta, relative=self.config.relative)
