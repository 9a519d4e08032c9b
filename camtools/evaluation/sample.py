"""One image made ready for an evaluation: the model's input, and the truth as the metrics compare it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from camtools.classes.matching import ClassMap
from camtools.datasets import Record
from camtools.errors import InputError
from camtools.images.enlarged import enlarged
from camtools.images.geometry import Geometry
from camtools.images.preprocess import Transform
from camtools.images.read import InputImage
from camtools.metrics.box_ious import checked_boxes
from camtools.metrics.pixel import truth_masks
from camtools.metrics.scoremap import PROTOCOL_SIZE

_OVERHANG = 1.0  # pixels by which rounding may put a box beyond its image


@dataclass(frozen=True, eq=False)
class Truth:
    """One class in one image; a row of the evaluation.

    Attributes:
        label: The model's index of the class.
        name: Its name.
        boxes: Of its objects that are not difficult, (n, 4) float32 in pixels of the image; n may be 0.
        mask: Their pixels at the protocol's size, (224, 224) bool; None where there are no masks.
        ignore: Pixels that count for nothing, likewise.
    """

    label: int
    name: str
    boxes: Tensor
    mask: Tensor | None
    ignore: Tensor | None


@dataclass(frozen=True, eq=False)
class Sample:
    """One image.

    Attributes:
        index: Its index in the data set.
        id: Its id.
        size: (width, height) in pixels.
        image: The image; None where no step looks at it.
        tensor: The model's input, (C, h, w); None where there is no model.
        geometry: Where that lies in the image.
        larger: Inputs of other sizes, (C, h', w') each, by their scale.
        truths: A row each.
        boxes: Of all objects, (N, 4) float32; NaN rows for those without one.
        labels: The model's classes of all objects, (N,) int64.
        difficult: (N,) bool.
    """

    index: int
    id: str
    size: tuple[int, int]
    image: Image.Image | None
    tensor: Tensor | None
    geometry: Geometry
    larger: dict[float, Tensor]
    truths: tuple[Truth, ...]
    boxes: Tensor
    labels: Tensor
    difficult: Tensor


def prepare(
    record: Record,
    index: int,
    classes: ClassMap,
    transform: Transform | None,
    *,
    keep_image: bool = False,
    scales: Iterable[float] = (),
) -> Sample:
    """Make a record ready.

    Args:
        record: From the data set.
        index: Its index there.
        classes: To the model's classes.
        transform: The protocol's; None where there is no model.
        keep_image: Whether a pipeline looks at the image.
        scales: Of further inputs that pipelines want maps from, over the model's own size.

    Raises:
        InputError: Its truth is impossible.
    """
    image = record.image
    size = (image.height, image.width)
    tensor, geometry = None, Geometry.identity(size)
    larger: dict[float, Tensor] = {}
    if transform is not None:
        input_image = InputImage(image, None, record.id, size)
        tensor, geometry = transform(input_image)
        larger = {scale: enlarged([input_image], tensor[None], transform, scale)[0] for scale in scales}
    labels = torch.tensor([classes.index[label] for label in record.labels.tolist()], dtype=torch.int64)
    if (labels < 0).any():
        raise InputError(f"{record.id!r} has the class {classes.names[int(record.labels[labels < 0][0])]!r}, which the "
                         "model lacks")  # fmt: skip
    boxes = _inside(record)
    return Sample(
        index=index,
        id=record.id,
        size=record.size,
        image=image if keep_image else None,
        tensor=tensor,
        geometry=geometry,
        larger=larger,
        truths=_truths(record, boxes, classes),
        boxes=boxes,
        labels=labels,
        difficult=record.difficult,
    )


def _inside(record: Record) -> Tensor:
    """Return the boxes, (N, 4), cut off at the image's border where rounding put them a pixel beyond."""
    boxes = record.boxes if len(record.boxes) else torch.full((len(record.labels), 4), torch.nan)
    edge = torch.tensor([*record.size, *record.size], dtype=boxes.dtype)
    cut = torch.minimum(boxes.clamp(min=0), edge)
    if ((cut - boxes).abs() > _OVERHANG).any():
        worst = (cut - boxes).abs().nan_to_num(0).amax(1).argmax()
        raise InputError(
            f"{record.id!r} has the box {boxes[worst].tolist()}, but is {record.size[0]} x {record.size[1]} pixels: "
            "expected boxes inside the image"
        )
    return cut


def _truths(record: Record, boxes: Tensor, classes: ClassMap) -> tuple[Truth, ...]:
    """Return the rows of an image: classes with an object that is not difficult and has a box or a mask.

    Where labels are all that is known of the image, every class is one: whether it is the likeliest can be measured.
    """
    truths = []
    counts = ~record.difficult
    labels_alone = record.masks is None and bool(boxes.isnan().any(1).all())
    for label in record.classes:
        chosen = (record.labels == label) & counts
        own = boxes[chosen]
        own = own[~own.isnan().any(1)]
        mask = ignore = None
        if record.masks is not None:
            whole, left_out = record.masks[chosen].any(0), record.masks[~counts].any(0)
            left_out = left_out if record.ignore is None else left_out | record.ignore
            objects, counted = truth_masks([whole], [left_out], 1, PROTOCOL_SIZE)
            mask, ignore = objects[0], ~counted[0]
        if len(own):
            checked_boxes([own], [record.size], 1)
        if not labels_alone and not len(own) and (mask is None or not mask.any()):
            continue
        truths.append(Truth(classes.index[label], classes.names[label], own, mask, ignore))
    return tuple(truths)
