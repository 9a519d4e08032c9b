"""EdgeLevel: the level at which a map's edges lie becomes one half, so that one threshold fits all images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from camtools.checks import number
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step
from camtools.steps.minmax import MinMax


class EdgeLevel(Step):
    """Rescale each map such that the level of its edges is 1/2: the odds of its values over the odds of that level.

    How high the ground lies in a map, and how far the object stands out, differs from image to image, and with it the
    threshold that draws the object. With M min-max normalised and |∇M| its slope, by central differences,

        t = sum_i |∇M_i|^power M_i / sum_i |∇M_i|^power,    M'_i = odds(M_i) / odds(t),    odds(m) = m / (1 - m),

    and M' as a share again, M' / (1 + M'): 0 stays 0, t becomes 1/2 and 1 stays 1. The map's contours are the same,
    only their levels differ, so that an image for itself loses and gains nothing.

    Reads and replaces `State.maps`, (B, K', h, w), on the feature grid; float32 in [0, 1]. A constant map, or one with
    a NaN or an infinity in it, becomes zeros.

    Source: camtools' own. That an object's boundary is where a map is steep is also what the adaptive threshold of
    Zhang, Chang and Bui, ICASSP 2022 (`AdaptiveThreshold`) goes by.

    Args:
        power: How much more steep places count, above 0.

    Raises:
        PipelineError: `power` is out of range; or, when called, the state has no maps.
    """

    stage = Stage.REFINE
    resolution = "feature"

    def __init__(self, power: float = 1.0) -> None:
        power = number("power", power, owner="EdgeLevel", error=PipelineError)
        self.power = power

    def __call__(self, state: State) -> State:
        """Return the state with maps in [0, 1]."""
        maps = MinMax()(state).require("maps", self)
        steep = slope(maps) ** self.power
        total = steep.sum((2, 3), keepdim=True)
        level = (steep * maps).sum((2, 3), keepdim=True) / torch.where(total > 0, total, 1.0)
        inside, outside = maps * (1 - level), (1 - maps) * level
        return state.replace(maps=torch.where(total > 0, inside / (inside + outside).clamp_min(1e-12), 0.0))


def slope(maps: Tensor) -> Tensor:
    """Return the length of the gradient by central differences, values beyond the edge repeated, (B, K', h, w)."""
    wide = pad(maps, (1, 1, 1, 1), mode="replicate")
    rows = wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
    columns = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]
    return (rows.square() + columns.square()).sqrt() / 2
