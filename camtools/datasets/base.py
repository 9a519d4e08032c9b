"""What all data sets share.

`RecordDataset` gives records by index, or (image, target) pairs for training; `ListedDataset` also knows every image's
id and labels without opening it. Data sets of one's own derive from one of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from camtools.checks import one_of
from camtools.datasets.record import Record
from camtools.errors import InputError

TargetKind = Literal["record", "label", "labels"]
TARGETS: tuple[TargetKind, ...] = ("record", "label", "labels")


class RecordDataset(Dataset[Any]):
    """A data set whose elements are records, or (image, target) pairs where a `DataLoader` wants those.

    Subclasses call this constructor, set `classes` and implement `record` and `__len__`.

    Args:
        transform: Applied to the PIL image; needs a `target` other than "record", since a record keeps the image
            its boxes are in.
        target: What an element is. "record": a `Record`. "label": (image, class index of the first object).
            "labels": (image, (K,) float32 with 1 for every class in the image), for multi-label losses.

    Attributes:
        classes: Class names in the order of their indices.

    Raises:
        InputError: `target` is unknown, or `transform` comes with target="record".
    """

    classes: tuple[str, ...]

    def __init__(self, transform: Callable[[Any], Any] | None = None, target: TargetKind = "record") -> None:
        one_of("target", target, TARGETS)
        if transform is not None and target == "record":
            raise InputError(
                "a transform would part the image from its boxes: expected target='label' or 'labels' with it, which "
                "give (image, target) pairs; records keep the image as it is"
            )
        self.transform = transform
        self.target = target

    @abstractmethod
    def record(self, index: int) -> Record:
        """Return one record; `index` in [0, len)."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Return element `index`, see `target`; negative indices count from the end.

        Raises:
            IndexError: There is no such element.
            InputError: The image or its truth cannot be read.
        """
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"index {index}: {type(self).__name__} has {length} images")
        record = self.record(index % length)
        if self.target == "record":
            return record
        image = record.image if self.transform is None else self.transform(record.image)
        if self.target == "label":
            return image, record.label
        labels = torch.zeros(len(self.classes))
        labels[record.labels] = 1
        return image, labels


class ListedDataset(RecordDataset):
    """A data set whose ids are read by its constructor, and whose images are opened one at a time when asked for.

    It holds no open files, so that it can be pickled and read by the workers of a `DataLoader`.

    Args:
        ids: The images' names, in order.
        classes: Class names in the order of their indices.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Attributes:
        ids: What `record(i).id` is, for every i.

    Raises:
        InputError: There are no images, or an id occurs twice.
    """

    def __init__(
        self,
        ids: Iterable[str],
        classes: Sequence[str],
        transform: Callable[[Any], Any] | None,
        target: TargetKind,
    ) -> None:
        super().__init__(transform, target)
        self.ids = list(ids)
        self.classes = tuple(classes)
        if not self.ids:
            raise InputError(f"{type(self).__name__}: the list of images is empty, expected at least one")
        name, times = Counter(self.ids).most_common(1)[0]
        if times > 1:
            raise InputError(f"{type(self).__name__}: {name!r} is listed twice, expected every image once")

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def labels_of(self, index: int) -> list[int]:
        """Return `record(index).labels` as a list, without opening the image; `index` in [0, len)."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {len(self.classes)} classes)"


def as_labels(labels: Sequence[int]) -> Tensor:
    """Return class indices as a record has them, (N,) int64."""
    return torch.tensor(labels, dtype=torch.int64)


def as_boxes(boxes: Sequence[Sequence[float]]) -> Tensor:
    """Return boxes as a record has them, (N, 4) float32."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
