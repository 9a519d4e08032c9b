"""Decode: a fine map that a trained decoder makes of several stages, whatever the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from camtools.checks import number
from camtools.errors import PipelineError
from camtools.model.guard import untouched
from camtools.steps.base import Stage, State, Step
from camtools.steps.minmax import MinMax


class Decode(Step):
    """Take the map from the model's `camtools.heads.MapDecoder`, which the recipe `decoder` trains, or blend it in.

    The decoder's map is one of the object, the same for all classes of an image. With a `share` below 1 the result is
    a weighted mean of it and of the map so far, both from 0 to 1: where a pipeline and what was learnt from it err
    differently, the mean is better than either.

    Reads `State.features`, (B, C, h, w), `State.pyramid` and `State.maps`, (B, K', h'', w''); replaces `State.maps` by
    (B, K', h', w') on the grid of the decoder's finest stage, float32 in [0, 1].

    Source: Belharbi et al., "F-CAM: Full resolution class activation maps via guided parametric upscaling", WACV 2022;
    the blend is ours.

    Args:
        share: Of the decoder's map, in [0, 1].
        decoder: The decoder, left as it was; None takes that of the model, as `Explainer`, `evaluate` and `segment` do,
            or `Decode().fitted(model)`.

    Raises:
        PipelineError: `share` is out of range; or, when called, there is no decoder, the state has no features or maps,
            or other stages than the decoder was trained on.
    """

    stage = Stage.REFINE

    def __init__(self, share: float = 1.0, decoder: nn.Module | None = None) -> None:
        self.share = number("share", share, "[0, 1]", owner="Decode", error=PipelineError)
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
        return Decode(self.share, decoder)

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h', w')."""
        if self.decoder is None:
            raise PipelineError("Decode has no decoder yet: call Decode().fitted(model), or pass it to an Explainer.")
        features, maps = state.require("features", self), state.require("maps", self)
        stages = [features, *(state.pyramid or ())[: self.needs_pyramid]]
        if tuple(stage.shape[1] for stage in stages) != self.decoder.channels:
            raise PipelineError(
                f"{self!r} is for stages of {self.decoder.channels} channels, but these have "
                f"{tuple(stage.shape[1] for stage in stages)}: expected the network that it was trained on."
            )
        with untouched(self.decoder), torch.no_grad():
            decoded = self.decoder([stage.float() for stage in stages]).sigmoid()
        decoded = decoded.expand(-1, maps.shape[1], -1, -1)
        if self.share < 1:
            before, decoded = (MinMax()(State(maps=values)).require("maps", self) for values in (maps, decoded))
            before = interpolate(before, decoded.shape[2:], mode="bilinear", align_corners=False)
            decoded = before.lerp(decoded, self.share)
        return state.replace(maps=decoded)

    def __repr__(self) -> str:
        trained = "" if self.decoder is None else ", decoder=MapDecoder"
        return f"Decode(share={self.share:g}{trained})"
