"""PaS, percentile as a standard (RCAM): a fraction of a high percentile instead of the maximum."""

from __future__ import annotations

from camtools.checks import number
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step
from camtools.steps.percentile import check_percentile, percentile_of


class PaS(Step):
    """Keep what is strictly above a fraction of a percentile: mask = M' > threshold * per_i(M').

    A few very strong pixels raise the maximum, and with it a threshold that depends on it, until only they are left;
    a high percentile ignores them.

    Reads the normalised `State.maps`, (B, K', H, W); sets `masks`, (B, K', H, W) bool, and `thresholds`, (B, K'), the
    value threshold * per_i(M'). A map of zeros gets an empty mask.

    Source: LID 2020 slides, "Percentile as a Thresholding Standard"; Bae, Noh and Kim, ECCV 2020, whose code uses
    percentile=90, threshold=0.35.

    Args:
        percentile: i, in percent of the map's pixels, in [0, 100], interpolated linearly as by `numpy.percentile`.
            At 100 this is `FixedThreshold(theta=threshold)`.
        threshold: theta, the fraction of the percentile, in [0, 1]. The slides give none; 0.45 with NWC is near the
            best for MobileNetV2 on ILSVRC validation images and its fine-tune on CUB training images (400 each).

    Raises:
        PipelineError: A parameter is not a number in its range; or, when called, the state has no maps.
    """

    stage = Stage.THRESHOLD
    resolution = "image"

    def __init__(self, percentile: float = 98, threshold: float = 0.45) -> None:
        check_percentile(percentile, "PaS")
        number("threshold", threshold, "[0, 1]", owner="PaS", error=PipelineError)
        self.percentile = percentile
        self.threshold = threshold

    def __call__(self, state: State) -> State:
        """Return the state with masks and thresholds."""
        maps = state.require("maps", self)
        thresholds = self.threshold * percentile_of(maps, self.percentile)
        return state.replace(masks=maps > thresholds[..., None, None], thresholds=thresholds)
