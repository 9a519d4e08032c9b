"""Reading class maps as scores: the sigmoid of every position, and a threshold on it that no maximum moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import nn

from camtools.checks import share
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step


class Sigmoid(Step):
    """Take each class map to sigmoid(M_k + b_k), in float32, within [0, 1]. Use it in the place of `MinMax`.

    For heads that score maps rather than pooled features (WILDCAT, ex-CAM): there M_k + b_k is a score of its own, and
    a map of an absent class stays low everywhere, where min-max normalisation would stretch it. A map with a NaN or an
    infinity in it becomes zeros.

    Reads and replaces `State.maps`, (B, K', H, W), at the original image's resolution; with a bias reads
    `State.labels`, (B, K').

    Source: ex-CAM thesis, section 4.2 (maps "are passed through sigmoid and thresholded").

    Args:
        bias: b of every class, K numbers; None for zeros. `Sigmoid.of(model)` takes a model's own.

    Raises:
        PipelineError: `bias` is no sequence of finite numbers; or, when called, the state has no maps or labels, or a
            label has no bias.
    """

    stage = Stage.REFINE
    resolution = "image"
    normalises = True

    def __init__(self, bias: Sequence[float] | None = None) -> None:
        numbers = isinstance(bias, Sequence) and all(isinstance(b, Real) and math.isfinite(b) for b in bias)
        if bias is not None and not numbers:
            raise PipelineError(f"Sigmoid(bias={bias!r}): bias must be finite numbers, one per class, or None.")
        self.bias = None if bias is None else tuple(float(number) for number in bias)

    @classmethod
    def of(cls, model: nn.Module) -> Sigmoid:
        """Return the step with the bias of a model whose head scores maps (`Wildcat`, `ExCAM`).

        Raises:
            PipelineError: The model's head is of another kind.
        """
        head: Any = getattr(model, "head", None)
        if not callable(getattr(head, "map_pool", None)):  # what a `camtools.heads.MapHead` has and others have not
            raise PipelineError(
                f"{type(model).__name__} has no head that scores maps: expected one such as Wildcat. Use Sigmoid()"
            )
        return cls(None if head.bias is None else head.bias.detach().tolist())

    def __call__(self, state: State) -> State:
        """Return the state with maps in [0, 1]."""
        maps = state.require("maps", self).float()
        scores = maps
        if self.bias is not None:
            labels = state.require("labels", self).to(maps.device)
            if labels.shape != maps.shape[:2] or (labels.numel() and int(labels.max()) >= len(self.bias)):
                raise PipelineError(
                    f"Sigmoid has the bias of {len(self.bias)} classes, which does not fit labels of shape "
                    f"{tuple(labels.shape)} up to {int(labels.max()) if labels.numel() else 0} for maps "
                    f"{tuple(maps.shape)}. Use Sigmoid.of(model) with the model that made the maps."
                )
            scores = maps + maps.new_tensor(self.bias)[labels][..., None, None]
        sound = maps.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        # In float32 the last bit depends on a value's place in memory; MPS has nothing wider.
        values = (scores if scores.device.type == "mps" else scores.double()).sigmoid().float()
        return state.replace(maps=values.where(sound, maps.new_zeros(())))


class ScoreThreshold(Step):
    """Keep what is strictly above a value: mask = M' > value, whatever the map's maximum.

    So a map that is low everywhere gets an empty mask. Reads the normalised `State.maps`, (B, K', H, W); sets `masks`,
    (B, K', H, W) bool, and `thresholds`, (B, K').

    Source: ex-CAM thesis, sections 3.3 and 4.2 (0.5 on the sigmoid).

    Args:
        value: In [0, 1).

    Raises:
        PipelineError: `value` is not a number in [0, 1); or, when called, the state has no maps.
    """

    stage = Stage.THRESHOLD
    resolution = "image"

    def __init__(self, value: float = 0.5) -> None:
        self.value = share("value", value, owner="ScoreThreshold", error=PipelineError)

    def __call__(self, state: State) -> State:
        """Return the state with masks and thresholds."""
        maps = state.require("maps", self)
        return state.replace(masks=maps > self.value, thresholds=maps.new_full(maps.shape[:2], self.value))
