"""ILSVRC 2012 validation images (Russakovsky et al. 2015) with classes and boxes, in the layouts they come in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from camtools.classes.names import imagenet_names, imagenet_synsets
from camtools.datasets.base import ListedDataset, TargetKind, as_boxes, as_labels
from camtools.datasets.images import fit_boxes, read_annotated
from camtools.datasets.lists import IMAGE_SUFFIXES, FolderLayout, folder, keyed, read_rows, read_table, to_int
from camtools.datasets.record import Record
from camtools.datasets.voc import read_xml
from camtools.errors import InputError

_LAYOUT = FolderLayout(
    "ILSVRC 2012 validation",
    """
ROOT/
  val/ILSVRC2012_val_00000001.JPEG ...            (or in a folder per class: val/n01751748/ILSVRC2012_val_00000001.JPEG)
and one of these for classes and boxes
  LOC_val_solution.csv                            (Kaggle's; ILSVRC/Data/CLS-LOC/val is found, too)
  Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml ...      (or Annotations/val, or bbox/val)
or one of these for classes alone
  val/n01751748/...
  ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt and meta.mat
""",
    "image-net.org (ILSVRC2012_img_val.tar, ILSVRC2012_bbox_val_v3.tgz, ILSVRC2012_devkit_t12.tar.gz) or Kaggle's "
    "ImageNet Object Localization Challenge",
)
_WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_Objects = list[tuple[int, tuple[float, float, float, float]]]


class ILSVRC(ListedDataset):
    """ILSVRC 2012 validation: 50,000 images of 1,000 classes, indexed as torchvision and timm do: by sorted wnid.

    A folder with some of the images or classes will do; the indices stay those of the 1,000. Boxes come from
    LOC_val_solution.csv or else the XML annotations; without either, records have no boxes. They count pixels from 0
    and include both ends (zeros occur, and width - 1 at most); records have (xmin, ymin, xmax + 1, ymax + 1), half-open
    and within the image. The devkit's ground truth has ids of its own, 1 to 1000: meta.mat says which wnids they are.

    Args:
        root: The folder that holds val/, see the layout in the error for a wrong folder.
        truth: The CSV file or the folder of XML files, where they lie elsewhere.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: There are no images, or nothing that says their classes; or a line of the truth is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        truth: str | os.PathLike[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        base = folder(root)
        if not base.is_dir():
            raise _LAYOUT.error(f"{str(base)!r} is not a folder")
        self._base = _LAYOUT.first(
            [base / "val", base / "ILSVRC" / "Data" / "CLS-LOC" / "val", base / "Data" / "CLS-LOC" / "val"],
            "folder of images",
        )
        images = _images(self._base)
        if not images:
            raise _LAYOUT.error(f"no images in {str(self._base)!r}")
        super().__init__(
            [name.rpartition("/")[2].rpartition(".")[0] for name in images], imagenet_names(), transform, target
        )
        self._files = images
        csv, self._xml = _truth_places(base, truth)
        self._objects: list[_Objects] | None = None  # from the CSV
        self._labels: list[int] | None = None  # from folders or the devkit
        if csv is not None:
            self._objects = keyed(_read_csv(csv), self.ids, csv)
        elif self._xml is None and all("/" in name for name in images):
            self._labels = [_index(name.partition("/")[0], str(self._base / name)) for name in images]
        elif self._xml is None:
            self._labels = _devkit_labels(base / "ILSVRC2012_devkit_t12" / "data", self.ids)

    def labels_of(self, index: int) -> list[int]:
        """Return the classes of the objects of `record(index)`, see `ListedDataset`."""
        if self._labels is not None:
            return [self._labels[index]]
        return [label for label, _ in self._truth(index)[1]]

    def record(self, index: int) -> Record:
        """Return one record, see `RecordDataset`."""
        path, name = self._base / self._files[index], self.ids[index]
        if self._labels is not None:
            return Record(read_annotated(path), as_labels([self._labels[index]]), as_boxes([]), None, None, name)
        size, objects = self._truth(index)
        image = read_annotated(path, size)
        boxes = as_boxes([box for _, box in objects]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        boxes = fit_boxes(boxes, size, image, path)
        boxes = torch.minimum(boxes, torch.tensor([image.width, image.height] * 2))
        return Record(image, as_labels([label for label, _ in objects]), boxes, None, None, name)

    def _truth(self, index: int) -> tuple[tuple[int, int] | None, _Objects]:
        if self._objects is not None:
            return None, self._objects[index]
        assert self._xml is not None  # the constructor found one of the two
        path = self._xml / f"{self.ids[index]}.xml"
        annotation = read_xml(path)
        if not annotation.objects:
            raise InputError(f"the annotation {str(path)!r} has no object: expected at least one")
        return annotation.size, [(_index(item.name, str(path)), item.box) for item in annotation.objects]


def _images(base: Path) -> list[str]:
    """Return the images of a folder and of its wnid folders, relative to it, in the order of their file names."""
    names = []
    with os.scandir(base) as entries:
        for entry in entries:
            if _WNID.fullmatch(entry.name) and entry.is_dir():
                names += [f"{entry.name}/{name}" for name in os.listdir(entry.path)]  # noqa: PTH208 - 50,000 names, no paths
            else:
                names.append(entry.name)
    images = [name for name in names if f".{name.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES]
    return sorted(images, key=lambda name: name.rpartition("/")[2])


def _truth_places(base: Path, truth: str | os.PathLike[str] | None) -> tuple[Path | None, Path | None]:
    """Return the CSV file and the folder of XML files; at most one of them."""
    if truth is not None:
        given = folder(truth)
        if not given.exists():
            raise _LAYOUT.error(f"truth={str(truth)!r} does not exist")
        return (None, given) if given.is_dir() else (given, None)
    csv = base / "LOC_val_solution.csv"
    if csv.exists():
        return csv, None
    annotations = [base / "Annotations", base / "ILSVRC" / "Annotations"]
    places = [path / "CLS-LOC" / "val" for path in annotations] + [path / "val" for path in annotations]
    return None, next((path for path in [*places, base / "bbox" / "val"] if path.exists()), None)


def _read_csv(path: Path) -> dict[str, _Objects]:
    """Read Kaggle's LOC_val_solution.csv: ImageId, PredictionString = groups of "wnid xmin ymin xmax ymax"."""
    of_images: dict[str, _Objects] = {}
    for (name, text), line in read_table(path, ["imageid", "predictionstring"]):
        place, words = f"{path}, line {line}", text.split()
        if not words or len(words) % 5:
            raise InputError(f"{place}: {text.strip()!r}, expected groups of a wnid and four numbers")
        objects: _Objects = []
        for start in range(0, len(words), 5):
            try:
                x0, y0, x1, y1 = map(float, words[start + 1 : start + 5])
            except ValueError as error:
                raise InputError(f"{place}: {text.strip()!r}, expected four numbers after each wnid") from error
            objects.append((_index(words[start], place), (x0, y0, x1, y1)))
        of_images[name] = objects
    return of_images


def _devkit_labels(devkit: Path, names: list[str]) -> list[int]:
    """Read the devkit's ground truth: line n is the ILSVRC2012_ID of image n, which meta.mat maps to a wnid."""
    listed = devkit / "ILSVRC2012_validation_ground_truth.txt"
    meta = devkit / "meta.mat"
    if not listed.exists():
        raise _LAYOUT.error("nothing says the images' classes")
    if not meta.exists():
        raise _LAYOUT.error(
            f"{listed.name} numbers the classes 1 to 1000 in the devkit's own order, not that of the sorted wnids, and "
            f"{str(meta)!r}, which says which is which, is missing"
        )
    wnids = _read_meta(meta)
    truth = [(to_int(text, "the class", at, 1, 1000), at) for text, at in read_rows(listed, [1])]
    labels = []
    for name in names:
        number = _NUMBER.fullmatch(name)
        if number is None or not 1 <= int(number[1]) <= len(truth):
            raise InputError(f"{name!r} has no line in {listed}: expected images named as ILSVRC2012_val_00000001")
        key, place = truth[int(number[1]) - 1]
        labels.append(_index(wnids.get(key, f"id {key}"), place))
    return labels


def _read_meta(path: Path) -> dict[int, str]:
    """Return the wnid of every ILSVRC2012_ID; of the synsets without children, which are the classes."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"].reshape(-1)
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    except Exception as error:  # scipy raises whatever comes up in a damaged file
        raise InputError(f"{path} cannot be read ({error}): expected the devkit's meta.mat. Copy it again") from error


@cache
def _wnids() -> dict[str, int]:
    return {wnid: index for index, wnid in enumerate(imagenet_synsets()[0])}


def _index(wnid: str, place: str) -> int:
    index = _wnids().get(wnid)
    if index is None:
        raise InputError(
            f"{place}: {wnid!r} is not one of the 1,000 classes of ILSVRC 2012, expected a wnid (n01440764)"
        )
    return index
