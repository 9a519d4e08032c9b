"""Training data as a fine-tune sees it, images and labels and never boxes or masks, and the batches it comes in."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from camtools.datasets.base import ListedDataset
from camtools.datasets.selection import Selection
from camtools.errors import CamtoolsError, InputError
from camtools.training.augment import seeded


@dataclass
class Batch:
    """What one step learns from: images and labels, never boxes.

    Attributes:
        images: Model inputs, (B, C, H, W), normalised, on the model's device.
        labels: (B,) int64, each image's class; or (B, K) float32 shares in [0, 1] for multi-label recipes and CutMix.
        indices: Positions of the images in the training set, (B,) int64, on the CPU.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


Labels = Sequence[Sequence[int]]
"""The classes of every training image, each once: `labels[i]` are the model's indices of image i."""


class TrainingSet:
    """Images with their labels, in the model's class indices.

    Args:
        selection: The data.
        index: The model's index for each of the data's classes.

    Attributes:
        labels: The classes of every image, each once.

    Raises:
        InputError: An image has no class, or cannot be opened where only that tells its classes.
    """

    def __init__(self, selection: Selection, index: Sequence[int] | None = None) -> None:
        self._selection, data = selection, selection.data
        place = range(len(selection.classes)) if index is None else index
        self.labels: list[list[int]] = []
        for number in selection.indices:
            own = data.labels_of(number) if isinstance(data, ListedDataset) else data.record(number).labels.tolist()
            if not own:
                raise InputError(
                    f"{selection.id_of(number)} has no class: expected at least one in every training image. Leave "
                    "such images out (torch.utils.data.Subset)"
                )
            self.labels.append([place[label] for label in dict.fromkeys(own)])

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, position: int) -> Image.Image:
        """Return one image.

        Raises:
            InputError: It cannot be read.
        """
        return self._selection.record(self._selection.indices[position]).image

    def name(self, position: int) -> str:
        """Return one image's name in the data set."""
        return self._selection.id_of(self._selection.indices[position])

    def fingerprint(self) -> dict[str, Any]:
        """Return which images and labels these are, comparable between runs; boxes play no part."""
        digest = hashlib.sha256(repr(self.labels).encode()).hexdigest()[:16]
        return {**self._selection.fingerprint(), "labels": digest}


class Images(Dataset[Any]):
    """Augmented images by (epoch, position in the training set), on which, and the seed, the augmentation depends.

    An item is (image, labels, position); of an image that cannot be read it is the problem in words, for the process
    that raises the error.

    Args:
        data: Images and labels.
        transform: From a PIL image to (C, H, W).
        classes: How many the model has.
        shares: Whether labels are (B, K) shares rather than (B,) indices.
        seed: Of the augmentation.
        views: How many augmented versions of each image there are, the same with every seed; 0 for new ones every
            epoch.
    """

    def __init__(
        self,
        data: TrainingSet,
        transform: Callable[[Any], Tensor],
        classes: int,
        shares: bool,
        seed: int,
        views: int = 0,
    ) -> None:
        self.data, self.transform, self.classes, self.shares, self.seed = data, transform, classes, shares, seed
        self.views = views

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int] | str:
        epoch, position = key
        try:
            image = self.tensor(self.view(epoch, position), position)
        except InputError as error:
            return str(error)
        return image, self.target(position), position

    def view(self, epoch: int, position: int) -> int:
        """Return which of an image's views an epoch takes, drawn by the seed; the epoch where they are not limited."""
        if not self.views:
            return epoch
        return int(np.random.SeedSequence((self.seed, epoch, position)).generate_state(1)[0]) % self.views

    def tensor(self, number: int, position: int) -> Tensor:
        """Return an augmented image, (C, H, W).

        Args:
            number: Of the view, or the epoch where views are not limited.
            position: In the training set.

        Raises:
            InputError: It cannot be read.
        """
        try:
            with self.seeded(number, position):
                return self.transform(self.data.image(position))
        except Exception as error:  # a library's own, for a damaged file
            kind = "" if isinstance(error, CamtoolsError) else f"{type(error).__name__}: "
            words = " ".join(str(error).split())
            raise InputError(f"a training image cannot be read: {self.data.name(position)}: {kind}{words}. Repair it, "
                             "or leave it out") from error  # fmt: skip

    def seeded(self, number: int, position: int) -> Any:
        """Return the context in which an image is augmented; see `tensor`."""
        return seeded(*(() if self.views else (self.seed,)), number, position)

    def target(self, position: int) -> Tensor:
        """Return an image's label, a scalar, or shares of the classes, (K,)."""
        labels = self.data.labels[position]
        if not self.shares:
            return torch.tensor(labels[0])
        target = torch.zeros(self.classes)
        target[labels] = 1
        return target


