"""From F back to the network's earlier stages: the gradient of a class's map, one class at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from camtools.errors import ModelError
from camtools.model.pyramid import StageOutput


@dataclass(frozen=True)
class Backward:
    """The part of a forward that lies between earlier stages and F, kept for as long as this object is.

    Attributes:
        features: F, (B, C, h, w), on the graph.
        stages: Coarse to fine, on the same graph.
    """

    features: Tensor
    stages: tuple[StageOutput, ...]

    def gradients(self, weights: Tensor, count: int) -> tuple[Tensor, ...]:
        """Return d/dA of sum_cij W_c F_cij / (h w), which is the class's logit where the head pools by the mean.

        Where the head is linearised, W is the logit's gradient at F, so that this is the logit's gradient at A. One
        backward pass for the whole batch, through the layers between A and F and no further; parameters get no
        gradient. The pass runs in the model's own precision from weights scaled to 1, so that in float16 few values
        vanish; scaled back in float32.

        Args:
            weights: Of one class, (B or 1, C), or (B or 1, C, h, w) where they vary over positions.
            count: How many of the stages, from the coarsest on.

        Returns:
            (B, C', h', w') float32 each.

        Raises:
            ModelError: F does not depend on a stage through autograd.
        """
        stages = self.stages[:count]
        if not stages:
            return ()
        weights = weights.float()
        weights = weights[..., None, None] if weights.dim() == 2 else weights
        weights = weights.expand(self.features.shape)
        scale = weights.abs().amax((1, 2, 3), keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)
        seed = (weights / scale).to(self.features.dtype)
        raw = [stage.raw for stage in stages]
        found: tuple[Tensor | None, ...] = (None,) * len(raw)
        if self.features.requires_grad:
            found = torch.autograd.grad(self.features, raw, seed, retain_graph=True, allow_unused=True)
        gradients = []
        for stage, gradient in zip(stages, found, strict=True):
            if gradient is None:
                raise ModelError(
                    f"the features that enter the pooling do not depend on the stage {stage.spec.layer!r} through "
                    "autograd, so there is no gradient there. A forward that runs under torch.no_grad() or detaches "
                    "tensors cannot be back-propagated: remove that, or use a pipeline without gradients"
                )
            positions = self.features.shape[2] * self.features.shape[3]
            gradients.append(stage.nchw(gradient.float()) * (scale / positions))
        return tuple(gradients)
