"""Where a network is cut: which of its modules run before a layer, which after it, and what is left without those."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from camtools.errors import ModelError
from camtools.model.adapter import FeatureSpec
from camtools.model.guard import untouched
from camtools.model.layout import is_grid
from camtools.model.outputs import tensors_in


class _Cut:
    """What ran before a tensor was there and what after it, during one forward."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self.tensors: list[Tensor] = []
        self.before: set[str] = set()
        self.after: set[str] = set()

    def entered(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if name == self.spec.layer and self.spec.side == "input":
                self.tensors.append(list(tensors_in((args, kwargs)))[self.spec.index])
            if self.tensors:
                self.after.add(name)

        return hook

    def left(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if name == self.spec.layer and self.spec.side == "output":
                self.tensors.append(list(tensors_in(output))[self.spec.index])
                self.before.add(name)
            elif not self.tensors:
                self.before.add(name)

        return hook


def cut_spec(model: nn.Module, layer: str, example: Tensor) -> tuple[FeatureSpec, int]:
    """Return where F is if a network ends behind a layer, and its channels.

    Args:
        model: The network; left as it was.
        layer: Dotted name of a module whose output has positions, as in `model.named_modules()`.
        example: One input.

    Raises:
        ModelError: There is no such layer, it does not run once, or its output is no (B, C, h, w).
    """
    if not layer or layer not in dict(model.named_modules()):
        some = ", ".join(name for name, _ in model.named_children())
        raise ModelError(
            f"cut_after={layer!r}: {type(model).__name__} has no such layer. Expected a dotted name below {some}"
        )
    spec = FeatureSpec(layer)
    tensor = _watch(model, spec, example).tensors[0]
    if tensor.dim() != 4 or not is_grid(tensor.shape[2], tensor.shape[3], (example.shape[2], example.shape[3])):
        raise ModelError(
            f"cut_after={layer!r}: its output has shape {tuple(tensor.shape)}, expected (images, channels, rows, "
            "columns). Name a stage of a convolutional network"
        )
    return spec, tensor.shape[1]


def take_out_after(model: nn.Module, spec: FeatureSpec, example: Tensor) -> None:
    """Take all that runs once F is there out of a network, in place.

    Args:
        model: The network.
        spec: Where F is.
        example: One input.

    Raises:
        ModelError: F's layer does not run, or more than once.
    """
    cut = _watch(model, spec, example)
    _take_out(model, cut.after - cut.before - _ancestors(spec.layer))


def modules_before(model: nn.Module, layer: str, example: Tensor) -> list[str]:
    """Return the names of a layer and of all that runs before it, whole containers at once.

    Args:
        model: The network; left as it was.
        layer: Dotted name.
        example: One input.

    Raises:
        ModelError: The layer does not run, or more than once.
    """
    cut = _watch(model, FeatureSpec(layer), example)
    return _outer(cut.before - cut.after - _ancestors(layer))


def take_out_before(model: nn.Module, layer: str, example: Tensor) -> Tensor:
    """Take a layer and all that runs before it out of a network, in place: it then begins with that layer's output.

    Args:
        model: The network.
        layer: Dotted name.
        example: One input of the whole network.

    Returns:
        The layer's output for the example: the input of what is left.

    Raises:
        ModelError: There is no such layer, it does not run once; or what is left gives other outputs.
    """
    if not layer or layer not in dict(model.named_modules()):
        some = ", ".join(name for name, _ in model.named_children())
        raise ModelError(f"{type(model).__name__} has no layer {layer!r}. Expected a dotted name below {some}")
    cut = _watch(model, FeatureSpec(layer), example)
    with untouched(model), torch.no_grad():
        want = list(tensors_in(model(example)))
    _take_out(model, cut.before - cut.after - _ancestors(layer))
    given = cut.tensors[0]
    try:
        with untouched(model), torch.no_grad():
            got = list(tensors_in(model(given)))
        same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(want, got, strict=True))
    except Exception as error:
        raise ModelError(_NOT_ALONE.format(layer, type(model).__name__, f"{type(error).__name__}: {error}")) from error
    if not same:
        raise ModelError(_NOT_ALONE.format(layer, type(model).__name__, "it gives other outputs"))
    return given


_NOT_ALONE = (
    "what follows {0!r} in {1} does not run by itself ({2}): expected a layer that all of the image goes through, such "
    "as the end of a stage. Name another"
)


def _watch(model: nn.Module, spec: FeatureSpec, example: Tensor) -> _Cut:
    """Run the network once, and note what runs before and after a tensor."""
    cut = _Cut(spec)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_pre_hook(cut.entered(name), with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(cut.left(name)))
        with untouched(model), torch.no_grad():
            model(example)
    if len(cut.tensors) != 1:
        raise ModelError(
            f"layer {spec.layer!r} runs {len(cut.tensors)} times in a forward of {type(model).__name__}: expected "
            "once. Name another"
        )
    return cut


def _ancestors(layer: str) -> set[str]:
    parts = layer.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def _outer(names: set[str]) -> list[str]:
    return sorted(name for name in names if not _ancestors(name) & names)


class _Nothing(nn.Identity):
    """What takes the place of a module: its first argument goes on, masks and the like are dropped."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return input


def _take_out(model: nn.Module, names: set[str]) -> None:
    """Put identities in the place of modules, whole containers at once; forward hooks stay."""
    for name in _outer(names):
        identity = _Nothing()
        for hooks in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
            setattr(identity, hooks, getattr(model.get_submodule(name), hooks))
        model.set_submodule(name, identity)
