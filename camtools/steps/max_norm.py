"""MaxNorm: normalise from 0 up to the maximum, or to a high percentile."""

from __future__ import annotations

import torch

from camtools.steps.base import Stage, State, Step
from camtools.steps.percentile import check_percentile, percentile_of


class MaxNorm(Step):
    """Normalise each class map on its own, with 0 where it was 0: M' = min(max(M, 0) / per_p(max(M, 0)), 1).

    With the 100th percentile that is normalisation by the maximum; with the 90th it is that of PaS, in which the few
    highest values do not decide. The maps are float32 within [0, 1]. A map whose percentile is 0 counts as zeros, and
    so does one with a NaN or an infinity in it. Use it instead of `MinMax`.

    Reads and replaces `State.maps`, (B, K', H, W), at the original image's resolution.

    Source: "max" and "PaS" of Kim et al., "Normalization Matters in Weakly Supervised Object Localization", ICCV 2021,
    table 1; PaS after Bae et al., ECCV 2020.

    Args:
        percentile: Of the map's pixels, in [0, 100], interpolated linearly.

    Raises:
        PipelineError: `percentile` is not a number in [0, 100]; or, when called, the state has no maps.
    """

    stage = Stage.REFINE
    resolution = "image"
    normalises = True

    def __init__(self, percentile: float = 100) -> None:
        check_percentile(percentile, "MaxNorm")
        self.percentile = percentile

    def __call__(self, state: State) -> State:
        """Return the state with maps in [0, 1]."""
        maps = state.require("maps", self).float()
        positive = maps.clamp_min(0)
        high = percentile_of(positive, self.percentile)[..., None, None]
        usable = (high > 0) & high.isfinite() & maps.abs().amax((-2, -1), keepdim=True).isfinite()
        normalised = (positive / torch.where(usable, high, 1.0)).clamp_max(1)
        return state.replace(maps=torch.where(usable, normalised, 0.0))
