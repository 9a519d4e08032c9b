"""IVR, inferior value removal (Kim): normalise from a percentile instead of the minimum."""

from __future__ import annotations

import torch

from camtools.steps.base import Stage, State, Step
from camtools.steps.percentile import check_percentile, percentile_of


class IVR(Step):
    """Normalise each class map on its own from a percentile up: M' = max(M - per_p(M), 0) / (max M - per_p(M)).

    A few exceptionally low values shift all others when the minimum is the zero point; here everything below the
    percentile becomes 0 instead. The maps are float32 within [0, 1]. A map whose maximum is not above its
    percentile counts as zeros, and so does one with a NaN or an infinity in it. Use it instead of `MinMax`.

    Reads and replaces `State.maps`, (B, K', H, W), at the original image's resolution.

    Source: Kim et al., "Normalization Matters in Weakly Supervised Object Localization", ICCV 2021, IVR. The default
    is that of the authors' released code (GenDisc/IVR, `config.py`, `--percentile 0.45`).

    Args:
        percentile: The share that becomes 0, in percent of the map's pixels, from 0 (min-max normalisation) up to but
            not including 100. Interpolated linearly, as by `numpy.percentile`; the authors' code takes the next value
            above instead, which differs by less than one pixel's rank.

    Raises:
        PipelineError: `percentile` is not a number in [0, 100); or, when called, the state has no maps.
    """

    stage = Stage.REFINE
    resolution = "image"
    normalises = True

    def __init__(self, percentile: float = 45) -> None:
        check_percentile(percentile, "IVR", below_100=True)
        self.percentile = percentile

    def __call__(self, state: State) -> State:
        """Return the state with maps in [0, 1]."""
        maps = state.require("maps", self).float()
        low = percentile_of(maps, self.percentile)[..., None, None]
        span = maps.amax((-2, -1), keepdim=True) - low
        usable = (span > 0) & span.isfinite() & maps.amin((-2, -1), keepdim=True).isfinite()
        normalised = (maps - low).clamp_min(0) / torch.where(usable, span, 1.0)
        return state.replace(maps=torch.where(usable, normalised, 0.0))
