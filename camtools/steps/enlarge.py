"""Enlarge: show the network a larger image, so that its maps have more cells."""

from __future__ import annotations

from camtools.checks import number
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step


class Enlarge(Step):
    """Make the maps from an input `scale` times as large, with a forward of its own.

    The class and its score still come from the model at its own input size, where it is best; only features, weights
    and so maps come from the larger input: the image itself, preprocessed to sides that are the nearest multiples of
    32 to `scale` times the model's own (224 becomes 320 at 1.43), or, for ready tensors and preprocessing that camtools
    can't scale, the input interpolated bilinearly. A forward costs about `scale` squared as much as the model's own.
    Models that take inputs of one size only (most vision transformers) keep theirs; a warning says so once.

    `Explainer`, `segment` and `evaluate` look at it; a `Pipeline` that is called on a `State` takes the features as
    they are.

    Source: evaluating at a larger size than the training's is common practice; how far it carries before the class
    itself suffers is in Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019.

    Args:
        scale: Sides of the input over the model's own, finite and above 0.

    Raises:
        PipelineError: `scale` is out of range.
    """

    stage = Stage.INPUT

    def __init__(self, scale: float = 1.43) -> None:
        number("scale", scale, owner="Enlarge", error=PipelineError)
        self.scale = scale

    def __call__(self, state: State) -> State:
        """Return the state as it is: who makes it has looked at `scale` before."""
        return state
