"""What all data sets share: records by index, and (picture, target) pairs for training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from camtools.datasets.record import Record
from camtools.errors import InputError

TargetKind = Literal["record", "label", "labels"]
TARGETS: tuple[TargetKind, ...] = ("record", "label", "labels")


class RecordDataset(Dataset[Any]):
    """A data set whose elements are records, or (picture, target) pairs where a `DataLoader` wants those.

    Subclasses call this constructor, set `classes` and implement `record` and `__len__`.

    Args:
        transform: Applied to the PIL picture; needs a `target` other than "record", since a record keeps the picture
            its boxes are in.
        target: What an element is. "record": a `Record`. "label": (picture, class index of the first object).
            "labels": (picture, (K,) float32 with 1 for every class in the picture), for multi-label losses.

    Attributes:
        classes: Class names in the order of their indices.

    Raises:
        InputError: `target` is unknown, or `transform` comes with target="record".
    """

    classes: tuple[str, ...]

    def __init__(self, transform: Callable[[Any], Any] | None = None, target: TargetKind = "record") -> None:
        if target not in TARGETS:
            raise InputError(f"target={target!r}: expected one of {', '.join(map(repr, TARGETS))}")
        if transform is not None and target == "record":
            raise InputError(
                "a transform would part the picture from its boxes: expected target='label' or 'labels' with it, which "
                "give (picture, target) pairs; records keep the picture as it is"
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
            InputError: The picture or its truth cannot be read.
        """
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"index {index}: {type(self).__name__} has {length} pictures")
        record = self.record(index % length)
        if self.target == "record":
            return record
        image = record.image if self.transform is None else self.transform(record.image)
        if self.target == "label":
            return image, record.label
        labels = torch.zeros(len(self.classes))
        labels[record.labels] = 1
        return image, labels
