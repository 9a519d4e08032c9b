"""What `cream` and `cream_regressor` share: the settings of CREAM's maps, and the pipeline made of them."""

from __future__ import annotations

from dataclasses import dataclass

from camtools.pipeline.pipeline import Pipeline
from camtools.steps.cam import CAM
from camtools.steps.cream import CREAM, UnitFeatures
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.minmax import MinMax
from camtools.training.config import TrainConfig, option

PAPER = "Xu et al., CVPR 2022"


@dataclass(frozen=True, kw_only=True)
class CreamMapsConfig(TrainConfig):
    """Settings of CREAM's maps. The paper's are 28 x 28 of 224 pixels: output_stride=8 where the model's is larger."""

    delta: float = option(
        0.2, "Share of its maximum above which the CAM is foreground.", source=f"{PAPER}, eq. 3", least=0, most=0.99
    )
    sigma: float = option(8.0, "Steepness of the clusters.", source=f"{PAPER}, eq. 7", least=1e-3)
    iterations: int = option(2, "E-steps.", source=f"{PAPER}, Table 7", least=1)
    unit: bool = option(
        False,
        "Whether bank and clusters average features of length 1. The paper averages them as they are, and of features "
        "of very different length that gives the direction of the longest.",
    )
    centre: bool = option(
        False, "Whether features are taken relative to each image's mean when maps are made. Not in the paper."
    )
    theta: float = option(
        0.2, "Boxes are drawn above this share of the map's maximum.", source=PAPER, least=0, most=0.99
    )


def cream_pipeline(config: CreamMapsConfig, add_cam: bool = True) -> tuple[Pipeline, CREAM]:
    """Return how maps are read, and the step in it that takes the bank.

    Args:
        config: Settings.
        add_cam: Whether the CAM is added to the map (eq. 12).
    """
    step = CREAM(
        iterations=config.iterations, sigma=config.sigma, delta=config.delta, add_cam=add_cam, centre=config.centre
    )
    unit = [UnitFeatures()] if config.unit else []
    return Pipeline([CAM(), *unit, step, MinMax(), FixedThreshold(config.theta)]), step
