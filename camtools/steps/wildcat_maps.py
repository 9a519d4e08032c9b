"""WildcatMaps: how the several maps per class of WILDCAT and ex-CAM become the class's one map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camtools.checks import number, one_of
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step, check_tensors

READINGS = ("mean", "first", "max", "masked")


class WildcatMaps(Step):
    """Make each class's map of the M maps that a head has for it (`Wildcat`, `ExCAM`), their biases included.

    | read | map |
    |---|---|
    | "mean" | the mean of the M: what is pooled in training |
    | "first" | the first |
    | "max" | at each position the largest |
    | "masked" | the mean after the sequential dropout of ex-CAM, as in training |

    WILDCAT averages. ex-CAM's thesis does not say how its maps are read. With delta 0.5, later maps add nothing but
    values of at most 0 in training and get no gradient where the first one fires, so their plain mean is a poor
    reading.

    Reads `State.features`, (B, C, h, w), and `State.labels`, (B, K'); sets `State.maps`, (B, K', h, w), float32.

    Source: Durand et al., "WILDCAT", CVPR 2017, eq. 3; ex-CAM thesis, section 3.3.

    Args:
        read: One of the table.
        weight: Of every map, (K, M, C), or None for the model's own, as `Explainer` and `evaluate` take them, or
            `WildcatMaps().fitted(model)`.
        bias: (K, M), or None for zeros.
        delta: Threshold of the dropout on the maps' sigmoid, in (0, 1); for "masked".

    Raises:
        PipelineError: A parameter is none of these; or, when called, there are no weights, or the state has no features
            or labels, or those of another model.
    """

    stage = Stage.MAP

    def __init__(
        self, read: str = "mean", weight: Tensor | None = None, bias: Tensor | None = None, delta: float = 0.5
    ) -> None:
        one_of("read", read, tuple(READINGS), owner="WildcatMaps", error=PipelineError)
        check_tensors("WildcatMaps", weight=weight, bias=bias)
        shapes = [None if value is None else tuple(value.shape) for value in (weight, bias)]
        if weight is not None and (weight.dim() != 3 or shapes[1] not in (None, shapes[0][:2])):  # type: ignore[index]
            raise PipelineError(f"WildcatMaps: weight is {shapes[0]} and bias {shapes[1]}, expected (K, M, C), (K, M).")
        number("delta", delta, "(0, 1)", owner="WildcatMaps", error=PipelineError)
        self.read, self.weight, self.bias, self.delta = read, weight, bias, delta

    def fitted(self, model: nn.Module) -> WildcatMaps:
        """Return the step with the maps' weights of a model with such a head.

        Raises:
            PipelineError: The model's head is of another kind.
        """
        if self.weight is not None:
            return self
        head: Any = getattr(model, "head", None)
        conv, several = getattr(head, "conv", None), getattr(head, "M", None)
        if not isinstance(conv, nn.Conv2d) or several is None:
            raise PipelineError(f"{type(model).__name__} has no head with several maps per class: expected Wildcat's")
        weight = conv.weight.detach().float().view(-1, several, conv.in_channels)
        bias = None if conv.bias is None else conv.bias.detach().float().view(-1, several)
        return WildcatMaps(self.read, weight, bias, self.delta)

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h, w)."""
        if self.weight is None:
            raise PipelineError(f"{self!r} has no weights yet: call its fitted(model), or pass it to an Explainer.")
        features, labels = state.require("features", self).float(), state.require("labels", self)
        if features.shape[1] != self.weight.shape[2] or int(labels.max()) >= len(self.weight):
            raise PipelineError(
                f"{self!r} does not fit features of {features.shape[1]} channels and classes up to {int(labels.max())}."
                " Take the model that made them."
            )
        labels = labels.to(self.weight.device)
        weight = self.weight[labels][:, :, :1] if self.read == "first" else self.weight[labels]
        maps = torch.einsum("bkmc,bchw->bkmhw", weight.to(features.device), features)
        if self.bias is not None:
            maps = maps + self.bias[labels].to(maps)[:, :, : maps.shape[2], None, None]
        if self.read == "max":
            return state.replace(maps=maps.amax(2))
        if self.read == "masked":
            maps = maps * remaining((maps.sigmoid() <= self.delta).to(maps.dtype))
        return state.replace(maps=maps.mean(2))

    def __repr__(self) -> str:
        shape = "" if self.weight is None else f", weight={tuple(self.weight.shape)}"
        return f"WildcatMaps(read={self.read!r}{shape})"


def remaining(unimportant: Tensor) -> Tensor:
    """Return the sequential dropout's masks, (B, K, M, h, w): 1 - D_1, D_1 D_2, D_1 D_2 D_3 ...

    Args:
        unimportant: D of every map, of the same shape.
    """
    return torch.cat([1 - unimportant[:, :, :1], unimportant.cumprod(2)[:, :, 1:]], dim=2)
