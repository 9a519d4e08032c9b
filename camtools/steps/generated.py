"""Generated: maps that a convolution of the features makes, as BAS trains one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import conv2d

from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step, check_tensors
from camtools.steps.cam import CAM


class Generated(Step):
    """Make each class's map by a convolution of F with weights of its own: M_k = sigmoid(conv(F))_k.

    Reads `State.features`, (B, C, h, w), and `State.labels`, (B, K'); sets `State.maps`, (B, K', h, w), float32 in
    [0, 1]. Without weights the maps are a plain CAM's.

    Source: Wu et al., "Background Activation Suppression for Weakly Supervised Object Localization", CVPR 2022,
    section 3.2 (generator).

    Args:
        weight: Of the convolution, (K, C, n, n) with n odd, or (1, C, n, n) for one map of all classes; or None.
            `Generated.of(model)` takes those of a model's head.
        bias: (K,) or (1,), or None for zeros.

    Raises:
        PipelineError: The weight is of another shape; or, when called, the state has no features or labels, or those
            of another model.
    """

    stage = Stage.MAP

    def __init__(self, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        check_tensors("Generated", weight=weight, bias=bias)
        if weight is not None and (weight.dim() != 4 or weight.shape[2] % 2 == 0):
            raise PipelineError(f"Generated: weight is {tuple(weight.shape)}, expected (K, C, n, n) with n odd.")
        self.weight, self.bias = weight, bias

    @classmethod
    def of(cls, model: nn.Module) -> Generated:
        """Return the step for a model whose head has a generator (`camtools.heads.BAS`).

        Raises:
            PipelineError: It has none.
        """
        step = cls()
        step.take(model)
        return step

    def take(self, model: nn.Module) -> None:
        """Read a model's maps from now on.

        Raises:
            PipelineError: See `of`.
        """
        generator: Any = getattr(getattr(model, "head", None), "generator", None)
        if not isinstance(generator, nn.Conv2d):
            raise PipelineError(f"{type(model).__name__} has no head with a generator: expected camtools.heads.BAS")
        self.weight = generator.weight.detach().float()
        self.bias = None if generator.bias is None else generator.bias.detach().float()

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h, w)."""
        if self.weight is None:
            return CAM()(state)
        features, labels = state.require("features", self).float(), state.require("labels", self)
        channels, single = self.weight.shape[1], len(self.weight) == 1
        if features.shape[1] != channels or (not single and int(labels.max()) >= len(self.weight)):
            raise PipelineError(
                f"{self!r} does not fit features of {features.shape[1]} channels and classes up to {int(labels.max())}."
                " Use Generated.of(model) with the model that made them."
            )
        bias = None if self.bias is None else self.bias.to(features.device)
        maps = conv2d(features, self.weight.to(features.device), bias, padding=self.weight.shape[2] // 2).sigmoid()
        if single:
            return state.replace(maps=maps.expand(-1, labels.shape[1], -1, -1))
        index = labels.to(maps.device)[..., None, None].expand(-1, -1, *maps.shape[2:])
        return state.replace(maps=maps.gather(1, index))

    def __repr__(self) -> str:
        return "Generated()" if self.weight is None else f"Generated(weight={tuple(self.weight.shape)})"
