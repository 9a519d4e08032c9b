"""What is evaluated: a model's pipelines, or score maps from files; checked before the first picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from camtools.errors import CamtoolsError, InputError, ModelError
from camtools.evaluation.classes import ClassMap, match_classes
from camtools.evaluation.measure import Measure
from camtools.evaluation.naming import named_pipelines
from camtools.evaluation.protocol import Protocol as Preset
from camtools.evaluation.runner import Runner
from camtools.evaluation.scoremaps import MapReader, map_folders
from camtools.evaluation.scores import Arrays
from camtools.evaluation.selection import Selection
from camtools.guard import untouched
from camtools.model import CamModel, unwrapped, wrap
from camtools.preprocess import Preprocess
from camtools.running import checked_names, on_device

_MOST_CLASSES = 200  # of multi-label data, whose maps are all made for every picture
_LOOKED_AT = 8  # pictures, to see whether a data set has masks


class Reader(Protocol):
    """Evaluates batches."""

    def over(self, chunks: Sequence[list[int]], keep: Callable[[Arrays], None], tick: Callable[[int], None]) -> None:
        """Evaluate pictures batch by batch; see `Runner.over`."""
        ...


@dataclass(frozen=True)
class Task:
    """What is done with one data set.

    Attributes:
        reader: Evaluates its batches.
        settings: What its rows depend on.
        pipelines: Their names.
    """

    reader: Reader
    settings: dict[str, Any]
    pipelines: tuple[str, ...]


class ModelJob:
    """The maps that pipelines make of one model; arguments and errors are those of `camtools.evaluate`."""

    def __init__(
        self,
        model: nn.Module,
        pipeline: Any,
        protocol: str,
        device: str | torch.device | None,
        transform: Any,
        class_names: Sequence[str] | None,
        activation: Literal["softmax", "sigmoid"],
        workers: int,
    ) -> None:
        self.pipelines = named_pipelines(pipeline)
        self.model = wrap(on_device(model, device))
        adapter, inner = self.model.adapter, unwrapped(self.model)
        self.protocol = Preset.of(protocol, adapter.data_config(inner) if transform is None else transform)
        self.class_names = adapter.class_names(inner) if class_names is None else checked_names(class_names)
        self.activation = activation
        self.workers = workers
        self.num_classes = _num_classes(self.model, self.protocol)
        self._weights = weights_hash(inner)

    def on(self, data: Selection) -> Task:
        """Prepare for a data set.

        Raises:
            TargetError: Its classes are not the model's.
        """
        classes = match_classes(data.classes, data.occurring, self.num_classes, self.class_names)
        multilabel = data.multilabel and len(classes.known) <= _MOST_CLASSES
        masks = has_masks(data)
        pipelines = tuple(self.pipelines.values())
        measure = Measure(pipelines, self.protocol, masks, multilabel, self.activation)
        settings = {
            "data": data.fingerprint(),
            "protocol": self.protocol.name,
            "transform": repr(self.protocol.transform),
            "pipelines": {name: ", ".join(map(repr, one)) for name, one in self.pipelines.items()},
            "model": type(unwrapped(self.model)).__name__,
            "weights": self._weights,
            "classes": classes.how,
            "activation": self.activation,
            "masks": masks,
            "multilabel": multilabel,
        }
        return Task(Runner(self.model, data, classes, measure, self.workers), settings, tuple(self.pipelines))


class MapJob:
    """Score maps from files; arguments and errors are those of `camtools.evaluate`."""

    def __init__(self, scoremaps: str | Path | Mapping[str, str | Path], workers: int) -> None:
        self.folders = map_folders(scoremaps)
        self.workers = workers

    def on(self, data: Selection) -> Task:
        """Prepare for a data set."""
        classes = ClassMap(tuple(range(len(data.classes))), tuple(data.classes), "the data set's own")
        masks = has_masks(data)
        settings = {
            "data": data.fingerprint(),
            "protocol": "wsol",
            "scoremaps": {name: str(folder) for name, folder in self.folders.items()},
            "masks": masks,
        }
        return Task(MapReader(self.folders, data, classes, masks, self.workers), settings, tuple(self.folders))


def has_masks(data: Selection) -> bool:
    """Whether any of the first pictures has masks; those that can't be read are left to their own turn."""
    for index in data.indices[:_LOOKED_AT]:
        try:
            if data.record(index).masks is not None:
                return True
        except Exception:  # listed when the picture is evaluated
            continue
    return False


def weights_hash(model: nn.Module) -> str:
    """Return a short hash of all parameters and buffers, the same on every device."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _num_classes(model: CamModel, protocol: Preset) -> int:
    """Run the model once on noise of its own input size, and count its classes."""
    inner = unwrapped(model)
    example = model.example()
    if isinstance(protocol.transform, Preprocess) and protocol.transform.input_size is not None:
        shape = (1, protocol.transform.channels, *protocol.transform.input_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        example = noise.to(example.device, example.dtype)
    try:
        with untouched(inner), torch.no_grad():
            return int(model.activations(example).logits.shape[1])
    except CamtoolsError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(inner).__name__} cannot be run on an input of shape {tuple(example.shape)}: {error}. Give the "
            "model's own preprocessing (transform=)"
        ) from error


def check_whole(**values: Any) -> None:
    """Refuse what is not a whole number of at least 1.

    Raises:
        InputError: One is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: expected a whole number of at least 1")
