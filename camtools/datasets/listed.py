"""Data sets that are lists of files: their names and classes are known without opening a picture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from camtools.datasets.base import RecordDataset, TargetKind
from camtools.errors import InputError


class ListedDataset(RecordDataset):
    """A data set whose ids are read by its constructor, and whose pictures are opened one at a time when asked for.

    It holds no open files, so that it can be pickled and read by the workers of a `DataLoader`.

    Args:
        ids: The pictures' names, in order.
        classes: Class names in the order of their indices.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Attributes:
        ids: What `record(i).id` is, for every i.

    Raises:
        InputError: There are no pictures, or an id occurs twice.
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
            raise InputError(f"{type(self).__name__}: the list of pictures is empty, expected at least one")
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            twice = next(name for name in self.ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InputError(f"{type(self).__name__}: {twice!r} is listed twice, expected every picture once")

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def labels_of(self, index: int) -> list[int]:
        """Return `record(index).labels` as a list, without opening the picture; `index` in [0, len)."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} pictures, {len(self.classes)} classes)"


def as_labels(labels: Sequence[int]) -> Tensor:
    """Return class indices as a record has them, (N,) int64."""
    return torch.tensor(labels, dtype=torch.int64)


def as_boxes(boxes: Sequence[Sequence[float]]) -> Tensor:
    """Return boxes as a record has them, (N, 4) float32."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
