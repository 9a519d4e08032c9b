"""`Scenes`: a data set that is drawn when asked for, with exact masks and boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from camtools.checks import one_of, whole
from camtools.datasets.base import ListedDataset, TargetKind
from camtools.datasets.record import Record
from camtools.datasets.scenes.creature import MARKS
from camtools.datasets.scenes.drawing import Stream
from camtools.datasets.scenes.scene import Scene, draw_scene

SPLITS = ("train", "val", "test")
LENGTHS = {"train": 10_000, "val": 1_000, "test": 1_000}


class Scenes(ListedDataset):
    """Drawn images of creatures: a large body that all classes share, and a small head that tells the class.

    Made to show what plain CAM is known for: a classifier needs the head only, so its map stays on the head, and a box
    around it misses the body. Ground and bodies have textures in random colours; light, pose, shape and size vary;
    stones, sticks and stray heads without a body lie about. Eight classes, named after the mark on the head.

    Image `i` depends on `seed`, `split`, `objects`, `mixed`, `size` and `i` only, and is the same on every machine to
    the last bit. Another `size` draws the same scene with more or fewer pixels.

    Args:
        split: "train", "val" or "test"; they share no image.
        n: Number of images; by default 10,000 for "train", else 1,000.
        size: Side of the square images, in pixels.
        seed: Any other gives other images.
        objects: Creatures per image, or the least and the most of them (drawn evenly).
        mixed: Whether the creatures of one image are of several classes (multi-label); False gives all the same.
        transform: Applied to the PIL image, see `RecordDataset`.
        target: What an element is, see `RecordDataset`.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> record = Scenes("test", n=10)[0]
        >>> record.boxes, record.mask.shape
    """

    def __init__(
        self,
        split: str = "test",
        n: int | None = None,
        size: int = 128,
        seed: int = 0,
        *,
        objects: int | tuple[int, int] = 1,
        mixed: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        one_of("split", split, SPLITS)
        low, high = objects if isinstance(objects, tuple | list) and len(objects) == 2 else (objects, objects)
        self.split = split
        self.n = whole("n", LENGTHS[split] if n is None else n, 1)
        self.size = whole("size", size, 32)
        self.seed = whole("seed", seed, 0)
        self.objects = whole("objects", low, 1, 4), whole("objects", high, low, 4)
        self.mixed = mixed
        super().__init__((f"{split}-{seed}-{i:06d}" for i in range(self.n)), tuple(MARKS), transform, target)

    def labels_of(self, index: int) -> list[int]:
        """Return the creatures' classes without drawing them."""
        return self._begin(index)[1]

    def _begin(self, index: int) -> tuple[Stream, list[int]]:
        """Return a scene's random numbers, those for its classes taken, and its classes."""
        stream = Stream(self.seed, SPLITS.index(self.split), index)
        count = stream.integer(*self.objects)
        labels = [stream.integer(0, len(MARKS) - 1) for _ in range(count)]
        return stream, labels if self.mixed else labels[:1] * count

    def draw(self, index: int) -> Scene:
        """Return scene `index` with everything known about it: each creature's pose, its pixels and its head's."""
        return draw_scene(*self._begin(index), self.size)

    def record(self, index: int) -> Record:
        """Return image `index` with its exact truth."""
        scene = self.draw(index)
        return Record(
            image=Image.fromarray(scene.pixels),
            labels=torch.tensor([c.label for c in scene.creatures]),
            boxes=torch.tensor([c.box for c in scene.creatures], dtype=torch.float32),
            masks=torch.from_numpy(np.stack([c.mask for c in scene.creatures])),
            ignore=None,
            id=self.ids[index],
        )

    def __repr__(self) -> str:
        return f"Scenes({self.split!r}, n={self.n}, size={self.size}, seed={self.seed}, objects={self.objects})"
