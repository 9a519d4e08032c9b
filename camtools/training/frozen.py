"""Networks whose first part stays as it is: what it gives for each image is kept in a file, and the rest is trained."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from camtools.checkpoints import weights_hash
from camtools.errors import InputError, ModelError
from camtools.files import locked, write_json
from camtools.heads.cut import modules_before, take_out_after, take_out_before
from camtools.model.adapter import FeatureSpec
from camtools.model.guard import untouched
from camtools.model.outputs import tensors_in
from camtools.progress import progress_bar
from camtools.training.data import Images

FEATURES_FILE, ABOUT_FILE = "features.f16", "about.json"
_TOLERANCE = 0.02  # of the largest feature: half precision, and what devices differ by


def layer_of(model: nn.Module, layer: str) -> str:
    """Return a layer's name in a model that may hold the caller's in it (`HeadedModel`, `BoxRegressor`).

    Args:
        model: What is trained.
        layer: As in `named_modules()` of the caller's model.

    Raises:
        InputError: There is none.
    """
    names = dict(model.named_modules())
    found = next((name for name in (layer, f"body.{layer}", f"network.body.{layer}") if layer and name in names), None)
    if found is None:
        some = ", ".join(name.removeprefix("body.") for name, module in model.named_children())
        raise InputError(f"freeze={layer!r}: {type(model).__name__} has no such layer. Expected a name below {some}")
    return found


def freeze(model: nn.Module, layer: str, example: Tensor) -> list[nn.Module]:
    """Take the gradients from a layer and all that runs before it, in place.

    Args:
        model: What is trained.
        layer: Dotted name in it.
        example: One input.

    Returns:
        These modules, which have to stay in eval mode for their statistics.

    Raises:
        ModelError: The layer does not run once.
    """
    frozen = [
        module for name in modules_before(model, layer, example) for module in model.get_submodule(name).modules()
    ]
    for module in frozen:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return frozen


def split(model: nn.Module, layer: str, example: Tensor) -> tuple[nn.Module, nn.Module]:
    """Return a model's part up to a layer, and what follows it; both share the model's parameters and buffers.

    Args:
        model: What is trained; left as it is.
        layer: Dotted name in it.
        example: One input.

    Returns:
        The first part, whose layer's output `features_of` takes; and the rest, a model of these features.

    Raises:
        ModelError: What follows the layer does not run by itself.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    first, rest = copy.deepcopy(model, dict(shared)), copy.deepcopy(model, dict(shared))
    take_out_after(first, FeatureSpec(layer), example)
    take_out_before(rest, layer, example)
    return first, rest


class _Reached(Exception):
    pass


def features_of(first: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Return a layer's output, without gradient, in eval mode; nothing behind it runs."""
    outputs: list[Tensor] = []

    def reached(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(next(iter(tensors_in(output))))
        raise _Reached

    handle = first.get_submodule(layer).register_forward_hook(reached, prepend=True)  # before one that changes it
    try:
        with untouched(first), torch.no_grad():
            first(images)
    except _Reached:
        pass
    finally:
        handle.remove()
    return outputs[0]


class KeptFeatures(Dataset[Any]):
    """Frozen features of augmented images by (epoch, position), in the place of the images themselves.

    Args:
        images: Whose views they are.
        features: (N, views, C, h, w) float16, memory-mapped.
    """

    def __init__(self, images: Images, features: Any) -> None:
        self.images, self.features = images, features

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, position = key
        row = self.features[position, self.images.view(epoch, position)]
        return torch.from_numpy(row.astype(np.float32)), self.images.target(position), position


def kept_features(
    folder: Path,
    first: nn.Module,
    layer: str,
    images: Images,
    about: Mapping[str, Any],
    *,
    device: torch.device,
    batch_size: int,
    shown: bool,
) -> KeptFeatures:
    """Return the frozen features of every view of every image, computed once; a killed computation goes on.

    Args:
        folder: Of any number of these files, each in a subfolder named by what it depends on.
        first: The frozen part, on the device.
        layer: Its last layer.
        images: With `views`.
        about: What the views depend on, as JSON keeps it.
        device: Of the computation.
        batch_size: Images per forward.
        shown: Whether to show a bar.

    Raises:
        InputError: An image cannot be read, the file cannot be written, another run is writing it, or it holds what
            another network with these weights gave.
        ModelError: A feature is beyond half precision.
    """
    views, count = images.views, len(images.data)
    with torch.no_grad():
        example = features_of(first, layer, images.tensor(0, 0)[None].to(device))[0].float().cpu()
    network = getattr(first, "network", first)  # a BoxRegressor's is frozen as a classifier's is
    told = {**about, "weights": weights_hash(network), "layer": layer.removeprefix("network.")}
    told |= {"views": views, "shape": list(example.shape)}
    own = folder / hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    path, row, total = own / FEATURES_FILE, 2 * example.numel(), count * views
    if not (path.exists() and path.stat().st_size == row * total):
        with locked(own), progress_bar(total, "Keeping frozen features", shown) as advance:
            write_json(told, own / ABOUT_FILE)
            try:
                with path.open("ab") as file:
                    file.truncate(file.tell() // row * row)  # what a killed run left of a last row
                    done = file.tell() // row
                    advance(done)
                    for start in range(done, total, batch_size):
                        numbers = range(start, min(start + batch_size, total))
                        batch = torch.stack([images.tensor(number % views, number // views) for number in numbers])
                        values = features_of(first, layer, batch.to(device)).to("cpu", torch.float16)
                        if not values.isfinite().all():
                            raise ModelError(
                                f"the outputs of {layer!r} are beyond half precision, in which they are kept: expected "
                                "finite numbers. Give cache=none"
                            )
                        file.write(values.contiguous().numpy().tobytes())
                        advance(len(numbers))
            except OSError as error:
                raise InputError(
                    f"{path} cannot be written: {error.strerror or error}. It takes {row * total / 1e9:.1f} GB: make "
                    "room, lower views, or name another folder (cache=)"
                ) from error
    kept = np.memmap(path, np.float16, "r", shape=(count, views, *example.shape))
    difference = (torch.from_numpy(kept[0, 0].astype(np.float32)) - example).abs().max()
    if difference > _TOLERANCE * example.abs().max().clamp_min(1):  # the same weights, another activation
        raise InputError(
            f"{path} holds other features than {layer!r} gives now, by {difference:.3g} on the first image, though the "
            "weights are the same: expected the network it was made with. Remove that folder, or name another (cache=)"
        )
    return KeptFeatures(images, kept)
