"""Min-max normalisation: each map onto [0, 1]."""

from __future__ import annotations

import torch

from camtools.steps.base import Stage, State, Step


class MinMax(Step):
    """Normalise each class map on its own: M' = (M - min M) / (max M - min M), in float32, within [0, 1].

    A map without contrast counts as zeros, and so does one with a NaN or an infinity in it (as in Choe et al.'s
    evaluation code): such a map shows nothing, and its mask is empty. Every other map has a 0 and a 1.

    Reads and replaces `State.maps`, (B, K', H, W), at the original image's resolution.

    Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
    `normalize_scoremap`.

    Raises:
        PipelineError: When called on a state without maps.
    """

    stage = Stage.REFINE
    resolution = "image"
    normalises = True

    def __call__(self, state: State) -> State:
        """Return the state with maps in [0, 1]."""
        maps = state.require("maps", self).float()
        low = maps.amin((-2, -1), keepdim=True)
        span = maps.amax((-2, -1), keepdim=True) - low
        usable = (span > 0) & span.isfinite()
        normalised = (maps - low).div_(torch.where(usable, span, 1.0)).masked_fill_(~usable, 0.0)
        return state.replace(maps=normalised)
