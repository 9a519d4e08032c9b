"""UnitFeatures: what follows on the feature grid sees directions of features, not their lengths."""

from __future__ import annotations

from camtools.steps.base import Stage, State, Step


class UnitFeatures(Step):
    """Scale the feature of every position to length 1, for the steps after it: F <- F / |F|; zeros stay.

    Before `CREAM`, with a bank of such features, it makes the clusters' means those of directions. The clusters are
    compared by cosine, and of vectors of very different length a plain mean (eq. 4 and 9) is the direction of the
    longest few. The mean direction is what maximises the expected cosine likelihood.

    Maps that were made already stay as they are. Reads and replaces `State.features`, (B, C, h, w).

    Raises:
        PipelineError: When called on a state without features.
    """

    stage = Stage.REFINE
    resolution = "feature"

    def __call__(self, state: State) -> State:
        """Return the state with features of length 1."""
        features = state.require("features", self).float()
        lengths = features.norm(dim=1, keepdim=True)
        return state.replace(features=features / lengths.where(lengths > 0, lengths.new_ones(())))