class Loader:
    """Batches of augmented images, epoch after epoch, read ahead by the same worker processes.

    Args:
        images: What is read.
        workers: Processes that read; 0 reads in this one.
        pinned: Whether batches are pinned, for a GPU.
    """

    def __init__(self, images: Dataset[Any], workers: int = 0, pinned: bool = False) -> None:
        self._keys: list[list[tuple[int, int]]] = []
        self._loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=self._keys,  # another list of batches every epoch
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
            InputError: An image cannot be read.
        """
        self._keys[:] = [[(epoch, position) for position in batch] for batch in batches]
        with _interrupts_wait():
            read = iter(self._loader)
        for batch in read:
            if isinstance(batch, str):
                raise InputError(batch)
            yield Batch(*batch)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait while worker processes start, and keep it from them for good: this process ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collate(items: list[Any]) -> Any:
    problem = next((item for item in items if isinstance(item, str)), None)
    if problem is not None:
        return problem
    images, labels, indices = zip(*items, strict=True)
    return torch.stack(images), torch.stack(labels), torch.tensor(indices)


_SHUFFLE, _BALANCED = 1, 2  # so that streams of random numbers differ


def shuffled_batches(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return every image once, in random order.

    A last batch of one image is left out where there are others: batch normalisation cannot learn from it.

    Args:
        count: Images.
        size: Images in a batch.
        seed: Any other gives another order.
        epoch: Likewise.
    """
    order = np.random.default_rng([seed, epoch, _SHUFFLE]).permutation(count).tolist()
    batches = [order[i : i + size] for i in range(0, count, size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def balanced_batches(labels: Sequence[int], classes: int, each: int, seed: int, epoch: int) -> list[list[int]]:
    """Return batches of `classes` classes with `each` images of each, a class's images one after another.

    A class with n images gives n // each groups of different images, drawn anew every epoch; one with fewer than
    `each` gives a single group in which images repeat. Groups are put together such that no class is twice in a
    batch; groups for which there are not enough other classes left wait for another epoch's order.

    Args:
        labels: The class of every image.
        classes: Classes in a batch.
        each: Images of each of them, S in MinMaxCAM (Wang et al., BMVC 2021).
        seed: Any other gives other batches.
        epoch: Likewise.

    Raises:
        InputError: There are fewer classes with images.
    """
    random = np.random.default_rng([seed, epoch, _BALANCED])
    values = np.asarray(labels)
    groups: dict[int, list[list[int]]] = {}
    for label in np.unique(values).tolist():
        own = random.permutation(np.flatnonzero(values == label)).tolist()
        if len(own) < each:
            own = (own * each)[:each]
        groups[label] = [own[i : i + each] for i in range(0, len(own) - each + 1, each)]
    if len(groups) < classes:
        raise InputError(
            f"a batch has {classes} classes, but the training images are of {len(groups)}: expected at least as "
            "many. Lower classes_per_batch"
        )
    batches: list[list[int]] = []
    while len(left := [label for label, own in groups.items() if own]) >= classes:
        # Those with most groups left come first, ties at random: so the fewest groups remain at the end.
        ties = random.permutation(len(left))
        order = sorted(range(len(left)), key=lambda i: (-len(groups[left[i]]), ties[i]))
        batches.append([image for i in order[:classes] for image in groups[left[i]].pop()])
    return [batches[i] for i in random.permutation(len(batches)).tolist()]
