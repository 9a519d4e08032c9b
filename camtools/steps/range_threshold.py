"""The range threshold: a fraction of the way from a percentile of the map to its maximum."""

from __future__ import annotations

from camtools.checks import number
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step
from camtools.steps.percentile import check_percentile, percentile_of


class RangeThreshold(Step):
    """Keep what is strictly above t = per_p(M') + theta * (max M' - per_p(M')).

    What `IVR(p)` before `FixedThreshold(theta)` keeps, on a map that stays as it is: how high the ground lies in a map
    differs between models, images and input sizes, and so does the best fraction of the maximum, more than the best
    fraction of the range above the ground.

    Reads the normalised `State.maps`, (B, K', H, W); sets `masks`, (B, K', H, W) bool, and `thresholds`, (B, K'), the
    value t. A constant map gets an empty mask.

    Source: the percentile as zero point is that of Kim et al., ICCV 2021 (IVR); as a threshold it is camtools' own.

    Args:
        percentile: p, in percent of the map's pixels, from 0 up to but not including 100, interpolated linearly as by
            `numpy.percentile`.
        theta: Fraction of the range, from 0 up to but not including 1, where every mask would be empty.

    Raises:
        PipelineError: A parameter is not a number in its range; or, when called, the state has no maps.
    """

    stage = Stage.THRESHOLD
    resolution = "image"

    def __init__(self, percentile: float = 30, theta: float = 0.22) -> None:
        check_percentile(percentile, "RangeThreshold", below_100=True)
        number("theta", theta, "[0, 1)", owner="RangeThreshold", error=PipelineError)
        self.percentile = percentile
        self.theta = theta

    def __call__(self, state: State) -> State:
        """Return the state with masks and thresholds."""
        maps = state.require("maps", self)
        low, high = percentile_of(maps, self.percentile), maps.amax((-2, -1))
        thresholds = low + self.theta * (high - low)
        return state.replace(masks=maps > thresholds[..., None, None], thresholds=thresholds)
