"""Absolute-negative recombination (Zhang): negative class weights count with their size."""

from __future__ import annotations

from camtools.steps.base import Stage, State, Step


class AbsoluteNegative(Step):
    """Replace each class weight by its absolute value before the map is made: M_k = sum_c abs(W[k,c]) F_c.

    Where NWC leaves negative channels out, this adds them to the positive ones, so that object parts which only
    they respond to enter the map. The classifier's scores are not touched.

    Reads and replaces `State.weights`, of either form: (B or 1, K', C) or (B or 1, K', C, h, w).

    Source: Zhang, Chang and Bui, "Improving Class Activation Map for Weakly Supervised Object Localization",
    ICASSP 2022, eq. 3.

    Raises:
        PipelineError: When called on a state without weights.
    """

    stage = Stage.WEIGHTS

    def __call__(self, state: State) -> State:
        """Return the state with the weights' absolute values."""
        return state.replace(weights=state.require("weights", self).abs())
