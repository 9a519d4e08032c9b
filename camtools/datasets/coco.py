"""COCO's instances (Lin et al. 2014), and any data set in that JSON format.

`decode_segmentation` makes masks of its polygons and run lengths, by pycocotools.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle  # type: ignore[import-untyped]
from torch import Tensor

from camtools.datasets.base import ListedDataset, TargetKind, as_boxes, as_labels
from camtools.datasets.images import fit_boxes, read_annotated, resize_masks
from camtools.datasets.lists import FolderLayout, folder, read_text, relative_name
from camtools.datasets.record import Record
from camtools.errors import InputError
from camtools.files import parse_json

_LAYOUT = FolderLayout(
    "COCO",
    """
annotations/instances_val2017.json     {"images": [...], "annotations": [...], "categories": [...]}
val2017/000000000139.jpg ...
""",
    "cocodataset.org (2017 val images, 2017 train/val annotations)",
)
_Annotation = dict[str, Any]


class COCO(ListedDataset):
    """Images with boxes and masks from a COCO JSON file.

    Category ids, which leave gaps, become indices from 0 in the order of the ids. Boxes [x, y, width, height] become
    (x, y, x + width, y + height). Polygons, run lengths and compressed run lengths become masks as in COCO's own code;
    an image with an object that has none of these has no masks. A crowd is no object: its pixels that are in no mask
    are ignored. Ids are file names; `image_ids` holds COCO's numbers.

    Args:
        annotations: The JSON file.
        images: The folder that file names are relative to. Where left out: the folder named as the end of the file's
            name ("val2017" of "instances_val2017.json"), beside the file or one level up.
        keep_empty: Whether to keep images without objects.
        transform: See `RecordDataset`.
        target: See `RecordDataset`; "label" needs keep_empty=False.

    Attributes:
        image_ids: COCO's id of every image.

    Raises:
        InputError: The file or folder is missing, is not COCO's JSON, or an annotation refers to what is not there.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        *,
        keep_empty: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        path = folder(annotations)
        if not path.is_file():
            raise _LAYOUT.error(f"{str(path)!r} is not a file")
        name = path.stem.rpartition("_")[2]
        places = [path.parent / name, path.parent.parent / name] if images is None else [folder(images)]
        self._images = _LAYOUT.first(places, "folder of images")
        try:
            data = parse_json(read_text(path))
            input_images = {int(entry["id"]): entry for entry in data["images"]}
            categories = sorted((int(entry["id"]), str(entry["name"])) for entry in data["categories"])
            objects: dict[int, list[_Annotation]] = {key: [] for key in input_images}
            crowds: dict[int, list[_Annotation]] = {}
            for entry in data["annotations"]:
                into = crowds.setdefault(entry["image_id"], []) if entry.get("iscrowd") else objects[entry["image_id"]]
                into.append(entry)
            kept = [key for key in input_images if keep_empty or objects[key]]
            names = [relative_name(str(input_images[key]["file_name"]), f"{path}, image {key}") for key in kept]
            self._sizes = [_size(input_images[key]) for key in kept]
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not JSON: {error}. Copy or download it again") from error
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} is not COCO's JSON of instances: {type(error).__name__} {error}. Expected images, categories "
                f"(ids, names) and annotations whose image_id is an image's id"
            ) from error
        super().__init__(names, [name for _, name in categories], transform, target)
        self.image_ids = kept
        self._path = path
        self._index = {key: index for index, (key, _) in enumerate(categories)}
        self._objects = [objects[key] for key in kept]
        self._crowds = [crowds.get(key, []) for key in kept]
        for entry in (entry for entries in self._objects for entry in entries):
            if entry.get("category_id") not in self._index:
                raise InputError(
                    f"{self._where(entry)} has the category {entry.get('category_id')!r}, which is not among the "
                    f"{len(categories)} categories"
                )

    def labels_of(self, index: int) -> list[int]:
        """Return the classes of the objects of `record(index)`, see `ListedDataset`."""
        return [self._index[entry["category_id"]] for entry in self._objects[index]]

    def record(self, index: int) -> Record:
        """Return one record, see `RecordDataset`."""
        path, size = self._images / self.ids[index], self._sizes[index]
        image = read_annotated(path, size)
        boxes = fit_boxes(as_boxes([self._box(entry) for entry in self._objects[index]]), size, image, path)
        masks = None
        if all(entry.get("segmentation") for entry in self._objects[index]):
            masks = self._masks(self._objects[index], size, image)
        ignore = self._masks(self._crowds[index], size, image).any(dim=0)
        if masks is not None:
            ignore &= ~masks.any(dim=0)
        labels = as_labels(self.labels_of(index))
        return Record(image, labels, boxes, masks, ignore, self.ids[index])

    def _masks(self, entries: list[_Annotation], size: tuple[int, int], image: Image.Image) -> Tensor:
        """Return the masks of annotations at the image's size, (N, H, W) bool."""
        masks = np.zeros((len(entries), size[1], size[0]), dtype=bool)
        for mask, entry in zip(masks, entries, strict=True):
            if not entry.get("segmentation"):  # a crowd with a box alone
                x0, y0, x1, y1 = self._box(entry)
                mask[max(math.floor(y0), 0) : math.ceil(y1), max(math.floor(x0), 0) : math.ceil(x1)] = True
                continue
            try:
                mask[:] = decode_segmentation(entry["segmentation"], (size[1], size[0]))
            except (ValueError, TypeError) as error:
                raise InputError(f"{self._where(entry)} cannot be drawn: {error}") from error
        return resize_masks(torch.from_numpy(masks), image)

    def _box(self, entry: _Annotation) -> tuple[float, float, float, float]:
        try:
            x, y, width, height = map(float, entry["bbox"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._where(entry)} has no bbox of four numbers: x, y, width, height") from error
        return x, y, x + width, y + height

    def _where(self, entry: _Annotation) -> str:
        return f"{self._path}: annotation {entry.get('id', '(no id)')} of image {entry.get('image_id')}"


def _size(entry: dict[str, Any]) -> tuple[int, int]:
    """Return the (width, height) of an image's entry."""
    width, height = int(entry["width"]), int(entry["height"])
    if width < 1 or height < 1:
        raise ValueError(f"image {entry['id']} is {width} x {height}")
    return width, height


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of one annotation's "segmentation", (H, W) bool, as pycocotools draws it.

    Args:
        segmentation: A list of polygons, each [x0, y0, x1, y1, ...] in pixels; or a dictionary with "size" (H, W) and
            "counts", a list of run lengths or their compressed text.
        size: (height, width) of the image.

    Raises:
        ValueError: It is none of these, or is not for that size.
    """
    if isinstance(segmentation, dict):
        if tuple(segmentation.get("size", ())) != size:
            raise ValueError(f"its run lengths are for size {segmentation.get('size')}, its image is {list(size)}")
        return _decode_runs(segmentation.get("counts"), size)
    if not isinstance(segmentation, list):
        raise ValueError(f"its segmentation is {type(segmentation).__name__}, expected polygons or run lengths")
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
    if not all(p.ndim == 1 and p.size >= 6 and p.size % 2 == 0 and np.isfinite(p).all() for p in polygons):
        raise ValueError("its polygon is not x, y, x, y, ... of three corners or more")
    return rle.decode(rle.merge(rle.frPyObjects([p.tolist() for p in polygons], *size))).astype(bool)


def _decode_runs(counts: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of run lengths, column-major and background first; pycocotools trusts them, we don't."""
    if isinstance(counts, list):
        if min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
            raise ValueError(f"its run lengths add up to {sum(counts)}, expected {size[0]} x {size[1]} pixels")
        return rle.decode(rle.frPyObjects({"size": size, "counts": counts}, *size)).astype(bool)
    if not isinstance(counts, str | bytes):
        raise ValueError("its run lengths have no counts")
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    if odd := re.search(rb"[^0-o]", text):  # a character is six bits from "0" on, the highest for "more follow"
        raise ValueError(f"its compressed run lengths hold {chr(odd[0][0])!r}, which cannot occur")
    if text[-1:] >= b"P":
        raise ValueError("its compressed run lengths end within a number")
    if not _fits(text, size) or _fits(text, (size[0] * size[1] - 1, 1)):  # too short ones would leave pixels undefined
        raise ValueError(f"its compressed run lengths do not add up to {size[0]} x {size[1]} pixels")
    return rle.decode({"size": size, "counts": text}).astype(bool)


def _fits(text: bytes, size: tuple[int, int]) -> bool:
    """Return whether compressed run lengths add up to at most as many pixels as an image has."""
    try:
        rle.decode({"size": size, "counts": text})
    except ValueError:
        return False
    return True
