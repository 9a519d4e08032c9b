"""Caltech-UCSD Birds 200-2011 (Wah et al. 2011), in the layout of the official archive."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch

from camtools.checks import one_of
from camtools.datasets.base import ListedDataset, TargetKind, as_boxes, as_labels
from camtools.datasets.images import read_annotated, read_levels
from camtools.datasets.lists import FolderLayout, folder, keyed, read_rows, relative_name, to_box, to_int
from camtools.datasets.record import Record

_LAYOUT = FolderLayout(
    "CUB-200-2011",
    """
CUB_200_2011/
  images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg ...
  images.txt  classes.txt  image_class_labels.txt  train_test_split.txt  bounding_boxes.txt
segmentations/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.png ...   (optional; also inside CUB_200_2011)
""",
    "the Caltech-UCSD Birds-200-2011 page of the Caltech Vision Lab (CUB_200_2011.tgz, segmentations.tgz)",
)
_MAJORITY = 127  # of the five annotators: levels are 0, 51, 102, 153, 204, 255


class CUB(ListedDataset):
    """CUB-200-2011: 5,994 train and 5,794 test images of 200 birds, one box each, and masks where they are there.

    Boxes are `x, y, x + width, y + height` of bounding_boxes.txt, as everyone reads them: x and y count from 0 (zeros
    occur there). Masks are the pixels that most of the five annotators marked, level > 127 of the segmentation file.

    Args:
        root: The folder CUB_200_2011, or the one that holds it.
        split: "train", "test" or "all".
        masks: Whether to read the masks; None where there are any.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: A file or folder is missing (the message shows the layout), or a line of a list is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "test", "all"] = "test",
        *,
        masks: bool | None = None,
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        one_of("split", split, ("train", "test", "all"))
        base = folder(root)
        base = _LAYOUT.first([base / "images.txt", base / "CUB_200_2011" / "images.txt"], "list of images").parent
        for name in ("images", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"):
            _LAYOUT.first([base / name], "folder of images" if name == "images" else "list")
        classes = [name for _, name, _ in read_rows(base / "classes.txt", [2])]
        names = {key: relative_name(name, at) for key, name, at in read_rows(base / "images.txt", [2])}
        listed = base / "train_test_split.txt"
        train = {key: to_int(flag, "the split", at, 0, 1) for key, flag, at in read_rows(listed, [2])}
        wanted = {"train": (1,), "test": (0,), "all": (0, 1)}[split]
        chosen = [key for key, flag in zip(names, keyed(train, names, listed), strict=True) if flag in wanted]
        listed = base / "image_class_labels.txt"
        labels = {key: to_int(label, "the class", at, 1, len(classes)) for key, label, at in read_rows(listed, [2])}
        self._labels = [label - 1 for label in keyed(labels, chosen, listed)]
        listed = base / "bounding_boxes.txt"
        boxes = {key: to_box(box, at, sides=True) for key, *box, at in read_rows(listed, [5])}
        self._boxes = keyed(boxes, chosen, listed)
        super().__init__([names[key] for key in chosen], classes, transform, target)
        self._images = base / "images"
        places = () if masks is False else (base / "segmentations", base.parent / "segmentations")
        self._masks = next((path for path in places if path.exists()), None)
        if masks and self._masks is None:
            raise _LAYOUT.error(f"no masks: looked for {str(base / 'segmentations')!r} and beside {str(base)!r}")

    def labels_of(self, index: int) -> list[int]:
        """Return the classes of the objects of `record(index)`, see `ListedDataset`."""
        return [self._labels[index]]

    def record(self, index: int) -> Record:
        """Return one record, see `RecordDataset`."""
        name = self.ids[index]
        image = read_annotated(self._images / name)
        masks = None
        if self._masks is not None:
            path = (self._masks / name).with_suffix(".png")
            masks = torch.from_numpy(read_levels(path, palette=False, image=image) > _MAJORITY)[None]
        return Record(image, as_labels([self._labels[index]]), as_boxes([self._boxes[index]]), masks, None, name)
