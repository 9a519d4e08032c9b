"""Poolings: a feature map (B, C, h, w) becomes one vector per image, (B, C); and what a head that needs none has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from camtools.errors import ModelError


class HeadLayer(nn.Module):
    """A layer that keeps its constructor's arguments as attributes: it is printed with them, and saved as them."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make it again, as JSON's types."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if hasattr(self, name)}

    def extra_repr(self) -> str:
        """Say the arguments, for `repr`."""
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())


@runtime_checkable
class MapHead(Protocol):
    """A module that makes logits of F by itself: logits = map_pool(W · F + b), with W · F + b one map per class."""

    @property
    def weight(self) -> Tensor:
        """W, (K, C)."""

    @property
    def bias(self) -> Tensor | None:
        """The bias of the class maps, (K,), or None."""

    @property
    def map_pool(self) -> Callable[[Tensor], Tensor]:
        """From class maps, (B, K, h, w), to logits, (B, K)."""


class GAP(HeadLayer):
    """Global average pooling, the mean over positions: what most classifiers have, for comparisons."""

    def forward(self, features: Tensor) -> Tensor:
        """Pool F, (B, C, h, w), to (B, C), in its own dtype."""
        return positions(features).mean(2).to(features.dtype)


class TAP(HeadLayer):
    """Thresholded average pooling: the mean of the activations above a threshold.

    p_c = sum 1(F_c > t) F_c / sum 1(F_c > t), the sums over positions; a channel with nothing above its threshold gives
    0. The threshold carries no gradient. Source: Bae, Noh and Kim, ECCV 2020.

    Args:
        theta: The threshold: a share of the channel's maximum in the image, or itself where `relative` is False
            (the RCAM slides have 0.05).
        relative: Whether t = theta * max over positions of F_c.

    Raises:
        ModelError: A relative theta outside [0, 1), which would leave nothing, or one that is not finite.
    """

    def __init__(self, theta: float = 0.1, relative: bool = True) -> None:
        super().__init__()
        if not (abs(theta) < float("inf") and (not relative or 0 <= theta < 1)):
            expected = "0 <= theta < 1, a share of the maximum" if relative else "a finite number"
            raise ModelError(f"theta is {theta}: expected {expected}. The default is TAP(theta=0.1)")
        self.theta = float(theta)
        self.relative = bool(relative)

    def forward(self, features: Tensor) -> Tensor:
        """Pool F, (B, C, h, w), to (B, C), in its own dtype; computed in float32 at least."""
        f = positions(features)
        threshold = self.theta * f.detach().amax(2, keepdim=True) if self.relative else self.theta
        above = f.detach() > threshold
        pooled = torch.where(above, f, 0).sum(2) / above.sum(2).clamp_min(1)
        return pooled.to(features.dtype)


class WGAP(HeadLayer):
    """Weighted global average pooling: the mean over positions, weighted by their softmax.

    S_c = softmax over positions of F_c; G_c = sum S_c F_c. Source: Zhang, Chang and Bui, ICASSP 2022, eq. 1; the
    softmax's denominator there lacks an exp, which is a misprint.

    Args:
        divide: Also divide by h·w, as the paper's formula does. That only rescales the features: a classifier trained
            on average pooling then starts 49 times too small on 7 x 7 cells.
    """

    def __init__(self, divide: bool = False) -> None:
        super().__init__()
        self.divide = bool(divide)

    def forward(self, features: Tensor) -> Tensor:
        """Pool F, (B, C, h, w), to (B, C), in its own dtype; computed in float32 at least."""
        f = positions(features)
        pooled = (f.softmax(2) * f).sum(2)
        return (pooled / f.shape[2] if self.divide else pooled).to(features.dtype)


def positions(maps: Tensor) -> Tensor:
    """Return (B, C, h, w) as (B, C, h·w), in float32 where it was coarser.

    Raises:
        ModelError: It has another number of axes, or no positions.
    """
    if maps.dim() != 4 or maps.shape[2] * maps.shape[3] == 0:
        raise ModelError(
            f"got a tensor of shape {tuple(maps.shape)}: expected (batch, channels, rows, columns) with positions. "
            "Give the head the features before the pooling"
        )
    return maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32))
