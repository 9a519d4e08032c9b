"""Finer maps from the same weights: the last stages' strides taken out, what follows dilated."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from camtools.errors import CamtoolsError, ModelError
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.decomposition import Decomposition
from camtools.model.guard import untouched
from camtools.model.outputs import tensors_in

STRIDES = (8, 16, 32)
_MAX_POOLS, _AVG_POOLS = ("MaxPool2d", "MaxPool2dSame"), ("AvgPool2d", "AvgPool2dSame")


def set_output_stride(model: nn.Module, stride: int, *, example: Tensor | None = None) -> nn.Module:
    """Return a copy whose features have one cell per `stride` pixels, with the same weights.

    Every convolution and pooling that works beyond that stride loses its stride, and kernels that expected coarser
    inputs are dilated by as much (the à-trous rule: Holschneider et al. 1989; Chen et al., DeepLab, 2015), so that each
    old feature is found again among the new ones, at every `old / stride`-th row and column. Layers that look at the
    whole image (squeeze-and-excitation) see more cells, so there the features shift a little.

    Args:
        model: A convolutional classifier; left as it was. A `CamModel` gives its own idea of where F is.
        stride: 8, 16 or 32.
        example: One input, (1, C, H, W); None takes a random one of the model's own size.

    Returns:
        A copy, in the mode that the model is in; its parameters have the same names.

    Raises:
        ModelError: Another stride; or a model whose strides cannot be taken out: vision transformers, strides that are
            no layers but plain functions, a first layer that takes the whole stride at once.

    Example:
        >>> finer = camtools.model.set_output_stride(torchvision.models.resnet50(), 8)
        >>> camtools.wrap(finer).features(x).shape  # x: (1, 3, 224, 224)
        torch.Size([1, 2048, 28, 28])
    """
    if stride not in STRIDES:
        raise ModelError(f"output stride {stride!r}: expected {', '.join(map(str, STRIDES))}. Pick one")
    given = model if isinstance(model, CamModel) else None
    dense = copy.deepcopy(unwrapped(model))
    name = type(dense).__name__
    cam_model = CamModel(dense, given._given if given else None, given.adapter if given else None)
    x = cam_model.example() if example is None else example[:1]
    before = cam_model.locate(x)
    present = _level(x, before.grid[0], before.grid[1], f"the features of {name}")
    if present == stride:
        return dense
    if present < stride:
        raise ModelError(
            f"{name} has output stride {present} already, finer than {stride}. Leave output_stride out, or pass "
            f"{present if present in STRIDES else 'a smaller one'}"
        )
    for layer in _layers(dense, x):
        _densify(dense, layer, stride)
    try:
        after = CamModel(dense, cam_model._spec, cam_model.adapter).locate(x)
    except CamtoolsError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} does not run at output stride {stride} ({type(error).__name__}: {str(error).partition(chr(10))[0]}"
            "): its strides or sizes are not all in convolution and pooling layers. Use it at its own stride, or "
            "feed larger images"
        ) from error
    _check_grid(name, (x.shape[2], x.shape[3]), before, after, present // stride, stride)
    return dense


@dataclass(frozen=True)
class _Layer:
    """A layer that ran, and the strides of the whole network before and after it."""

    name: str
    module: nn.Module
    before: int
    after: int
    whole: bool  # pools all positions into one


def _layers(model: nn.Module, x: Tensor) -> list[_Layer]:
    """Run the model once and note every layer without children that has positions."""
    found: dict[str, _Layer] = {}

    def note(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            given, made = next(tensors_in(inputs), None), next(tensors_in(output), None)
            if given is None or made is None or given.dim() != 4 or made.dim() != 4:
                return
            same_size = given.shape[2] == made.shape[2] or given.shape[3] == made.shape[3]
            if same_size and max(_pair(getattr(module, "kernel_size", 1))) == 1:
                return  # nothing to change, and its axes may be no grid (squeeze-and-excitation, channels last)
            if min(given.shape[2:]) < 2 or isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
                return
            whole = made.shape[2] == made.shape[3] == 1
            levels = _level(x, given.shape[2], given.shape[3], name)
            after = levels if whole else levels * max(_pair(getattr(module, "stride", 1)))
            if after == levels and not whole and made.shape[2] * 1.5 < given.shape[2]:
                after = 2 * levels  # a stride by another name
            layer = _Layer(name, module, levels, after, whole)
            if name in found and found[name] != layer:
                raise ModelError(
                    f"layer {name!r} runs at several resolutions, so no single dilation fits it. Use the model at its "
                    "own output stride"
                )
            found[name] = layer

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                handles.append(module.register_forward_hook(note(name, module)))
        with untouched(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def _densify(model: nn.Module, layer: _Layer, stride: int) -> None:
    """Take out a layer's stride and dilate it, as far as its place in the network calls for."""
    module, kind = layer.module, type(layer.module).__name__
    if layer.after <= stride and layer.before <= stride:
        return
    if layer.whole:
        if isinstance(module, nn.AvgPool2d):
            _put(model, layer.name, nn.AdaptiveAvgPool2d(1))
        return
    if layer.before < stride < layer.after:
        raise ModelError(
            f"layer {layer.name!r} ({kind}) goes from stride {layer.before} to {layer.after} at once, as vision "
            f"transformers' patches do, so output stride {stride} cannot be had. Feed larger images"
        )
    factor, strided = max(1, layer.before // stride), layer.after > layer.before
    if isinstance(module, nn.Conv2d):
        _densify_conv(model, layer, module, factor, strided)
    elif kind in _MAX_POOLS or kind in _AVG_POOLS:
        _densify_pool(model, layer, factor, strided)
    elif strided:
        raise ModelError(
            f"layer {layer.name!r} is a {kind}, whose stride camtools cannot take out; it knows convolutions, max and "
            "average pooling. Use the model at its own output stride, or feed larger images"
        )


def _densify_conv(model: nn.Module, layer: _Layer, conv: nn.Conv2d, factor: int, strided: bool) -> None:
    if conv.padding_mode != "zeros":
        raise ModelError(
            f"layer {layer.name!r} pads by {conv.padding_mode!r}: expected zeros. Use the model at its own stride"
        )
    same = type(conv).__name__.endswith("Same") or isinstance(conv.padding, str)
    plain = type(conv) is nn.Conv2d or type(conv).__name__ == "Conv2dSame"
    symmetric = not isinstance(conv.padding, str) and all(
        2 * p == d * (k - 1) for p, d, k in zip(conv.padding, conv.dilation, conv.kernel_size, strict=True)
    )
    if (same and not strided and all(k % 2 for k in conv.kernel_size)) or (not same and (symmetric or not strided)):
        conv.stride = (1, 1)
        conv.dilation = (conv.dilation[0] * factor, conv.dilation[1] * factor)
        if not isinstance(conv.padding, str):
            conv.padding = (conv.padding[0] * factor, conv.padding[1] * factor)
            conv._reversed_padding_repeated_twice = [p for p in reversed(conv.padding) for _ in range(2)]
    elif plain:
        _put(model, layer.name, dense_conv(conv, factor, same=same))
    else:
        raise ModelError(
            f"layer {layer.name!r} is a {type(conv).__name__} padded to one side, whose stride camtools cannot take "
            "out. Use the model at its own output stride, or feed larger images"
        )


def _densify_pool(model: nn.Module, layer: _Layer, factor: int, strided: bool) -> None:
    pool: Any = layer.module
    kernel, padding, dilation = _pair(pool.kernel_size), _pair(pool.padding), _pair(getattr(pool, "dilation", 1))
    if not strided and factor == 1:
        return
    count_pad = bool(getattr(pool, "count_include_pad", False)) and max(padding) > 0
    kind, same = type(pool).__name__, type(pool).__name__.endswith("Same")
    shape = "max" if kind in _MAX_POOLS else "avg"
    dense = DensePool2d(shape, kernel, _pair(pool.stride), padding, dilation, factor, same, count_pad)
    _put(model, layer.name, dense.train(pool.training))


def _check_grid(
    name: str, size: tuple[int, int], before: Decomposition, after: Decomposition, ratio: int, stride: int
) -> None:
    """Refuse a result that is not `ratio` times as fine; unpadded networks lose fewer cells at their edges now."""
    fits = all(
        (old - 1) * ratio < new <= max(old * ratio, -(-pixels // stride))
        for pixels, old, new in zip(size, before.grid, after.grid, strict=True)
    )
    if not fits:
        raise ModelError(
            f"{name} at output stride {stride} gives {after.grid[0]} x {after.grid[1]} cells where {before.grid[0]} x "
            f"{before.grid[1]} became {ratio} times as fine: its strides are not all in convolution and pooling "
            "layers. Use it at its own stride, or feed larger images"
        )


def _level(x: Tensor, rows: int, columns: int, what: str) -> int:
    """Return the power of two that a grid's cells are pixels apart; the longer side tells, it rounds less."""
    exponent = math.log2(max(x.shape[2:]) / max(rows, columns))
    level = round(exponent)
    if abs(exponent - level) > 0.45 or level < 0:
        raise ModelError(
            f"{what} has {rows} x {columns} cells over {x.shape[2]} x {x.shape[3]} pixels, which is no power of two "
            "apart. Use the model at its own output stride"
        )
    return int(2**level)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[-1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


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
