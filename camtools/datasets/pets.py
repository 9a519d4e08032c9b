"""The Oxford-IIIT Pet data set (Parkhi et al. 2012) with its trimaps, in the layout of the official archives."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch

from camtools.checks import one_of
from camtools.datasets.base import ListedDataset, TargetKind, as_labels
from camtools.datasets.images import mask_boxes, read_annotated, read_levels
from camtools.datasets.lists import FolderLayout, folder, read_rows, relative_name, to_int
from camtools.datasets.record import Record
from camtools.errors import InputError

_LAYOUT = FolderLayout(
    "Oxford-IIIT Pet",
    """
oxford-iiit-pet/
  images/Abyssinian_1.jpg ...
  annotations/{list,trainval,test}.txt
  annotations/trimaps/Abyssinian_1.png ...
""",
    "the Oxford-IIIT Pet page of the University of Oxford (images.tar.gz, annotations.tar.gz)",
)
_FOREGROUND, _BORDER = 1, 3  # 2 is background


class OxfordPets(ListedDataset):
    """Oxford-IIIT Pet: 3,680 trainval and 3,669 test images of 37 breeds, one trimap each.

    The box is the smallest around the mask: the boxes in annotations/xmls are of heads only, and are not used.

    Args:
        root: The folder with images/ and annotations/, or the one that holds it as oxford-iiit-pet, as torchvision's.
        split: "trainval" or "test".
        border: What the trimap's third value is, a border of a few pixels that was not classified: "ignore" leaves it
            out, "foreground" counts it as the pet's.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: A file or folder is missing (the message shows the layout), or a line of a list is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["trainval", "test"] = "test",
        *,
        border: Literal["ignore", "foreground"] = "ignore",
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        one_of("split", split, ("trainval", "test"))
        self._ignore_border = one_of("border", border, ("ignore", "foreground")) == "ignore"
        base = folder(root)
        base = _LAYOUT.first([base / "annotations", base / "oxford-iiit-pet" / "annotations"], "annotations").parent
        for place in (base / "images", base / "annotations" / "trimaps"):
            _LAYOUT.first([place], f"folder {place.name}")
        listed = _LAYOUT.first([base / "annotations" / f"{split}.txt"], f"list of the {split} images")
        rows = [
            (relative_name(name, at), to_int(label, "the class", at, 1) - 1)
            for name, label, _, _, at in read_rows(listed, [4], comment="#")
        ]
        breeds = {label: " ".join(word.title() for word in name.split("_")[:-1]) for name, label in rows}
        missing = set(range(max(breeds, default=-1) + 1)) - set(breeds)
        if missing:
            raise InputError(f"{listed} has no image of class {min(missing) + 1}: expected every class up to the last")
        super().__init__([name for name, _ in rows], [breeds[label] for label in sorted(breeds)], transform, target)
        self._labels = [label for _, label in rows]
        self._base = base

    def labels_of(self, index: int) -> list[int]:
        """Return the classes of the objects of `record(index)`, see `ListedDataset`."""
        return [self._labels[index]]

    def record(self, index: int) -> Record:
        """Return one record, see `RecordDataset`."""
        name = self.ids[index]
        image = read_annotated(self._base / "images" / f"{name}.jpg")
        path = self._base / "annotations" / "trimaps" / f"{name}.png"
        trimap = torch.from_numpy(read_levels(path, palette=True, image=image))
        border, mask = trimap == _BORDER, trimap == _FOREGROUND
        ignore = border if self._ignore_border else None
        masks = (mask if self._ignore_border else mask | border)[None]
        return Record(image, as_labels([self._labels[index]]), mask_boxes(masks), masks, ignore, name)
