"""Centre: a map that knows nothing of the image, the floor that every method has to beat."""

from __future__ import annotations

import torch

from camtools.steps.base import Stage, State, Step


class Centre(Step):
    """Make every map the same Gaussian about the image's centre, whatever the model says.

    Photographers put objects in the middle. Level sets, and so the metrics at the best threshold, do not depend on the
    Gaussian's width, a quarter of each side here.

    Reads the grid of `State.features`, (B, C, h, w), and the classes of `State.labels`, (B, K'); sets `State.maps`,
    (B, K', h, w), float32 in (0, 1].

    Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020 (center baseline).

    Raises:
        PipelineError: When called on a state without features or labels.
    """

    stage = Stage.MAP

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h, w)."""
        features, labels = state.require("features", self), state.require("labels", self)
        rows, columns = (
            (((torch.arange(side, device=features.device) + 0.5) / side - 0.5) / 0.25).square()
            for side in features.shape[2:]
        )
        maps = (-(rows[:, None] + columns) / 2).exp()
        return state.replace(maps=maps.expand(*labels.shape, -1, -1))
