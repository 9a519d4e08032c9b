"""`tscam`: a vision transformer's patch tokens learn the classes, and its class token's attention says where."""

from __future__ import annotations

from dataclasses import dataclass

from camtools.heads.tscam import TSCAM
from camtools.pipeline.pipeline import Pipeline
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.head_maps import HeadMaps
from camtools.steps.minmax import MinMax
from camtools.training.config import TrainConfig, option
from camtools.training.recipe import Recipe

_CODE = "the authors' code for CUB"


@dataclass(frozen=True, kw_only=True)
class TscamConfig(TrainConfig):
    """Settings of `tscam`. Images are squashed to 256 and cropped to 224, as in the authors' code, by the defaults.

    `cut_after` and `conv` are refused: F is always the patch tokens after the last norm.
    """

    epochs: int = option(60, "Passes over the training images.", source=_CODE, least=1)
    batch_size: int = option(128, "Images per step and process.", source=_CODE, least=1)
    optimizer: str = option("adamw", "What makes steps of gradients.", source=_CODE, choices=("sgd", "adamw"))
    lr: float = option(5e-5, "Learning rate.", source=f"{_CODE}; 5e-4 for ImageNet, in batches of 256", least=0)
    head_lr_factor: float = option(1.0, "The fresh convolution's rate, in multiples of it.", source=_CODE, least=0)
    weight_decay: float = option(0.05, "Of all weights.", source=f"{_CODE}, which spares biases and norms", least=0)
    schedule: str = option(
        "step",
        "How the rate falls: along a cosine to 0, in steps, or not.",
        source=_CODE,
        choices=("cosine", "step", "constant"),
    )
    step_epochs: int = option(30, "Epochs between the steps of schedule=step.", source=_CODE, least=1)
    theta: float = option(
        0.1,
        "Boxes are drawn above this share of the map's maximum.",
        source=f"{_CODE}; 0.12 for ImageNet",
        least=0,
        most=0.99,
    )


class TscamRecipe(Recipe):
    """TS-CAM (Gao et al., ICCV 2021): a ViT's class maps of patch tokens, times its class token's attention.

    For timm's `VisionTransformer` with its class token (ViT, DeiT). Pooling and classifier give way to one fresh 3 x 3
    convolution from the patch tokens to class maps, whose means are the logits; the loss is cross-entropy. A class's
    map is times the class token's attention to the patches, averaged over heads and added up over all blocks.
    """

    name = "tscam"
    Config = TscamConfig

    def __init__(self, config: TrainConfig | None = None) -> None:
        super().__init__(config)
        self.pipeline = Pipeline([HeadMaps(), MinMax(), FixedThreshold(self.config.theta)])

    def head(self) -> type[TSCAM]:
        """Return what makes the head of (channels, classes)."""
        return TSCAM
