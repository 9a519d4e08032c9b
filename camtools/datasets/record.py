"""The record: one image with its truth, the same from every data set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from camtools.errors import InputError


@dataclass(frozen=True, eq=False)
class Record:
    """One image with what is known about it; N objects, in the data set's order.

    Attributes:
        image: RGB.
        labels: Class index of every object, (N,) int64. A data set without boxes has one entry per class of the image.
        boxes: (N, 4) float32: x0, y0, x1, y1 in pixels of `image`, half-open; NaN rows where an object has no box, and
            (0, 4) where the data set has no boxes at all.
        masks: (N, H, W) bool, True on the visible pixels of every object; None where the data set has none.
        ignore: (H, W) bool, True on pixels that count neither as object nor as background; None for no such pixels.
        difficult: (N,) bool, objects that detection metrics neither reward nor punish (VOC); all False elsewhere.
        id: The data set's name of the image: unique in it, stable, and a usable relative path.
    """

    image: Image.Image
    labels: Tensor
    boxes: Tensor
    masks: Tensor | None
    ignore: Tensor | None
    id: str
    difficult: Tensor = field(default=None)  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.difficult is None:
            object.__setattr__(self, "difficult", torch.zeros(len(self.labels), dtype=torch.bool))
        if self.ignore is not None and not self.ignore.any():
            object.__setattr__(self, "ignore", None)

    @property
    def label(self) -> int:
        """The class of the first object: the image's class in single-label data sets.

        Raises:
            InputError: The image has no object.
        """
        if not len(self.labels):
            raise InputError(
                f"{self.id!r} has no object, so no class: expected a data set with one in every image. Leave such "
                "images out (torch.utils.data.Subset), or ask for target='labels'"
            )
        return int(self.labels[0])

    @property
    def classes(self) -> list[int]:
        """The classes in the image, each once, in the order of the objects."""
        return list(dict.fromkeys(self.labels.tolist()))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in pixels, as PIL and the box metrics have it."""
        return self.image.size

    @property
    def mask(self) -> Tensor | None:
        """All objects' pixels together, (H, W) bool; None where there are no masks."""
        return None if self.masks is None else self.masks.any(dim=0)

    def of_class(self, label: int) -> tuple[Tensor, Tensor | None]:
        """Return the boxes of one class, (n, 4), and its pixels, (H, W) bool or None."""
        chosen = self.labels == label
        return self.boxes[chosen], None if self.masks is None else self.masks[chosen].any(dim=0)

    def semantic(self, ignore_index: int = 255) -> Tensor:
        """Return what every pixel is, (H, W) int64: 0 background, class index + 1 for objects, or `ignore_index`.

        Later objects win where masks overlap.

        Raises:
            InputError: The record has no masks.
        """
        if self.masks is None:
            raise InputError(f"{self.id!r} has no masks: expected a data set with masks. Use `boxes`, or another one")
        semantic = torch.zeros(self.masks.shape[1:], dtype=torch.int64)
        for mask, label in zip(self.masks, self.labels.tolist(), strict=True):
            semantic[mask] = label + 1
        if self.ignore is not None:
            semantic[self.ignore] = ignore_index
        return semantic

    def __repr__(self) -> str:
        masks = "no masks" if self.masks is None else "masks"
        return f"Record({self.id!r}, {self.size[0]} x {self.size[1]}, labels={self.labels.tolist()}, {masks})"
