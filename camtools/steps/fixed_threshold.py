"""The fixed threshold: a fraction of the map's maximum."""

from __future__ import annotations

from camtools.checks import number
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step


class FixedThreshold(Step):
    """Keep what is strictly above a fraction of the map's maximum: mask = M' > theta * max M'.

    Reads the normalised `State.maps`, (B, K', H, W); sets `masks`, (B, K', H, W) bool, and `thresholds`, (B, K'). A
    map of zeros gets an empty mask.

    Source: Zhou et al., CVPR 2016, section 3.2 ("20% of the max value"); "maximum as a standard" in the RCAM slides.

    Args:
        theta: Fraction of the maximum, from 0 up to but not including 1, where every mask would be empty.

    Raises:
        PipelineError: `theta` is not a number in [0, 1); or, when called, the state has no maps.
    """

    stage = Stage.THRESHOLD
    resolution = "image"

    def __init__(self, theta: float = 0.2) -> None:
        number("theta", theta, "[0, 1)", owner="FixedThreshold", error=PipelineError)
        self.theta = theta

    def __call__(self, state: State) -> State:
        """Return the state with masks and thresholds."""
        maps = state.require("maps", self)
        thresholds = self.theta * maps.amax((-2, -1))
        return state.replace(masks=maps > thresholds[..., None, None], thresholds=thresholds)
