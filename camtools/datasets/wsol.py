"""The metadata format of wsolevaluation (Choe et al. 2020, clovaai/wsolevaluation) on any folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from camtools.datasets.base import ListedDataset, TargetKind, as_boxes, as_labels
from camtools.datasets.images import fit_boxes, mask_boxes, read_annotated, read_levels, resize_masks
from camtools.datasets.lists import FolderLayout, class_names, folder, keyed, read_rows, relative_name, to_box, to_int
from camtools.datasets.record import Record
from camtools.errors import InputError

LAYOUT = FolderLayout(
    "wsolevaluation metadata",
    """
METADATA/                     (such as metadata/CUB/test)
  image_ids.txt               path/to/image1.jpg
  class_labels.txt            path/to/image1.jpg,0
  image_sizes.txt             path/to/image1.jpg,500,375                    (optional: width, height)
  localization.txt            path/to/image1.jpg,156,163,318,230            (optional: x0, y0, x1, y1)
                         or   path/to/image1.jpg,path/to/mask.png,path/to/ignore.png
IMAGES/path/to/image1.jpg ...
""",
    "the folder metadata/ of github.com/clovaai/wsolevaluation",
)
_BOX_FIELDS, _MASK_FIELDS = 5, 3


class WSOL(ListedDataset):
    """Images, one class each, with boxes or masks from the text files of wsolevaluation.

    Boxes are the file's numbers, unchanged, and scaled where the image is not of the size in image_sizes.txt. An
    object of a mask file is its values above 0; a mask of another size than the image is brought to it by the nearest
    pixel. Ignored are the ignore file's pixels that are in no mask, as in wsolevaluation's `get_mask`. Boxes of objects
    with masks are the smallest around them.

    Args:
        metadata: The folder with image_ids.txt and the others.
        images: The folder that the ids are relative to.
        masks: The folder that mask files are relative to; `images` where left out.
        classes: Class names in order, a file of them, or "imagenet"; the numbers "0" to the largest where left out.
        squashed: Whether images of another aspect ratio than in image_sizes.txt are the same ones squashed (to
            224 x 224, say), so that boxes are scaled on each axis; an error otherwise.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: A file or folder is missing (the message shows the layout), or a line is wrong.
    """

    def __init__(
        self,
        metadata: str | os.PathLike[str],
        images: str | os.PathLike[str],
        *,
        masks: str | os.PathLike[str] | None = None,
        classes: str | os.PathLike[str] | Iterable[str] | None = None,
        squashed: bool = False,
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        base = folder(metadata)
        for name in ("image_ids.txt", "class_labels.txt"):
            LAYOUT.first([base / name], "list of images" if name == "image_ids.txt" else "list of classes")
        self._images = LAYOUT.first([folder(images)], "folder of images")
        self._mask_root = self._images if masks is None else LAYOUT.first([folder(masks)], "folder of masks")
        self._squashed = squashed
        names = [relative_name(name, at) for name, at in read_rows(base / "image_ids.txt", [1])]
        listed = base / "class_labels.txt"
        rows = {name: to_int(label, "the class", at) for name, label, at in read_rows(listed, [2], ",")}
        self._labels = keyed(rows, names, listed)
        known = None if classes is None else class_names(classes)
        last = max(rows.values(), default=0)
        if known is not None and last >= len(known):
            raise InputError(
                f"{listed} has the class {last}, but classes has {len(known)} names: expected one for every"
            )
        super().__init__(names, known or [str(index) for index in range(last + 1)], transform, target)
        listed = base / "image_sizes.txt"
        self._sizes: list[tuple[int, int]] | None = None
        if listed.exists():
            sizes = {
                name: (to_int(width, "the width", at, 1), to_int(height, "the height", at, 1))
                for name, width, height, at in read_rows(listed, [3], ",")
            }
            self._sizes = keyed(sizes, names, listed)
        listed = base / "localization.txt"
        boxes, masks_of = _read_localization(listed) if listed.exists() else ({}, {})
        self._boxes = keyed(boxes, names, listed) if boxes else None
        self._masks = keyed(masks_of, names, listed) if masks_of else None

    def labels_of(self, index: int) -> list[int]:
        """Return the classes of the objects of `record(index)`, see `ListedDataset`."""
        objects = self._boxes or self._masks
        return [self._labels[index]] * (len(objects[index]) if objects else 1)

    def record(self, index: int) -> Record:
        """Return one record, see `RecordDataset`."""
        name = self.ids[index]
        path = self._images / name
        size = None if self._sizes is None else self._sizes[index]
        image = read_annotated(path, size)
        labels = as_labels(self.labels_of(index))
        if self._masks is not None:
            masks = self._read_masks([mask for mask, _ in self._masks[index]], image)
            ignored = self._read_masks([ignore for _, ignore in self._masks[index] if ignore], image)
            ignore = ignored.any(dim=0) & ~masks.any(dim=0)
            return Record(image, labels, mask_boxes(masks), masks, ignore, name)
        boxes = as_boxes([] if self._boxes is None else self._boxes[index])
        return Record(image, labels, fit_boxes(boxes, size, image, path, self._squashed), None, None, name)

    def _read_masks(self, names: list[str], image: Image.Image) -> Tensor:
        """Return masks at the image's size, (N, H, W) bool."""
        none = torch.zeros((0, image.height, image.width), dtype=torch.bool)
        levels = (torch.from_numpy(read_levels(self._mask_root / name, palette=False)) for name in names)
        return torch.cat([none, *(resize_masks(level[None] > 0, image) for level in levels)])


def _read_localization(path: Path) -> tuple[dict[str, list[tuple[float, ...]]], dict[str, list[tuple[str, str]]]]:
    """Return the boxes of every image, or its mask files, each with its ignore file or ""."""
    boxes: dict[str, list[tuple[float, ...]]] = {}
    masks: dict[str, list[tuple[str, str]]] = {}
    for name, *fields, at in read_rows(path, [_MASK_FIELDS, _BOX_FIELDS], ","):
        if len(fields) == _BOX_FIELDS - 1:
            boxes.setdefault(name, []).append(to_box(fields, at))
        else:
            mask, ignore = fields
            masks.setdefault(name, []).append((relative_name(mask, at), ignore and relative_name(ignore, at)))
        if boxes and masks:
            raise InputError(f"{at}: boxes and masks in one file, expected the same kind in every line")
    return boxes, masks
