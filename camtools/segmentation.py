"""The result of `segment`: which class every pixel of an image is of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_segmentation_masks

from camtools.boxes import PartBoxes
from camtools.drawing.colours import LARGEST, voc_colour, voc_palette
from camtools.drawing.legend import Key
from camtools.drawing.overlay import with_legend
from camtools.drawing.panels import outlined
from camtools.errors import InputError
from camtools.regions import ClassRegions, HasRegions
from camtools.result import ImageResult, Look, fitted
from camtools.steps.base import State
from camtools.steps.peaks import Peaks, part_boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmentation(HasRegions, ImageResult):
    """Which class every pixel of one image is of; n classes were looked for. Tensors are on the model's device.

    Attributes:
        mask: (H, W) int64 on the original image's pixels: 0 is background, class index + 1 a class, as in VOC's
            masks, `Record.semantic` and `MeanIoU`.
        classes: Indices of the classes that were looked for, likeliest first or in the caller's order. One may have
            lost every pixel to the others.
        names: Their names; the index as text where no names are known.
        scores: The model's probabilities for them, in [0, 1].
        probabilities: What the mask is the argmax of, (n + 1, H, W) float32: background, then the classes.
        maps: Their normalised maps, (n, H, W) float32 in [0, 1], before background and CRF.
        backgrounds: The value of each map at which class and background are equally likely.
        peaks: The step that splits the masks into parts; None where these are their connected parts.
        crf: The CRF that refined the probabilities, as it prints; None for none.
        exact, layer, logits, input_image, transform, pipeline: See `camtools.result.ImageResult`.
    """

    mask: Tensor
    classes: tuple[int, ...]
    names: tuple[str, ...]
    scores: tuple[float, ...]
    probabilities: Tensor
    maps: Tensor
    backgrounds: tuple[float, ...]
    peaks: Peaks | None = None
    crf: str | None = None

    kinds = usual = ("overlay", "mask")

    @cached_property
    def masks(self) -> Tensor:
        """One mask per class, in the order of `classes`, (n, H, W) bool."""
        return self.mask == torch.tensor(self.classes, device=self.mask.device)[:, None, None] + 1

    @cached_property
    def _parts(self) -> list[PartBoxes]:
        state = State(maps=self.maps[None], masks=self.masks[None])
        return part_boxes(state, self.peaks) if self.classes else []

    @property
    def boxes(self) -> tuple[Tensor, ...]:
        """Boxes of the parts of each class's mask, in the order of `classes`.

        (N, 4) int64 on the CPU, largest part first: x0, y0, x1, y1 in pixels, half-open. Parts with less than a
        hundredth of its pixels get none.
        """
        return tuple(found.boxes for found in self._parts)

    @property
    def box_scores(self) -> tuple[Tensor, ...]:
        """How sure each box is, (N,) float32 in [0, 1]: the class's score times its map's maximum in the box's part."""
        return tuple(score * found.peaks for score, found in zip(self.scores, self._parts, strict=True))

    @property
    def regions(self) -> tuple[ClassRegions, ...]:
        """Where the classes are, one entry per class, in the order of `classes`."""
        sure = [of_class.tolist() for of_class in self.box_scores]
        columns = zip(self.classes, self.names, self.scores, self.boxes, sure, self.masks, strict=True)
        return tuple(ClassRegions(*row) for row in columns)

    @property
    def values(self) -> tuple[int, ...]:
        """What stands for the classes in `to_image` and `mask.png`, in the order of `classes`.

        Class index + 1 where the model has at most 254 classes (255 is VOC's "ignore"), else 1, 2, 3 ...
        """
        if len(self.logits) < LARGEST:
            return tuple(label + 1 for label in self.classes)
        return tuple(range(1, len(self.classes) + 1))

    def to_image(self) -> Image.Image:
        """Return the mask as an image with VOC's palette, mode "P"; what its values mean is in `values`.

        Raises:
            InputError: There are more than 254 classes in this one image.
        """
        if len(self.classes) >= LARGEST:
            raise InputError(
                f"{len(self.classes)} classes do not fit into an image with a palette: expected at most "
                f"{LARGEST - 1}. Look for fewer classes, or store `mask` itself"
            )
        pixels = np.zeros(self.size, dtype=np.uint8)
        for mask, value in zip(self.masks.cpu().numpy(), self.values, strict=True):
            pixels[mask] = value
        image = Image.fromarray(pixels, "P")
        image.putpalette(voc_palette())
        return image

    @property
    def caption(self) -> str:
        """Names and scores."""
        named = zip(self.names, self.scores, strict=True)
        return ", ".join(f"{name} {score:.1%}" for name, score in named) or "background only"

    def overlay(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """Tint and outline every class's pixels in its colour, with a legend of names and scores.

        Args:
            alpha: Weight of the tint, in [0, 1].
            legend: Whether to say which colour is which class, on white below the image (beside it where it is
                narrow).

        Returns:
            RGB image. Without a legend it has the original's size; with one it is larger, and has the image at its
            top left.

        Raises:
            InputError: `alpha` is out of range.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha}: expected a weight between 0 (image only) and 1 (colours only)")
        canvas = self.image.convert("RGB")
        colours = [voc_colour(value) for value in self.values]
        masks = self.masks.cpu()
        if masks.any():
            canvas = to_pil_image(draw_segmentation_masks(pil_to_tensor(canvas), masks, alpha, list(colours)))
        width = max(1, round(min(canvas.size) / 150))
        for mask, colour in zip(masks.numpy(), colours, strict=True):
            outlined(canvas, mask, colour, width)
        if not legend:
            return canvas
        shares = self.masks.flatten(1).float().mean(1).tolist()
        keys = [
            Key(f"{name} {score:.1%}, {share:.1%} of the pixels", colour if share else None)
            for name, score, share, colour in zip(self.names, self.scores, shares, colours, strict=True)
        ]
        return with_legend(canvas, keys or [Key("no class in this image")], max(11, round(sum(canvas.size) / 68)))

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the overlay on matplotlib axes, with a legend of the classes' colours; see `ImageResult.plot`."""
        from matplotlib.patches import Patch

        ax = super().plot(ax, **options)
        handles = [
            Patch(color=(red / 255, green / 255, blue / 255), label=name)
            for (red, green, blue), name in zip(map(voc_colour, self.values), self.names, strict=True)
        ]
        if handles:
            ax.legend(handles=handles, fontsize="small")
        return ax

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, ready for JSON."""
        pixels, boxes = self.masks.flatten(1).sum(1).tolist(), [of_class.tolist() for of_class in self.boxes]
        first, sure = [of[0] if of else None for of in boxes], [of.tolist() for of in self.box_scores]
        columns = (self.values, self.classes, self.names, self.scores, pixels, first, boxes, sure, self.backgrounds)
        keys = ("value", "label", "name", "score", "pixels", "box", "boxes", "box_scores", "background")
        return {
            "source": self.source,
            "height": self.size[0],
            "width": self.size[1],
            "classes": [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)],
            "exact": self.exact,
            "layer": self.layer,
            "pipeline": self.pipeline,
            "crf": self.crf,
        }

    def _write(self, stage: Path, kinds: Collection[str], look: Look) -> dict[str, str | list[str]]:
        written: dict[str, str | list[str]] = {}
        if "overlay" in kinds:
            overlay = self.overlay()
            overlay = overlay.resize(fitted((overlay.height, overlay.width), look.size)[::-1])
            written["overlay"] = look.write(overlay, stage / "overlay")
        if "mask" in kinds:
            self.to_image().save(stage / "mask.png")
            written["mask"] = "mask.png"
        return written

    def __repr__(self) -> str:
        shares = self.masks.flatten(1).float().mean(1).tolist()
        classes = ", ".join(f"{name!r} {share:.1%}" for name, share in zip(self.names, shares, strict=True))
        return (
            f"Segmentation({self.size[0]} x {self.size[1]}, {classes or 'background only'}"
            f"{f', {self.source!r}' if self.source else ''})"
        )
