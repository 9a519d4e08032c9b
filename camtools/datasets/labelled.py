"""Images with a class each and nothing else: a folder per class, or anybody's data set of (image, label)."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from camtools.classes.names import resolve_target
from camtools.datasets.base import ListedDataset, TargetKind
from camtools.datasets.lists import IMAGE_SUFFIXES, FolderLayout, class_names, folder
from camtools.datasets.record import Record
from camtools.errors import InputError, TargetError
from camtools.images.read import read_image

_LAYOUT = FolderLayout(
    "ImageFolder",
    """
FOLDER/sparrow/1.jpg        a folder per class, images in it and in its sub-folders
FOLDER/wren/a/2.png
""",
    "your own images, as torchvision.datasets.ImageFolder has them",
)
_IMAGE_KEYS, _LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label")


class _Labelled(ListedDataset):
    """Images with a class each, and no boxes.

    Args:
        ids: The images' names.
        labels: Their classes.
        *rest: The rest of `ListedDataset`'s.
    """

    def __init__(self, ids: Iterable[str], labels: Sequence[int], *rest: Any) -> None:
        super().__init__(ids, *rest)
        self._labels = [int(label) for label in labels]

    def labels_of(self, index: int) -> list[int]:
        """Return the class of `record(index)`, see `ListedDataset`."""
        return [self._labels[index]]

    @abstractmethod
    def _image(self, index: int) -> Any:
        """Return what `read_image` takes."""

    def record(self, index: int) -> Record:
        """Return one record, see `RecordDataset`."""
        image = read_image(self._image(index)).image
        if image is None:
            raise InputError(
                f"{self.ids[index]!r} is a floating tensor: expected an image. Leave out the data set's transform"
            )
        return Record(image, torch.tensor(self.labels_of(index)), torch.zeros(0, 4), None, None, self.ids[index])


class ImageFolder(_Labelled):
    """A folder per class, as torchvision's `ImageFolder`; images may lie in sub-folders.

    Args:
        root: The folder of the folders.
        classes: The class names in order, a file of them, or "imagenet"; folders' names are then read as
            `resolve_target` reads a class: a name, an index, or (ImageNet's) a wnid. None takes the folders' names,
            sorted.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: There is no such folder or no image in it, or a folder's name is no class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        classes: str | os.PathLike[str] | Iterable[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        self._root = folder(root)
        if not self._root.is_dir():
            raise _LAYOUT.error(f"{str(self._root)!r} is not a folder")
        found = {
            place.name: images
            for place in sorted(self._root.iterdir())
            if place.is_dir() and not place.name.startswith(".") and (images := images_below(place))
        }
        if not found:
            raise _LAYOUT.error(f"{str(self._root)!r} has no folder with images in it")
        names = tuple(found) if classes is None else class_names(classes)
        try:
            index = {
                name: i if classes is None else resolve_target(name, names, listed=True) for i, name in enumerate(found)
            }
        except TargetError as error:
            raise InputError(f"a folder of {self._root} is named like no class: {error}") from error
        listed = [(path.relative_to(self._root).as_posix(), index[name]) for name in found for path in found[name]]
        ids, labels = zip(*listed, strict=True)
        super().__init__(ids, labels, names, transform, target)

    def _image(self, index: int) -> Any:
        return self._root / self.ids[index]


class LabelledImages(_Labelled):
    """Anybody's data set of (image, label): torchvision's, Hugging Face's, or any with `len` and indices.

    Labels are read without opening images where the data set has them apart: `targets` (torchvision), or a column
    "label" (`datasets`); else every element is opened once.

    Args:
        dataset: Gives (image, label), or a mapping with "image" and "label"; images as `read_image` takes them, so
            without a transform to tensors.
        classes: The class names in order; None takes `dataset.classes`, or those of the label's feature.

    Raises:
        InputError: It is no such data set, or its classes have no names.
    """

    def __init__(self, dataset: Any, classes: Iterable[str] | None = None) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InputError(f"{dataset!r} cannot be used: expected a data set with a length and numbered elements")
        self._dataset, columns = dataset, getattr(dataset, "column_names", None)
        if columns is not None:
            self._keys = (_column(columns, _IMAGE_KEYS), _column(columns, _LABEL_KEYS))
            labels, names = dataset[self._keys[1]], getattr(dataset.features[self._keys[1]], "names", None)
        else:
            labels, names = getattr(dataset, "targets", None), getattr(dataset, "classes", None)
            labels = [element[1] for element in _all(dataset)] if labels is None else labels
        names = tuple(classes) if classes is not None else names
        if names is None:
            raise InputError(f"{dataset!r} does not name its classes: expected classes=[...], their names in order")
        width = len(str(len(labels)))
        super().__init__((f"{number:0{width}}" for number in range(len(labels))), list(labels), names, None, "record")

    def _image(self, index: int) -> Any:
        if hasattr(self, "_keys"):
            return self._dataset[index][self._keys[0]]
        return self._dataset[index][0]

    def __repr__(self) -> str:
        return f"LabelledImages({type(self._dataset).__name__}, {len(self)} images, {len(self.classes)} classes)"


def images_below(place: Path) -> list[Path]:
    """Return the images in a folder and its sub-folders, sorted."""
    files = (path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith("."))


def _column(columns: Sequence[str], known: Sequence[str]) -> str:
    name = next((name for name in known if name in columns), None)
    if name is None:
        raise InputError(f"the data set has the columns {', '.join(columns)}: expected one named {' or '.join(known)}")
    return name


def _all(dataset: Any) -> Iterable[tuple[Any, int]]:
    for number in range(len(dataset)):
        element = dataset[number]
        if not isinstance(element, tuple | list) or len(element) != 2:
            raise InputError(
                f"element {number} of {type(dataset).__name__} is {type(element).__name__}: expected (image, label)"
            )
        yield element[0], int(element[1])
