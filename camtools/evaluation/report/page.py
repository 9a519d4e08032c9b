"""The HTML report of an evaluation: expected classes beside predicted ones, with a slider for the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camtools.checks import whole
from camtools.evaluation.protocol import Protocol
from camtools.evaluation.results import EvaluationResult
from camtools.explainer import Explainer
from camtools.exports import Expected, Exports, ImageExport
from camtools.model.cam_model import wrap
from camtools.model.device import on_device
from camtools.model.outputs import Activation
from camtools.pipeline.text import named_pipelines
from camtools.progress import progress_bar


def write_page(
    result: EvaluationResult,
    path: str | Path,
    records: Any,
    model: nn.Module,
    pipeline: Any,
    *,
    protocol: str = "wsol",
    transform: Any = None,
    class_names: Sequence[str] | None = None,
    activation: Activation | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    most: int = 1000,
) -> Path:
    """Write the page of `camtools explain --report` with what the data set says of every image.

    An image's card has its expected classes, and the likeliest one where that is another, under every pipeline. Maps
    are made again, as `camtools.explain` makes them under the protocol's preprocessing: an evaluation does not keep
    them.

    Args:
        result: Of an evaluation.
        path: The file.
        records: The data set, or anything with `records[index]` for the rows' `index`.
        model: The classifier that was evaluated.
        pipeline: As for `evaluate`.
        protocol: Likewise.
        transform: Likewise.
        class_names: Likewise.
        activation: Likewise.
        device: Likewise.
        batch_size: Images per forward.
        most: Of more images than these, as many are shown, evenly spaced.

    Returns:
        The file.

    Raises:
        InputError: An argument cannot be used, or the file cannot be written.
    """
    wrapped = wrap(on_device(model, device))
    own = wrapped.preprocess if transform is None else transform
    options: dict[str, Any] = {"transform": Protocol.of(protocol, own).transform, "class_names": class_names}
    options |= {"activation": activation, "batch_size": batch_size}
    explainers = [Explainer(wrapped, steps, **options) for steps in named_pipelines(pipeline).values()]
    rows = result.rows
    expected: dict[int, list[int]] = {}  # by image, its rows
    for row, index in enumerate(rows.index.tolist()):
        expected.setdefault(index, []).append(row)
    chosen = list(expected)[:: -(-len(expected) // whole("most", most)) or 1]
    with Exports([f"report:{path}"]) as exports, progress_bar(len(chosen), "Report") as advance:
        for start in range(0, len(chosen), batch_size):
            indices = chosen[start : start + batch_size]
            images = [records[index].image for index in indices]
            labels = [[int(rows.labels[row]) for row in expected[index]] for index in indices]
            found: list[list[Any]] = [[] for _ in indices]
            for explainer in explainers:
                likeliest = explainer(images)
                for i, explanations in enumerate(explainer(images, target=labels)):
                    wrong = [likeliest[i]] if likeliest[i].label not in labels[i] else []
                    found[i] += [*explanations, *wrong]
            for index, explanations in zip(indices, found, strict=True):
                truth = [
                    Expected(int(rows.labels[row]), rows.names[row], rows.truth[row].tolist())
                    for row in expected[index]
                ]
                name = rows.ids[expected[index][0]]
                exports.add(ImageExport(name, explanations, name, truth))
            advance(len(indices))
    return Path(path)
