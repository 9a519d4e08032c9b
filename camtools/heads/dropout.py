"""Dropouts that look at the maps: erase what was found already, so that more is found. Training only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from camtools.checks import number, whole
from camtools.errors import ModelError
from camtools.heads.pooling import HeadLayer, positions
from camtools.steps.wildcat_maps import remaining


class SequentialDropout(nn.Module):
    """Intra-class sequential dropout over the M maps of each class (ex-CAM thesis, section 3.3).

    D_j = 1(sigmoid(F_j) <= delta) marks what map j does *not* find important. The first map keeps its important part,
    F_1 <- (1 - D_1) F_1; every later one loses what it and all before it find important, F_j <- D_1 ... D_j F_j. The
    thesis stops once nothing is left of the region: the products are zero from there on, and so are the maps. In eval
    mode the maps pass as they are.

    Later maps have little to live on: of a fresh head's random maps the first keeps half of its positions, the second
    a quarter, the eighth .003 (measured with M = 8 and delta 0.5: .52 .23 .13 .08 .03 .01 .005 .003). A larger delta
    leaves the later ones more.

    The masks carry no gradient. A learnable delta gets one straight through: forward the masks are binary, backward
    they are sigmoid((delta - sigmoid(F_j)) / 0.1), with respect to delta alone. The parameter is delta's logit, so that
    delta stays in (0, 1).

    Args:
        M: Maps per class.
        delta: Threshold on sigmoid(F), in (0, 1); where it starts, if it is learnt.
        learnable: Whether delta is a parameter.

    Raises:
        ModelError: M or delta is out of range.
    """

    WIDTH = 0.1  # of the sigmoid that stands for the mask's step in the backward pass

    def __init__(self, M: int, delta: float = 0.5, learnable: bool = False) -> None:
        super().__init__()
        self.M = whole("M", M, error=ModelError)
        self.start = number("delta", delta, "(0, 1)", error=ModelError)
        self.logit = nn.Parameter(torch.tensor(math.log(delta / (1 - delta)))) if learnable else None

    @property
    def delta(self) -> Tensor | float:
        """The threshold as it is now, in (0, 1)."""
        return self.start if self.logit is None else self.logit.sigmoid()

    def forward(self, maps: Tensor) -> Tensor:
        """Drop what was found already.

        Args:
            maps: (B, K·M, h, w), the M maps of class 0 first, then those of class 1, and so on.

        Returns:
            The same shape and dtype.

        Raises:
            ModelError: The number of channels is no multiple of M.
        """
        if not self.training:
            return maps
        grouped = by_class(maps, self.M)
        score = positions(maps).detach().sigmoid().view_as(grouped)
        unimportant = (score <= self.delta).to(score.dtype)
        if self.logit is not None:
            soft = ((self.logit.sigmoid() - score) / self.WIDTH).sigmoid()
            unimportant = unimportant + (soft - soft.detach())
        return (grouped * remaining(unimportant).to(maps.dtype)).flatten(1, 2)

    def extra_repr(self) -> str:
        """Say the parameters, for `repr`."""
        delta = self.start if self.logit is None else float(self.logit.detach().sigmoid())
        return f"M={self.M}, delta={delta:.3g}, learnable={self.logit is not None}"


class ADL(HeadLayer):
    """Attention-based dropout layer (Choe and Shim, CVPR 2019): by chance, drops the strongest region or stresses it.

    Attention A is the mean of F over channels. In training, F is multiplied either by the drop mask
    1(A < gamma * max A) or by the importance map sigmoid(A); one draw serves the whole batch. In eval mode F passes as
    it is. The mask carries no gradient, the importance map does.

    Args:
        drop_rate: Probability of the drop mask.
        gamma: Threshold of the drop mask, a share of the attention's maximum in the image.
        per_map: Every channel is a map of its own with its own draw (ex-CAM thesis, 3.8.3): attention is the map's
            sigmoid, and gamma is a share of the way from its minimum to its maximum (of the maximum alone it would drop
            98 % of a fresh head's positions, where every sigmoid is near 0.5). For the class maps of `Wildcat`.

    Raises:
        ModelError: A parameter outside [0, 1].
    """

    def __init__(self, drop_rate: float = 0.75, gamma: float = 0.9, per_map: bool = False) -> None:
        super().__init__()
        self.drop_rate = number("drop_rate", drop_rate, "[0, 1]", error=ModelError)
        self.gamma = number("gamma", gamma, "[0, 1]", error=ModelError)
        self.per_map = bool(per_map)

    def forward(self, features: Tensor) -> Tensor:
        """Drop or stress, (B, C, h, w) to the same shape and dtype."""
        if not self.training:
            return features
        f = positions(features)
        attention = f.sigmoid() if self.per_map else f.mean(1, keepdim=True)
        strength = attention.detach()
        if self.per_map:  # a fresh map's sigmoid is near 0.5 everywhere: gamma counts from its own minimum
            strength = strength - strength.amin(2, keepdim=True)
        largest = strength.amax(2, keepdim=True)
        kept = (strength < self.gamma * largest) | (largest == 0)  # nothing is strongest in a constant map
        importance = attention if self.per_map else attention.sigmoid()
        draw = torch.rand((*f.shape[:2], 1) if self.per_map else (), device=f.device)
        factor = torch.where(draw < self.drop_rate, kept.to(f.dtype), importance)
        return (f * factor).view(features.shape).to(features.dtype)


def by_class(maps: Tensor, m: int) -> Tensor:
    """Return (B, K·M, h, w) as (B, K, M, h, w).

    Raises:
        ModelError: The number of channels is no multiple of M.
    """
    if maps.dim() != 4 or maps.shape[1] % m or not maps.shape[1]:
        raise ModelError(
            f"got maps of shape {tuple(maps.shape)}: expected (batch, classes * {m}, rows, columns). Give M={m} maps "
            "per class, those of one class side by side"
        )
    return maps.unflatten(1, (-1, m))
