"""Training data as a fine-tune sees it: pictures and labels; boxes and masks stay behind here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from camtools.datasets import ListedDataset
from camtools.errors import CamtoolsError, InputError
from camtools.evaluation.selection import Selection
from camtools.training.augment import seeded
from camtools.training.recipe import Batch

Key = tuple[int, int]
"""(epoch, position in the training set): what a picture's augmentation depends on, beside the seed."""


class TrainingSet:
    """Pictures with their labels, in the model's class indices.

    Args:
        selection: The data.
        index: The model's index for each of the data's classes.

    Attributes:
        labels: The classes of every picture, each once.
        multilabel: Whether any picture has several.

    Raises:
        InputError: A picture has no class, or cannot be opened where only that tells its classes.
    """

    def __init__(self, selection: Selection, index: Sequence[int] | None = None) -> None:
        self._selection = selection
        found = [_labels(selection, one) for one in selection.indices]
        place = list(range(len(selection.classes))) if index is None else list(index)
        self.labels: list[list[int]] = [[place[label] for label in dict.fromkeys(labels)] for labels in found]
        self.multilabel = any(len(labels) > 1 for labels in self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, position: int) -> Image.Image:
        """Return one picture.

        Raises:
            InputError: It cannot be read.
        """
        return self._selection.record(self._selection.indices[position]).image

    def name(self, position: int) -> str:
        """Return one picture's name in the data set."""
        return self._selection.id_of(self._selection.indices[position])

    def counts(self, classes: int) -> list[int]:
        """Return how many pictures each class has."""
        found = [0] * classes
        for labels in self.labels:
            for label in labels:
                found[label] += 1
        return found

    def fingerprint(self) -> dict[str, Any]:
        """Say which pictures and labels these are, comparably between runs; boxes play no part."""
        digest = hashlib.sha256(repr(self.labels).encode()).hexdigest()[:16]
        return {**self._selection.fingerprint(), "labels": digest}


@dataclass(frozen=True)
class Failed:
    """A picture that could not be read, on its way from a worker to the process that says so."""

    words: str


class _Pictures(Dataset[Any]):
    """Augmented pictures by (epoch, position)."""

    def __init__(self, data: TrainingSet, transform: Callable[[Any], Tensor], classes: int, shares: bool, seed: int):
        self.data, self.transform, self.classes, self.shares, self.seed = data, transform, classes, shares, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, int] | Failed:
        epoch, position = key
        try:
            with seeded(self.seed, epoch, position):
                image = self.transform(self.data.picture(position))
        except Exception as error:  # a library's own, for a damaged file
            kind = "" if isinstance(error, CamtoolsError) else f"{type(error).__name__}: "
            return Failed(f"{self.data.name(position)}: {kind}{' '.join(str(error).split())}")
        labels = self.data.labels[position]
        if not self.shares:
            return image, torch.tensor(labels[0]), position
        target = torch.zeros(self.classes)
        target[labels] = 1
        return image, target, position


class Loader:
    """Batches of augmented pictures, epoch after epoch, read ahead by the same worker processes.

    Args:
        data: Pictures and labels.
        transform: From a PIL picture to (C, H, W).
        classes: How many the model has.
        shares: Whether labels are (B, K) shares rather than (B,) indices.
        seed: Of the augmentation.
        workers: Processes that read; 0 reads in this one.
        pinned: Whether batches are pinned, for a GPU.
    """

    def __init__(
        self,
        data: TrainingSet,
        transform: Callable[[Any], Tensor],
        classes: int,
        shares: bool,
        seed: int,
        workers: int,
        pinned: bool,
    ) -> None:
        self._keys: list[list[Key]] = []
        self._loader: DataLoader[Any] = DataLoader(
            _Pictures(data, transform, classes, shares, seed),
            batch_sampler=_Sampler(self._keys),
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # else the loader draws from the caller's random numbers
        )

    def epoch(self, epoch: int, batches: list[list[int]]) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            epoch: From 0.
            batches: Positions in the training set.

        Raises:
            InputError: A picture cannot be read.
        """
        self._keys[:] = [[(epoch, position) for position in batch] for batch in batches]
        for found in self._loader:
            if isinstance(found, Failed):
                raise InputError(f"a training picture cannot be read: {found.words}. Repair it, or leave it out")
            yield Batch(*found)


class _Sampler:
    """A list of batches that changes between epochs."""

    def __init__(self, keys: list[list[Key]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(list(self.keys))

    def __len__(self) -> int:
        return len(self.keys)


def _collate(items: list[Any]) -> Any:
    failed = next((one for one in items if isinstance(one, Failed)), None)
    if failed is not None:
        return failed
    images, labels, indices = zip(*items, strict=True)
    return torch.stack(images), torch.stack(labels), torch.tensor(indices)


def _labels(selection: Selection, index: int) -> list[int]:
    """Return a picture's classes; opens it only where the data set cannot tell otherwise."""
    data = selection.data
    labels = data.labels_of(index) if isinstance(data, ListedDataset) else data.record(index).labels.tolist()
    if not labels:
        raise InputError(
            f"{selection.id_of(index)} has no class: expected at least one in every training picture. Leave such "
            "pictures out (torch.utils.data.Subset)"
        )
    return list(labels)
