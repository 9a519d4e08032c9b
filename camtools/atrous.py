"""Strided layers made dense: the same kernels at stride 1, aligned so that every old output is among the new ones."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class DenseConv2d(nn.Conv2d):
    """A convolution whose stride was taken out; it keeps rows and columns, whatever its padding was.

    Made by `dense_conv`. Output i * step is what the strided layer gave at i, over inputs that are `step // stride`
    times as dense as its own were.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C, h, w) to (B, C', h, w)."""
        pads = _pads(x, self.lead, self.same, self.kernel_size, self.was_stride, self.was_dilation, self.factor)
        dilation = tuple(d * self.factor for d in self.was_dilation)
        return functional.conv2d(functional.pad(x, pads), self.weight, self.bias, 1, 0, dilation, self.groups)

    lead: tuple[int, int]
    same: bool
    was_stride: tuple[int, int]
    was_dilation: tuple[int, int]
    factor: int


def dense_conv(conv: nn.Conv2d, factor: int, *, same: bool) -> DenseConv2d:
    """Return a convolution with the stride taken out and the very parameters of another.

    Args:
        conv: A plain strided convolution, zero padded.
        factor: How many times as dense as its own the inputs now are.
        same: Whether it pads as TensorFlow does ("same"), by the input's size.
    """
    dense = DenseConv2d.__new__(DenseConv2d)
    dense.__dict__.update(conv.__dict__)
    padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
    dense.lead, dense.same, dense.factor = (padding[0], padding[1]), same, factor
    dense.was_stride, dense.was_dilation = (conv.stride[0], conv.stride[1]), (conv.dilation[0], conv.dilation[1])
    dense.stride = (1, 1)
    dense.dilation = (conv.dilation[0] * factor, conv.dilation[1] * factor)
    dense.padding = (0, 0)
    return dense


class DensePool2d(nn.Module):
    """A max or average pooling at stride 1 over denser inputs; it keeps rows and columns.

    Args:
        kind: "max" or "avg".
        kernel: (rows, columns).
        stride: What it had, for "same" padding.
        padding: Before the first row and column, of the strided pooling.
        dilation: Of the strided pooling.
        factor: How many times as dense as its own the inputs now are.
        same: Whether it padded by the input's size, as TensorFlow does.
        count_pad: Whether an average counts the padding as cells.
    """

    def __init__(
        self,
        kind: str,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        factor: int,
        same: bool,
        count_pad: bool,
    ) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride, self.padding = kind, kernel, stride, padding
        self.dilation, self.factor, self.same, self.count_pad = dilation, factor, same, count_pad

    def forward(self, x: Tensor) -> Tensor:
        """Pool, (B, C, h, w) to the same shape."""
        pads = _pads(x, self.padding, self.same, self.kernel, self.stride, self.dilation, self.factor)
        dilation = (self.dilation[0] * self.factor, self.dilation[1] * self.factor)
        if self.kind == "max":
            padded = functional.pad(x, pads, value=float("-inf"))
            return functional.max_pool2d(padded, self.kernel, 1, 0, dilation)
        total = _window_sum(functional.pad(x, pads), self.kernel, dilation)
        if self.count_pad:
            return total / (self.kernel[0] * self.kernel[1])
        cells = functional.pad(x.new_ones(1, 1, *x.shape[2:]), pads)
        return total / _window_sum(cells, self.kernel, dilation)

    def extra_repr(self) -> str:
        """Say the parameters, for `repr`."""
        return f"{self.kind}, kernel={self.kernel}, factor={self.factor}"


def _window_sum(x: Tensor, kernel: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """Sum over a dilated window, as slices: rows, then columns."""
    for axis, size, step in ((2, kernel[0], dilation[0]), (3, kernel[1], dilation[1])):
        length = x.shape[axis] - (size - 1) * step
        x = torch.stack([x.narrow(axis, i * step, length) for i in range(size)]).sum(0)
    return x


def _pads(
    x: Tensor,
    lead: tuple[int, int],
    same: bool,
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    factor: int,
) -> list[int]:
    """Return left, right, top, bottom: first as the strided layer padded, times `factor`, then what keeps the size."""
    pads: list[int] = []
    for axis in (1, 0):
        reach = (kernel[axis] - 1) * dilation[axis]
        before = lead[axis]
        if same:
            size = -(-x.shape[2 + axis] // factor)
            before = max((-(-size // stride[axis]) - 1) * stride[axis] + reach + 1 - size, 0) // 2
        pads += [before * factor, (reach - before) * factor]
    return pads
