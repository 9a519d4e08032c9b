"""The few maps that a contact sheet shows, made again: an evaluation does not keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camtools.datasets.record import Record
from camtools.errors import InputError
from camtools.evaluation.protocol import Protocol
from camtools.evaluation.scoremaps import map_folders, read_map
from camtools.explainer import Explainer
from camtools.model.cam_model import wrap
from camtools.model.device import on_device
from camtools.pipeline.text import named_pipelines

MapOf = Callable[[Record, int], Any]
"""From a record and the model's index of a class to the map, (H, W) in [0, 1], over the whole image, any H and W."""


def model_maps(
    model: nn.Module,
    pipeline: Any,
    *,
    protocol: str = "wsol",
    transform: Any = None,
    device: str | torch.device | None = None,
) -> dict[str, MapOf]:
    """Return what makes each pipeline's maps, given what `camtools.evaluate` was given.

    Maps are those of `camtools.explain` under the protocol's preprocessing. They are resized linearly to the image,
    where "wsol" measures them after a cubic resize to 224 x 224: to look at, the same.

    Args:
        model: The classifier.
        pipeline: As for `evaluate`, such as "cam,rcam".
        protocol: "wsol" or "native".
        transform: The model's preprocessing; None asks the model.
        device: Where to run; None stays with the model.

    Raises:
        InputError: The protocol is unknown, or mean and std are.
        ModelError: The model cannot be explained.
        PipelineError: A pipeline is unknown or impossible.
    """
    pipelines = named_pipelines(pipeline)
    wrapped = wrap(on_device(model, device))
    own = wrapped.preprocess if transform is None else transform
    prepared = Protocol.of(protocol, own).transform
    return {name: explainer_map(Explainer(wrapped, steps, transform=prepared)) for name, steps in pipelines.items()}


def explainer_map(explainer: Callable[..., Any]) -> MapOf:
    """Return what makes the maps of an `Explainer`, or of anything called as `explainer(image, target=label)`."""
    return lambda record, label: explainer(record.image, target=label).map


def saved_maps(scoremaps: str | Path | Mapping[str, str | Path]) -> dict[str, MapOf]:
    """Return what reads the maps of each method, given what `camtools.evaluate(scoremaps=...)` was given.

    Raises:
        InputError: A folder does not exist.
    """

    def reader(folder: Path) -> MapOf:
        return lambda record, label: read_map(folder, record.id)

    return {name: reader(folder) for name, folder in map_folders(scoremaps).items()}


def checked_map(made: Any, name: str, record: Record) -> Tensor:
    """Return a map as (H, W) float32 on the CPU, within [0, 1].

    Raises:
        InputError: It is no such map.
    """
    try:
        values = torch.as_tensor(made).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"maps[{name!r}] returned {type(made).__name__} for {record.id!r}: expected a map (H, W)"
        ) from error
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(
            f"maps[{name!r}] returned the shape {tuple(values.shape)} for {record.id!r}: expected one map (H, W)"
        )
    return values.nan_to_num(0.0).clamp(0, 1)
