"""Finer maps from the same weights: the last stages' strides taken out, what follows dilated (à trous).

`set_output_stride` runs the model once to learn at which stride every layer works, then exchanges those beyond the one
asked for: in place where a dilation is all it takes, else by `DenseConv2d` and `DensePool2d`.
"""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from camtools.errors import CamtoolsError, ModelError
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.decomposition import Decomposition
from camtools.model.guard import untouched
from camtools.model.outputs import tensors_in
from camtools.model.pyramid import COARSER

STRIDES = (8, 16, 32)
_MAX_POOLS, _AVG_POOLS = ("MaxPool2d", "MaxPool2dSame"), ("AvgPool2d", "AvgPool2dSame")


def set_output_stride(
    model: nn.Module, stride: int, *, dilate: bool = True, example: Tensor | None = None
) -> nn.Module:
    """Return a copy whose features have one cell per `stride` pixels, with the same weights.

    Every convolution and pooling that works beyond that stride loses its stride, and kernels that expected coarser
    inputs are dilated by as much (the à-trous rule: Holschneider et al. 1989; Chen et al., DeepLab, 2015), so that each
    old feature recurs among the new ones, at every `old / stride`-th row and column. Layers that look at the
    whole image (squeeze-and-excitation) see more cells, so there the features shift a little. What camtools takes for
    the network's stages (`Activations.pyramid`) stays the same.

    Args:
        model: A convolutional classifier; left as it was. A `CamModel` gives its own idea of where F is.
        stride: 8, 16 or 32.
        dilate: Whether kernels are dilated. False drops the strides and nothing else, as wsolevaluation and MinMaxCAM
            do before they train: the features then are others, and mean little until they are trained.
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
    dense = copy.deepcopy(unwrapped(model))
    name = type(dense).__name__
    cam_model = model.rewrap(dense) if isinstance(model, CamModel) else CamModel(dense)
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
    spec = cam_model.spec
    for module in dense.modules():
        if hasattr(module, COARSER):  # taken out before
            setattr(module, COARSER, getattr(module, COARSER) * present // stride)
    for layer in _layers(dense, x):
        _densify(dense, layer, stride, dilate)
        if layer.after > max(layer.before, stride):
            setattr(dense.get_submodule(layer.name), COARSER, layer.after // stride)
    try:
        after = CamModel(dense, spec, cam_model.adapter).locate(x)
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
    calls: list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                hooks.enter_context(module.register_forward_hook(partial(_note, calls, name)))
        with untouched(model), torch.no_grad():
            model(x)
    layers: dict[str, _Layer] = {}
    for name, module, given, made in calls:
        same_size = given[2] == made[2] or given[3] == made[3]
        if same_size and max(_pair(getattr(module, "kernel_size", 1))) == 1:
            continue  # nothing to change, and its axes may be no grid (squeeze-and-excitation, channels last)
        if min(given[2:]) < 2 or isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
            continue
        whole = made[2] == made[3] == 1
        before = _level(x, given[2], given[3], name)
        after = before if whole else before * max(_pair(getattr(module, "stride", 1)))
        if after == before and not whole and made[2] * 1.5 < given[2]:
            after = 2 * before  # a stride by another name
        layer = _Layer(name, module, before, after, whole)
        if layers.setdefault(name, layer) != layer:
            raise ModelError(
                f"layer {name!r} runs at several resolutions, so no single dilation fits it. Use the model at its "
                "own output stride"
            )
    return list(layers.values())


def _note(calls: list[Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """Add a call of a layer from grid to grid, with the shapes of what came in and went out; a forward hook."""
    given, made = next(tensors_in(inputs), None), next(tensors_in(output), None)
    if given is not None and made is not None and given.dim() == made.dim() == 4:
        calls.append((name, module, tuple(given.shape), tuple(made.shape)))


def _densify(model: nn.Module, layer: _Layer, stride: int, dilate: bool) -> None:
    """Take out a layer's stride and dilate it, as far as its place in the network calls for."""
    module, kind = layer.module, type(layer.module).__name__
    if layer.after <= stride and layer.before <= stride:
        return
    if layer.whole:
        if isinstance(module, nn.AvgPool2d):
            model.set_submodule(layer.name, nn.AdaptiveAvgPool2d(1))
        return
    if layer.before < stride < layer.after:
        raise ModelError(
            f"layer {layer.name!r} ({kind}) goes from stride {layer.before} to {layer.after} at once, as vision "
            f"transformers' patches do, so output stride {stride} cannot be had. Feed larger images"
        )
    factor, strided = layer.before // stride if dilate else 1, layer.after > layer.before
    if not dilate and not strided:
        return
    if isinstance(module, DenseConv2d | DensePool2d):  # by an earlier call, for a coarser stride
        module.window = module.window.denser(factor)
    elif isinstance(module, nn.Conv2d):
        _densify_conv(model, layer, module, factor, strided)
    elif kind in (*_MAX_POOLS, *_AVG_POOLS):
        model.set_submodule(layer.name, DensePool2d(module, factor).train(module.training))
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
        model.set_submodule(layer.name, DenseConv2d.of(conv, _Window(conv, factor, same)))
    else:
        raise ModelError(
            f"layer {layer.name!r} is a {type(conv).__name__} padded to one side, whose stride camtools cannot take "
            "out. Use the model at its own output stride, or feed larger images"
        )


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


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[-1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


class _Window:
    """What a strided layer looked at, (rows, columns) each, now over inputs that are `factor` times as dense.

    Args:
        layer: The convolution or pooling.
        factor: How many times as dense as its own the inputs now are.
        same: Whether it padded by the input's size, as TensorFlow does.
    """

    def __init__(self, layer: Any, factor: int, same: bool) -> None:
        self.factor, self.same = factor, same
        self.kernel, self.stride = _pair(layer.kernel_size), _pair(layer.stride)
        self.lead = (0, 0) if isinstance(layer.padding, str) else _pair(layer.padding)
        self.dilation = _pair(getattr(layer, "dilation", 1))
        self.spread = (self.dilation[0] * factor, self.dilation[1] * factor)  # the dilation over the denser inputs

    def denser(self, factor: int) -> _Window:
        """Return the same over inputs that are `factor` times as dense again."""
        made = copy.copy(self)
        made.factor, made.spread = self.factor * factor, (self.spread[0] * factor, self.spread[1] * factor)
        return made

    def pads(self, x: Tensor) -> list[int]:
        """Return left, right, top, bottom: first as the layer padded, times `factor`, then what keeps the size."""
        pads: list[int] = []
        for axis in (1, 0):
            reach, before = (self.kernel[axis] - 1) * self.dilation[axis], self.lead[axis]
            if self.same:
                size, stride = -(-x.shape[2 + axis] // self.factor), self.stride[axis]
                before = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0) // 2
            pads += [before * self.factor, (reach - before) * self.factor]
        return pads


class DenseConv2d(nn.Conv2d):
    """A convolution whose stride was taken out; it keeps rows and columns, whatever its padding was.

    Output i * step is what the strided layer gave at i, over inputs that are `step // stride` times as dense as its own
    were.
    """

    window: _Window

    @classmethod
    def of(cls, conv: nn.Conv2d, window: _Window) -> DenseConv2d:
        """Return one with the very parameters of a plain convolution, zero padded."""
        dense = cls.__new__(cls)
        dense.__dict__.update(conv.__dict__)
        dense.window, dense.stride, dense.padding, dense.dilation = window, (1, 1), (0, 0), window.spread
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C, h, w) to (B, C', h, w)."""
        padded = functional.pad(x, self.window.pads(x))
        return functional.conv2d(padded, self.weight, self.bias, 1, 0, self.window.spread, self.groups)


class DensePool2d(nn.Module):
    """A max or average pooling at stride 1 over denser inputs; it keeps rows and columns.

    Args:
        pool: The strided pooling; timm's "Same" ones pad by the input's size.
        factor: How many times as dense as its own the inputs now are.
    """

    def __init__(self, pool: Any, factor: int) -> None:
        super().__init__()
        self.window = _Window(pool, factor, type(pool).__name__.endswith("Same"))
        self.kernel_size = self.window.kernel
        self.largest = type(pool).__name__ in _MAX_POOLS
        self.count_pad = bool(getattr(pool, "count_include_pad", False)) and max(self.window.lead) > 0

    def forward(self, x: Tensor) -> Tensor:
        """Pool, (B, C, h, w) to the same shape."""
        kernel, pads = self.window.kernel, self.window.pads(x)
        if self.largest:
            padded = functional.pad(x, pads, value=float("-inf"))
            return functional.max_pool2d(padded, kernel, 1, 0, self.window.spread)
        total = self._window_sum(functional.pad(x, pads))
        if self.count_pad:
            return total / (kernel[0] * kernel[1])
        return total / self._window_sum(functional.pad(x.new_ones(1, 1, *x.shape[2:]), pads))

    def extra_repr(self) -> str:
        """Say the parameters, for `repr`."""
        return f"{'max' if self.largest else 'avg'}, kernel={self.window.kernel}, factor={self.window.factor}"

    def _window_sum(self, x: Tensor) -> Tensor:
        """Sum over a dilated window, as slices: rows, then columns."""
        for axis, size, step in zip((2, 3), self.window.kernel, self.window.spread, strict=True):
            length = x.shape[axis] - (size - 1) * step
            x = torch.stack([x.narrow(axis, i * step, length) for i in range(size)]).sum(0)
        return x
