"""Thresholds from images without labels: half-way from a pipeline's own to where its boxes are as large as others'."""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camtools.checks import as_path, whole
from camtools.defaults import DEFAULT_PRESET
from camtools.engine import Engine
from camtools.errors import InputError, PipelineError
from camtools.evaluation.thresholds import UNLABELLED
from camtools.files import check_writable, write_json
from camtools.images.adjusted import Crop, shown_whole
from camtools.images.batches import Batch, Failed, images_of, read_batches
from camtools.metrics.box_ious import LEVELS, largest_boxes
from camtools.metrics.scoremap import PROTOCOL_SIZE, normalise, resize_cubic
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.pixels import on_pixels
from camtools.pipeline.presets import preset
from camtools.pipeline.text import one_pipeline
from camtools.progress import progress_bar
from camtools.steps.base import Step

REFERENCES = ("rcam", "fast", "best")
LEAST = 20  # images


class Calibration(NamedTuple):
    """A threshold chosen without labels.

    Attributes:
        threshold: Fraction of the map's maximum, half-way between the two below.
        own: The pipeline's own: the median over the images.
        matching: At it, half of the boxes are larger, and half smaller, than the reference pipelines' are.
        images: How many it was chosen on.
    """

    threshold: float
    own: float
    matching: float
    images: int


def calibrate(
    model: nn.Module,
    images: Any,
    pipeline: str | Pipeline | Step | Sequence[Step] = DEFAULT_PRESET,
    *,
    out: str | os.PathLike[str] | None = None,
    limit: int = 500,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    transform: Any = None,
    crop: Crop | None = None,
    failed: Failed | None = None,
    progress: bool = False,
) -> Calibration:
    """Choose a threshold on images of one's own, without any labels.

    Each image's likeliest class is mapped by the pipeline and by the presets "rcam", "fast" and "best" (those of them
    that it is not itself). The box that the references agree on is the median of theirs, at their own thresholds. The
    threshold at which the pipeline's largest boxes have these boxes' median area is where its extent agrees with
    theirs; half-way from the pipeline's own threshold to it is what was best on images with truth. See
    docs/thresholds.md for how much is gained, and what was tried instead.

    Args:
        model: Any classifier, or a `CamModel`.
        images: Images, a folder, a pattern or a list file, as `Explainer.stream` takes them.
        pipeline: Whose threshold: preset name, `Pipeline`, step, or list of steps that don't look at pixels.
        out: A file to write, which `calibrated` and `camtools explain --threshold` read; None writes nothing.
        limit: At most so many images, evenly spaced where the number of images is known.
        device: Where to run; None stays with the model.
        batch_size: Images per forward.
        transform: The model's preprocessing; None asks the model.
        crop: Which part of the image the model is shown, see `Explainer`.
        failed: What is done about an image that cannot be read; None raises.
        progress: Whether to show a bar.

    Returns:
        The threshold, and what it was made of.

    Raises:
        InputError: An image or an argument cannot be used, or there are fewer than 20 images.
        ModelError: The model cannot be explained.
        PipelineError: The pipeline is unknown or impossible, or looks at pixels.

    Example:
        >>> found = camtools.calibrate(model, "photos/", "fast")
        >>> camtools.explain(model, "photo.jpg", pipeline=camtools.evaluation.calibrated("fast", found.threshold))
    """
    built, name = one_pipeline(pipeline)
    if built.needs_image:
        raise PipelineError(
            f"{name} looks at the image's pixels, where a threshold on the map is not all that makes boxes: expected a "
            "pipeline without such a step. Calibrate it before that step"
        )
    place = None if out is None else as_path("out", out)
    if place is not None:
        check_writable(place, folder=False)
    others = [preset(key) for key in REFERENCES if preset(key).summary != built.summary]
    engine = Engine(model, [built, *others], device=device, transform=transform, batch_size=batch_size)
    if crop is not None or transform is None:
        engine.transform = shown_whole(engine.transform, crop)
    items, most = images_of(images), whole("limit", limit)
    total = next((len(known) for known in (items, images) if isinstance(known, Sized)), 0)
    wanted = range(most) if total <= most else [number * total // most for number in range(most)]
    chosen = [item for number, item in zip(range(wanted[-1] + 1), items, strict=False) if number in wanted]
    areas, references, owns = [], [], []
    batches = read_batches(enumerate(chosen), repeat(None), engine.transform, batch_size, engine.least, failed=failed)
    with progress_bar(len(chosen), "Calibrating", progress) as advance:
        for batch in batches:
            (boxes, own), *theirs = _boxes(engine, batch)
            areas.append(_log_areas(boxes))
            owns.append(own)
            rows = torch.arange(len(own))
            agreed = torch.stack([boxes[rows, level] for boxes, level in theirs]).double().median(0).values
            references.append(_log_areas(agreed))
            advance(len(batch.images))
    count = sum(map(len, owns))
    if count < LEAST:
        raise InputError(f"{count} images could be read: expected at least {LEAST}. Calibrate on more of them")
    gaps = (torch.cat(areas).median(0).values - torch.cat(references).median()).abs()
    matching = int(gaps[1:-1].argmin()) + 1
    usual = int(torch.cat(owns).median())
    threshold, at, same = (level / (LEVELS - 1) for level in ((usual + matching) / 2, usual, matching))
    found = Calibration(threshold, at, same, count)
    if place is not None:
        about = {"unlabelled": count, "references": REFERENCES, "own": found.own, "matching": found.matching}
        write_json({"calibration": about, "thresholds": {name: {UNLABELLED: found.threshold}}}, Path(place))
    return found


@torch.no_grad()
def _boxes(engine: Engine, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Return each pipeline's largest boxes at all levels, (B, 256, 4), and its own level, (B,), of the likeliest class.

    Boxes are in cells of the map at the protocol's size: what counts is their size beside each other.
    """
    forward = engine.run(batch)
    states = engine.maps(forward, forward.logits.argmax(1, keepdim=True))
    rows, found = range(len(batch.images)), []
    for pipeline, state in zip(engine.pipelines, states, strict=True):
        done = on_pixels(pipeline, state, rows, _resize)
        maps, limits = (done.require(field, pipeline) for field in ("maps", "thresholds"))
        levels = (normalise(maps[:, 0].double(), None) * (LEVELS - 1)).to(torch.uint8)
        own = (limits[:, 0].cpu() * (LEVELS - 1)).long().clamp(0, LEVELS - 2)
        found.append((largest_boxes(levels), own))
    return found


def _resize(maps: Tensor) -> Tensor:
    return resize_cubic(maps.flatten(0, 1).double(), PROTOCOL_SIZE).unflatten(0, maps.shape[:2]).float()


def _log_areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + 1).double().prod(-1).log()
