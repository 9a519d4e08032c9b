"""PASCAL VOC 2007 and 2012 (Everingham et al. 2010), detection and segmentation, in the layout of the devkit.

`read_xml` reads its annotations, which ILSVRC's share the format of.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from camtools.checks import one_of
from camtools.datasets.base import ListedDataset, TargetKind, as_boxes, as_labels
from camtools.datasets.images import fit_boxes, mask_boxes, read_annotated, read_levels
from camtools.datasets.lists import FolderLayout, folder, read_rows
from camtools.datasets.record import Record
from camtools.errors import InputError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = 255  # the border around objects, and what annotators left open
_TASKS = {"detection": "Main", "segmentation": "Segmentation"}


class VOC(ListedDataset):
    """PASCAL VOC 2007 or 2012.

    The XML's boxes count pixels from 1 and include both ends; records have (xmin - 1, ymin - 1, xmax, ymax), half-open.
    For segmentation, object n of the XML has the pixels of value n in SegmentationObject, as the devkit says; where
    class and place say otherwise, the instance of its class that overlaps its box most, if any does (else its mask is
    empty). An instance without an object in the XML becomes one at the end: difficult, with the smallest box around it.
    Value 255 is ignored.

    Args:
        root: The folder VOC2012 (VOC2007), VOCdevkit, or the one that holds VOCdevkit.
        year: 2007 or 2012.
        split: "train", "val", "trainval", or "test" (2007 only; 2012 has no public annotation); None for the one to
            evaluate on, 2007 "test" and 2012 "val".
        task: "detection": the images of ImageSets/Main, boxes, no masks. "segmentation": those of
            ImageSets/Segmentation, with masks and ignored pixels as well.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: A file or folder is missing (the message shows the layout), or an argument is unknown.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        year: Literal[2007, 2012] = 2012,
        split: Literal["train", "val", "trainval", "test"] | None = None,
        *,
        task: Literal["detection", "segmentation"] = "detection",
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        if year not in (2007, 2012):
            raise InputError(f"year={year!r}: expected 2007 or 2012")
        splits = ("train", "val", "trainval", "test") if year == 2007 else ("train", "val", "trainval")
        split_name = one_of("split", split or ("test" if year == 2007 else "val"), splits)
        layout = _layout(year)
        sets = _TASKS[one_of("task", task, list(_TASKS))]
        base, here = folder(root), f"VOC{year}"
        needed = ["JPEGImages", "Annotations"] + (["SegmentationClass", "SegmentationObject"] if sets != "Main" else [])
        base = layout.first([base / here, base / "VOCdevkit" / here, base], f"folder {here}")
        for name in needed:
            layout.first([base / name], f"folder {name}")
        listed = layout.first([base / "ImageSets" / sets / f"{split_name}.txt"], f"list of the {split_name} images")
        super().__init__([name for name, _ in read_rows(listed, [1])], CLASSES, transform, target)
        self._base = base
        self._masks = sets != "Main"

    def labels_of(self, index: int) -> list[int]:
        """Return the classes of the objects of `record(index)`, see `ListedDataset`."""
        record_id = self.ids[index]
        _, labels, boxes, difficult = self._annotation(record_id)
        if not self._masks:
            return labels
        return _with_instances(labels, boxes, difficult, *self._instances(record_id))[0].tolist()

    def record(self, index: int) -> Record:
        """Return one record, see `RecordDataset`."""
        record_id = self.ids[index]
        path = self._base / "JPEGImages" / f"{record_id}.jpg"
        size, labels, boxes, difficult = self._annotation(record_id)
        image = read_annotated(path, size)
        boxes = fit_boxes(boxes, size, image, path)
        if not self._masks:
            return Record(image, as_labels(labels), boxes, None, None, record_id, difficult)
        classes, objects = self._instances(record_id, image)
        all_labels, boxes, difficult, masks = _with_instances(labels, boxes, difficult, classes, objects)
        ignore = torch.from_numpy((classes == _VOID) | (objects == _VOID))
        return Record(image, all_labels, boxes, masks, ignore, record_id, difficult)

    def _annotation(self, record_id: str) -> tuple[tuple[int, int] | None, list[int], Tensor, Tensor]:
        """Return an image's stated size, its objects' classes, boxes (N, 4) from 0, half-open, and VOC's flags."""
        path = self._base / "Annotations" / f"{record_id}.xml"
        size, objects = read_xml(path)
        unknown = [item.name for item in objects if item.name not in CLASSES]
        if unknown:
            raise InputError(f"the annotation {str(path)!r} has the class {unknown[0]!r}: expected one of VOC's 20")
        labels = [CLASSES.index(item.name) for item in objects]
        boxes = as_boxes([item.box for item in objects]) - torch.tensor([1.0, 1.0, 0.0, 0.0])
        return size, labels, boxes, torch.tensor([item.difficult for item in objects], dtype=torch.bool)

    def _instances(self, record_id: str, image: Image.Image | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the class values and the instance values, (H, W) each; checked against the image where given."""
        paths = (self._base / kind / f"{record_id}.png" for kind in ("SegmentationClass", "SegmentationObject"))
        classes, objects = (read_levels(path, palette=True, image=image) for path in paths)
        where = f"SegmentationClass and SegmentationObject of {record_id!r} in {str(self._base)!r}"
        if classes.shape != objects.shape:
            raise InputError(f"{where} are {classes.shape} and {objects.shape}: expected the same height and width")
        wrong = np.setdiff1d(classes, [*range(len(CLASSES) + 1), _VOID])
        if wrong.size or ((classes == 0) & (objects != 0) & (objects != _VOID)).any():
            problem = f"hold the class {wrong[0]}" if wrong.size else "have an instance on the background"
            raise InputError(f"{where} {problem}: expected classes 0 to 20 and 255, and instances within them")
        return classes, np.where(classes == _VOID, np.uint8(_VOID), objects)  # what is void belongs to nobody


def _layout(year: int) -> FolderLayout:
    return FolderLayout(
        f"PASCAL VOC {year}",
        f"""
VOCdevkit/VOC{year}/
  JPEGImages/{"000005" if year == 2007 else "2007_000032"}.jpg ...
  Annotations/{"000005" if year == 2007 else "2007_000032"}.xml ...
  ImageSets/Main/{{train,val,trainval{",test" if year == 2007 else ""}}}.txt
  ImageSets/Segmentation/...  SegmentationClass/*.png  SegmentationObject/*.png     (for segmentation)
""",
        f"the PASCAL VOC {year} page of the University of Oxford (VOCtrainval{', VOCtest' if year == 2007 else ''})",
    )


def _with_instances(
    labels: list[int], boxes: Tensor, difficult: Tensor, classes: NDArray[Any], objects: NDArray[Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give every object its instance's pixels, and every instance left over an object.

    Returns:
        labels (N,), boxes (N, 4), difficult (N,) and masks (N, H, W); the objects given come first.
    """
    values = [int(value) for value in np.unique(objects) if value not in (0, _VOID)]
    parts = torch.from_numpy(objects)[None] == torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1)
    own = [int(np.bincount(classes[objects == value], minlength=256)[1:_VOID].argmax()) for value in values]
    around = mask_boxes(parts)
    overlaps = box_iou(boxes, around)  # (objects, instances)
    overlaps[torch.tensor(labels).reshape(-1, 1) != torch.tensor(own).reshape(1, -1)] = 0
    chosen: dict[int, int] = {}  # instance of an object
    for number in range(len(labels)):  # as numbered, where that is the object's class and lies on its box
        if number + 1 in values and overlaps[number, values.index(number + 1)] > 0:
            chosen[number] = values.index(number + 1)
    for place in overlaps.flatten().argsort(descending=True).tolist():
        number, instance = divmod(place, len(values))
        if overlaps[number, instance] > 0 and number not in chosen and instance not in chosen.values():
            chosen[number] = instance
    masks = torch.zeros((len(labels), *objects.shape), dtype=torch.bool)
    for number, instance in chosen.items():
        masks[number] = parts[instance]
    left = [instance for instance in range(len(values)) if instance not in chosen.values()]
    return (
        as_labels([*labels, *(own[instance] for instance in left)]),
        torch.cat([boxes, around[left]]),
        torch.cat([difficult, torch.ones(len(left), dtype=torch.bool)]),
        torch.cat([masks, parts[left]]),
    )


class XmlObject(NamedTuple):
    """One object of an annotation.

    Attributes:
        name: Its class, as written.
        box: xmin, ymin, xmax, ymax, as written.
        difficult: VOC's flag; False where there is none.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class XmlAnnotation(NamedTuple):
    """One image's annotation.

    Attributes:
        size: (width, height) in pixels; None where it is not stated, or as 0.
        objects: In the file's order. Parts of objects (heads, hands) are left out.
    """

    size: tuple[int, int] | None
    objects: list[XmlObject]


def read_xml(path: Path) -> XmlAnnotation:
    """Read one annotation.

    Raises:
        InputError: The file is missing, is not XML, or an object lacks its name or box.
    """
    file = f"the annotation {str(path)!r}"
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        objects = [_object(node) for node in root.iter("object")]
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): expected VOC's XML") from error
    except ElementTree.ParseError as error:
        raise InputError(f"{file} is not XML ({error}): copy or download it again") from error
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{file} is not as in VOC ({error}): expected a name and a bndbox with xmin, ymin, xmax and ymax in every "
            "object"
        ) from error
    return XmlAnnotation((width, height) if width and height else None, objects)


def _object(node: ElementTree.Element) -> XmlObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    values = [node.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in values:
        raise ValueError(f"{name!r} has no box")
    x0, y0, x1, y1 = (float(value or "") for value in values)
    if not math.isfinite(x0 + y0 + x1 + y1) or x1 < x0 or y1 < y0:
        raise ValueError(f"{name!r} has the box {x0:g},{y0:g},{x1:g},{y1:g}")
    return XmlObject(name, (x0, y0, x1, y1), (node.findtext("difficult") or "0").strip() == "1")
