"""HeadMaps: maps that the model's own head makes, where it makes some beside its scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from camtools.errors import PipelineError
from camtools.model.guard import untouched
from camtools.steps.base import Stage, State, Step


class HeadMaps(Step):
    """Take each class's map from the head itself: `camtools.heads.BAS` has a generator of maps, `ACoL` two classifiers.

    Reads `State.features`, (B, C, h, w), and `State.labels`, (B, K'); sets `State.maps`, (B, K', h, w), float32.

    Args:
        head: A module with `maps(features, labels)`, left as it was; None takes that of the model, as `Explainer`,
            `evaluate` and `segment` do, or `HeadMaps().fitted(model)`.

    Raises:
        PipelineError: `head` has no `maps`; when called, there is no head, or the state has no features or labels.
    """

    stage = Stage.MAP

    def __init__(self, head: nn.Module | None = None) -> None:
        if head is not None and not callable(getattr(head, "maps", None)):
            raise PipelineError(f"{type(head).__name__} makes no maps: expected a head such as camtools.heads.BAS")
        self.head = head

    def fitted(self, model: nn.Module) -> HeadMaps:
        """Return the step with the model's head.

        Raises:
            PipelineError: The model's head makes no maps.
        """
        if self.head is not None:
            return self
        head = getattr(model, "head", None)
        if not callable(getattr(head, "maps", None)):
            raise PipelineError(
                f"HeadMaps: the head of {type(model).__name__} makes no maps, expected one such as camtools.heads.BAS. "
                "Take another pipeline"
            )
        return HeadMaps(head)

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h, w)."""
        if self.head is None:
            raise PipelineError("HeadMaps has no head yet: call HeadMaps().fitted(model), or pass it to an Explainer.")
        head: Any = self.head
        features, labels = state.require("features", self).float(), state.require("labels", self)
        with untouched(head), torch.no_grad():
            return state.replace(maps=head.maps(features, labels.to(features.device)).float())

    def __repr__(self) -> str:
        return f"HeadMaps({'' if self.head is None else type(self.head).__name__})"
