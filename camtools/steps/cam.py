"""CAM (Zhou): class weights times features, summed over the channels."""

from __future__ import annotations

from torch import Tensor

from camtools.checks import flag
from camtools.errors import PipelineError
from camtools.model.decomposition import class_maps
from camtools.steps.base import Stage, State, Step


class CAM(Step):
    """Make the class maps: M_k = sum_c W[k,c] F_c, without the classifier's bias.

    Weights that vary over positions, (B or 1, K', C, h, w), are summed over C at each position. The maps are signed,
    have the features' dtype (weights are converted to it) and carry gradients to features and weights. The class
    weights are never copied out over the batch, so 1,000 classes of 32 images cost one matrix product.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.

    Args:
        relu: Whether to set negative values of the map to zero, as Grad-CAM does.

    Raises:
        PipelineError: `relu` is not a bool; or, when called, features or weights are missing or their shapes do not
            fit each other.
    """

    stage = Stage.MAP

    def __init__(self, relu: bool = False) -> None:
        flag("relu", relu, owner="CAM", error=PipelineError)
        self.relu = relu

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h, w)."""
        features, weights = state.require("features", self), state.require("weights", self)
        _check(features, weights)
        maps = class_maps(features, weights)
        return state.replace(maps=maps.clamp_min(0) if self.relu else maps)


def _check(features: Tensor, weights: Tensor) -> None:
    """Refuse features and weights that do not belong together."""
    if features.dim() != 4:
        raise PipelineError(f"CAM needs features of shape (B, C, h, w), got {tuple(features.shape)}.")
    batch, channels, *grid = features.shape
    fits = (
        weights.dim() in (3, 5)
        and weights.shape[0] in (1, batch)
        and weights.shape[2] == channels
        and list(weights.shape[3:]) in ([], grid)
    )
    if not fits:
        raise PipelineError(
            f"CAM got weights of shape {tuple(weights.shape)} for features of shape {tuple(features.shape)}; expected "
            f"({batch} or 1, K', {channels}), or ({batch} or 1, K', {channels}, {grid[0]}, {grid[1]}) where they vary "
            "over positions. Take both from the same model and batch."
        )
