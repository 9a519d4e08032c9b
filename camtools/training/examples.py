"""A picture of what training changed: some validation pictures with their maps before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import nn

from camtools.evaluation.protocol import Protocol
from camtools.evaluation.selection import Selection
from camtools.explainer import Explainer
from camtools.pipeline import Pipeline
from camtools.plot import compare
from camtools.preprocess import Preprocess

_HEIGHT = 160


def before_and_after(
    before: nn.Module,
    after: nn.Module,
    data: Selection,
    index: Sequence[int],
    pipelines: Mapping[str, Pipeline],
    *,
    count: int,
    protocol: str,
    preprocess: Preprocess,
    class_names: Sequence[str],
) -> Image.Image | None:
    """Draw the true class's map of pictures spread over a data set: a row a picture.

    Args:
        before: The model that training began with; its map is a plain CAM.
        after: The trained model.
        data: Validation pictures.
        index: The model's index for each of the data's classes.
        pipelines: How the trained model's maps are read, a column each.
        count: How many pictures at most; those without a class are passed over.
        protocol: Of the validation.
        preprocess: The model's.
        class_names: The model's.

    Returns:
        None where there is nothing to draw.
    """
    chosen = data.indices[:: max(1, len(data) // max(1, count))][:count]
    records = [record for record in map(data.record, chosen) if len(record.labels)]
    if not records:
        return None
    transform = Protocol.of(protocol, preprocess).transform
    images, targets = [record.image for record in records], [index[record.label] for record in records]
    columns: list[tuple[str, nn.Module, Pipeline]] = [("before: cam", before, pipelines["cam"])]
    columns += [(f"after: {name}", after, pipeline) for name, pipeline in pipelines.items()]
    found: list[Any] = []
    for _, model, pipeline in columns:
        found.append(Explainer(model, pipeline, transform=transform, class_names=class_names)(images, target=targets))
    truth = [record.boxes if len(record.boxes) else None for record in records]
    rows = [list(row) for row in zip(*found, strict=True)]
    return compare(rows, titles=[title for title, _, _ in columns], truth=truth, height=_HEIGHT, picture=True)
