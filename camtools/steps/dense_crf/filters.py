"""The two kernels of a fully connected CRF as exact filters: no lattice, and no matrix of all pairs of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PAIRS = 2**26
"""Pairs of pixels at a time where no fused attention kernel takes the tensors, so that memory stays bounded."""


class SpatialFilter:
    """The smoothness kernel exp(-|pi - pj|^2 / (2 sxy^2)), normalised symmetrically; one small matrix per axis.

    As in pydensecrf (`NORMALIZE_SYMMETRIC`) a pixel counts itself, and the result is
    sum_j k_ij (n_i n_j)^(-1/2) q_j with n_i = sum_j k_ij. Kernel and norm are products over the axes.

    Args:
        rows: Vertical positions of the senders, (h,), in pixels.
        columns: Horizontal positions of the senders, (w,).
        sxy: Standard deviation in pixels.
    """

    def __init__(self, rows: Tensor, columns: Tensor, sxy: float) -> None:
        self._axes = (rows, columns)
        self._sxy = sxy

    def __call__(self, values: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Filter values (B, C, h, w) of the senders; at the receivers' rows (H,) and columns (W,), else at their own.

        Returns:
            (B, C, H, W).
        """
        down = _axis_matrix(self._axes[0] if rows is None else rows, self._axes[0], self._sxy).to(values)
        across = _axis_matrix(self._axes[1] if columns is None else columns, self._axes[1], self._sxy).to(values)
        return down @ values @ across.mT


def _axis_matrix(receivers: Tensor, senders: Tensor, sxy: float) -> Tensor:
    """Return the symmetrically normalised kernel of one axis, (R, S) float64."""
    own = torch.exp(-0.5 * ((senders[:, None] - senders) / sxy) ** 2).sum(-1)
    kernel = torch.exp(-0.5 * ((receivers[:, None] - senders) / sxy) ** 2)
    return kernel * (kernel.sum(-1, keepdim=True) + 1e-20).rsqrt() * own.rsqrt()


class FeatureFilter:
    """The kernel exp(-|fi - fj|^2 / 2) over features of any kind, normalised symmetrically, through attention.

    |fi - fj|^2 / 2 = |fi|^2 / 2 - fi.fj + |fj|^2 / 2, so a softmax over j of fi.fj - |fj|^2 / 2 is the kernel divided
    by its row sum n_i, and `scaled_dot_product_attention` averages values with it without ever holding the matrix.
    One more sender with the logit |fi|^2 / 2, pixel i's own, gets the weight 1 / (1 + n_i), which reads n_i out.

    Features should be centred: their squared length, times the precision of the dtype, is the error of a weight.

    Args:
        features: Of the senders, (B, M, D).
    """

    def __init__(self, features: Tensor) -> None:
        half = features.square().sum(-1, keepdim=True) / 2
        # Columns: the features, -|fj|^2/2 against the receivers' 1, and what only the extra sender answers to.
        self._senders = torch.cat([features, -half, torch.zeros_like(half)], -1)
        self._extra = torch.zeros_like(self._senders[:, :1])
        self._extra[..., -1] = 1
        self._receivers = _receivers(features)
        self.norm = self._row_sums(features.new_empty(len(features), features.shape[1], 0), self._receivers)[0]

    def __call__(self, values: Tensor) -> Tensor:
        """Filter values (B, M, C) of the senders at the senders: sum_j k_ij (n_i n_j)^(-1/2) q_j, (B, M, C)."""
        return self.norm.sqrt() * _attend(self._receivers, self._senders, values * self.norm.rsqrt())

    def at(self, features: Tensor, values: Tensor) -> Tensor:
        """Filter values (B, M, C) of the senders at receivers with other features (B, N, D); (B, N, C).

        A receiver that resembles no sender at all (n_i underflows) gets zeros.
        """
        norm, average = self._row_sums(values * self.norm.rsqrt(), _receivers(features))
        return norm.sqrt() * average

    def _row_sums(self, values: Tensor, receivers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the receivers' n (B, N, 1) and their averages of the values (B, M, C) over the senders, (B, N, C)."""
        senders = torch.cat([self._senders, self._extra], 1)
        # Values: those given, 1 for a true sender, 1 for the extra one.
        padded = F.pad(torch.cat([values, values.new_ones(*values.shape[:2], 1)], -1), (0, 1, 0, 1))
        padded[:, -1, -1] = 1
        averages = _attend(receivers, senders, padded)
        share = averages[..., -2:-1]
        tiny = torch.finfo(averages.dtype).tiny
        return share / averages[..., -1:].clamp_min(tiny), averages[..., :-2] / share.clamp_min(tiny)


def _receivers(features: Tensor) -> Tensor:
    """Return what the receivers hold against the senders' columns, (B, N, D + 2)."""
    half = features.square().sum(-1, keepdim=True) / 2
    return torch.cat([features, torch.ones_like(half), half], -1)


def _attend(receivers: Tensor, senders: Tensor, values: Tensor) -> Tensor:
    """Return softmax(receivers @ senders^T) @ values: (B, N, D), (B, M, D), (B, M, C) -> (B, N, C)."""
    width = max(receivers.shape[-1], values.shape[-1])
    width += -width % 8  # the fused kernels want one width for all three, and a multiple of 8
    query, key, value = (F.pad(x, (0, width - x.shape[-1]))[:, None] for x in (receivers, senders, values))
    fused = query.device.type == "cpu" or (query.device.type == "cuda" and query.dtype == torch.float32)
    size = query.shape[2] if fused else max(1, PAIRS // (len(query) * key.shape[2]))
    parts = [F.scaled_dot_product_attention(part, key, value, scale=1.0) for part in query.split(size, 2)]
    return torch.cat(parts, 2)[:, 0, :, : values.shape[-1]]
