"""Decode: a fine map that a trained decoder makes of several stages, whatever the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from camtools.errors import PipelineError
from camtools.model.guard import untouched
from camtools.steps.base import Stage, State, Step


class Decode(Step):
    """Take the map from the model's `camtools.heads.MapDecoder`, which the recipe `decoder` trains.

    The map is one of the object, the same for all classes of an image.

    Reads `State.features`, (B, C, h, w), `State.pyramid` and `State.labels`, (B, K'); sets `State.maps`,
    (B, K', h', w') on the grid of the decoder's finest stage, float32 in [0, 1].

    Source: Belharbi et al., "F-CAM: Full resolution class activation maps via guided parametric upscaling", WACV 2022.

    Args:
        decoder: The decoder, left as it was; None takes that of the model, as `Explainer`, `evaluate` and `segment` do,
            or `Decode().fitted(model)`.

    Raises:
        PipelineError: When called, there is no decoder, the state has no features or labels, or other stages than the
            decoder was trained on.
    """

    stage = Stage.MAP

    def __init__(self, decoder: nn.Module | None = None) -> None:
        if decoder is not None and not isinstance(getattr(decoder, "channels", None), tuple):
            raise PipelineError(f"Decode(decoder={type(decoder).__name__}): expected a camtools.heads.MapDecoder")
        self.decoder: Any = decoder
        self.needs_pyramid = 1 if decoder is None else len(decoder.channels) - 1  # type: ignore[arg-type]

    def fitted(self, model: nn.Module) -> Decode:
        """Return the step with the model's decoder.

        Raises:
            PipelineError: It has none.
        """
        if self.decoder is not None:
            return self
        decoder = getattr(model, "decoder", None)
        if decoder is None:
            raise PipelineError(
                f"Decode: {type(model).__name__} has no decoder, expected a model that the recipe decoder trained: "
                "camtools finetune decoder"
            )
        return Decode(decoder)

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h', w')."""
        if self.decoder is None:
            raise PipelineError("Decode has no decoder yet: call Decode().fitted(model), or pass it to an Explainer.")
        features, labels = state.require("features", self), state.require("labels", self)
        stages = [features, *(state.pyramid or ())[: self.needs_pyramid]]
        if tuple(stage.shape[1] for stage in stages) != self.decoder.channels:
            raise PipelineError(
                f"{self!r} is for stages of {self.decoder.channels} channels, but these have "
                f"{tuple(stage.shape[1] for stage in stages)}: expected the network that it was trained on."
            )
        with untouched(self.decoder), torch.no_grad():
            maps = self.decoder([stage.float() for stage in stages]).sigmoid()
        return state.replace(maps=maps.expand(-1, labels.shape[1], -1, -1))

    def __repr__(self) -> str:
        return f"Decode({'' if self.decoder is None else 'MapDecoder'})"
