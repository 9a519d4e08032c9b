"""What a model can be and what it takes: modules that can be looked into, the channels and preprocessing of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from camtools.errors import ModelError
from camtools.images.preprocess import Preprocess, Transform, as_transform
from camtools.model.adapter import Adapter
from camtools.model.guard import untouched

# Where frameworks keep the module that they train or run.
_HOLDERS = ("lightning_module", "model", "module", "net", "network")
_NO_FORWARD = nn.Module.forward
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
TWO_D = "camtools explains classifiers of 2-D images, (B, C, H, W); volumes, videos and signals have no map here"


def accepted(model: Any) -> nn.Module:
    """Return the module to look into; an exported program becomes one.

    Raises:
        ModelError: It is no module, or one that shows nothing of its inside; says what to pass instead.
    """
    if isinstance(model, torch.export.ExportedProgram):
        module: Any = torch.export.unflatten(model)
        sides = _exported_sides(model)
        if sides is not None:
            module.preprocess = replace(Preprocess.imagenet(sides), assumed="ImageNet's usual")
        return module
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{kind} is a TorchScript module, which shows nothing of what its layers compute. Pass the Python model "
            "that it was made of: build it, and load the script's weights: model.load_state_dict(script.state_dict())"
        )
    # ultralytics' YOLO is a module whose calls take images of any kind.
    other_call = type(model).__call__ is not nn.Module.__call__
    if not isinstance(model, nn.Module) or (other_call and getattr(model.forward, "__func__", None) is _NO_FORWARD):
        holders = (name for name in _HOLDERS if isinstance(getattr(model, name, None), nn.Module))
        inside = next(holders, None)
        way_out = "Pass the network itself"
        if isinstance(model, type):
            way_out = f"That is the class; build one: {model.__name__}(...)"
        elif isinstance(model, Mapping):
            way_out = "Those are weights; build the network that they are of, and load them: model.load_state_dict(...)"
        elif isinstance(model, str | os.PathLike):
            way_out = "Load it first: camtools.load_model(NAME, weights=FILE).model"
        if inside is not None:
            way_out = f"Pass its attribute {inside!r}, a {type(getattr(model, inside)).__name__}"
            processor = "image_processor" if hasattr(model, "image_processor") else None
            way_out += f", and its {processor} as transform=" if processor else ""
        kinds = "a torch.nn.Module" + " with a forward" * isinstance(model, nn.Module)
        raise ModelError(f"expected {kinds}, got {kind}. {way_out}")
    if isinstance(model, torch.fx.GraphModule) and not any(map(_runs, _layers(model))):
        raise ModelError(
            f"{kind} is an exported program without its layers. Pass the program that torch.export.export returned, "
            "or torch.export.unflatten(program)"
        )
    for name, module in model.named_modules():
        place = type(module).__module__
        floats = "qat" in place or "FloatFunctional" in type(module).__name__  # which fake it, or wait for it
        if ".quantized." in f"{place}." and not floats:
            raise ModelError(
                f"{kind} is quantised to integers ({name or 'the model'}: {type(module).__name__}), and integers have "
                "no gradient and round what reaches the scores. Pass the float model that it was made of"
            )
    return model


def _exported_sides(program: Any) -> tuple[int, int] | None:
    """Return the (height, width) that a program was exported for; None where it takes several."""
    example: Any = program.example_inputs and next(iter(program.example_inputs[0]), None)
    shape = example.shape if isinstance(example, Tensor) and example.dim() == 4 else ()
    dynamic = getattr(program, "range_constraints", {})
    sides = [side for side in shape[2:] if isinstance(side, int)]
    return None if len(sides) != 2 or (len(dynamic) > 1) else (sides[0], sides[1])


def own_transform(model: nn.Module, adapter: Adapter) -> Transform | None:
    """Return a model's own preprocessing, with as many channels as its first layer takes; None where none is known."""
    config = adapter.data_config(model)
    known = None if config is None else as_transform(config)
    if known is not None and not isinstance(known, Preprocess):
        return known
    channels = input_channels(model, known or Preprocess.imagenet())
    if known is None and channels == 3:
        return None
    return (known or assumed_transform()).with_channels(channels)


def assumed_transform(channels: int = 3) -> Preprocess:
    """Return ImageNet's usual preprocessing, marked as a guess."""
    return replace(Preprocess.imagenet(), assumed="ImageNet's usual").with_channels(channels)


def input_channels(model: nn.Module, known: Preprocess) -> int:
    """Return how many channels the images have that a model takes.

    Taken from its first convolution where that says what is known already. Otherwise the model is called with images of
    that many channels, up to its first layer, which tells how many it gets and how many it expects.

    Args:
        model: The model; left as it was.
        known: Its preprocessing, as far as that is known.
    """
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    if first is None or first.in_channels == known.channels:
        return known.channels
    if all(torch.nn.parameter.is_lazy(p) for p in first.parameters()):
        return known.channels
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.zeros(1, known.channels, *(known.input_size or (224, 224)))
    layers = [m for m in model.modules() if isinstance(m, _LAYERS)]
    with untouched(model), torch.no_grad():
        hooks = [layer.register_forward_pre_hook(_stop_at_first) for layer in layers]
        try:
            model(images.to(reference.device, reference.dtype))
        except _FirstLayer as found:
            got, takes = found.got, found.takes
        except Exception:  # it looks at the channels itself, before any layer
            got, takes = known.channels, first.in_channels
        else:
            return known.channels
        finally:
            for hook in hooks:
                hook.remove()
    exact = takes * known.channels / got  # a stem that folds positions into channels gets several times as many
    return int(exact) if exact == int(exact) else known.channels


class _FirstLayer(Exception):
    """The first layer of a model is about to run."""

    def __init__(self, got: int, takes: int) -> None:
        self.got, self.takes = got, takes


def _stop_at_first(module: nn.Module, args: Any) -> None:
    (x,) = (value for value in args[:1] if isinstance(value, Tensor))
    if isinstance(module, nn.Linear):
        raise _FirstLayer(x.shape[-1], module.in_features)
    axis = -4 if isinstance(module, nn.Conv3d) else -3 if isinstance(module, nn.Conv2d) else -2
    raise _FirstLayer(x.shape[axis], int(module.in_channels))  # type: ignore[arg-type]


def is_two_d(model: nn.Module) -> bool:
    """Whether the first convolution of a model, if it has any, is one of images."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    first = next((m for m in model.modules() if isinstance(m, kinds)), None)
    return first is None or isinstance(first, nn.Conv2d)


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return a graph's children; export's own begin with an underscore."""
    return [child for name, child in model.named_children() if not name.startswith("_")]


def _runs(module: nn.Module) -> bool:
    """Whether a graph's module does anything: exported ones are empty and hold parameters."""
    return type(module).forward is not nn.Module.forward
