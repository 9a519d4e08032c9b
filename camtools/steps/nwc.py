"""NWC, negative weight clamping (RCAM): a class's negative weights do not take part in its map."""

from __future__ import annotations

from camtools.steps.base import Stage, State, Step


class NWC(Step):
    """Clamp negative class weights to zero before the map is made: M_k = sum_c max(W[k,c], 0) F_c.

    Channels with negative weights are often active on the object's less discriminative parts; leaving them out
    keeps those parts in the map. It acts when mapping only: the classifier's scores are not touched.

    Reads and replaces `State.weights`, of either form: (B or 1, K', C) or (B or 1, K', C, h, w).

    Source: Bae, Noh and Kim, "Rethinking Class Activation Mapping for Weakly Supervised Object Localization",
    ECCV 2020; LID 2020 slides, "Negative Weight Clamping".

    Raises:
        PipelineError: When called on a state without weights.
    """

    stage = Stage.WEIGHTS

    def __call__(self, state: State) -> State:
        """Return the state with non-negative weights."""
        return state.replace(weights=state.require("weights", self).clamp_min(0))
