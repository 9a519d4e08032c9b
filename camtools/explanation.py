"""The result: one class in one image, as map, mask and boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from camtools.boxes import coco_annotations
from camtools.drawing.overlay import draw_overlay
from camtools.drawing.trace import draw_trace
from camtools.errors import InputError
from camtools.pipeline.trace import TraceStep
from camtools.regions import HasBoxes
from camtools.result import ImageResult


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation(HasBoxes, ImageResult):
    """Where one class is in one image. Tensors are on the model's device, boxes on the CPU.

    Attributes:
        label: Class index.
        name: Class name; the index as text where no names are known.
        score: The model's probability for the class, in [0, 1].
        map: Normalised map at the original image's resolution, (H, W) float32 in [0, 1].
        raw_map: The class map before normalisation, signed, at feature resolution, (h, w) float32.
        threshold: What `map` was compared with.
        mask: `map > threshold`, (H, W) bool.
        boxes: One box per connected part of the mask, the part with the most pixels first, (N, 4) int64: x0, y0, x1,
            y1 in pixels of the original image, half-open. Parts with less than a hundredth of the largest's pixels
            get none. (0, 4) where the mask is empty. One, whatever the mask, where a `BoxRegressor` gave it.
        trace: The map after every step, in order; empty unless asked for by `trace=True`.
        exact, layer, logits, input_image, transform, pipeline: See `camtools.result.ImageResult`.
    """

    label: int
    name: str
    score: float
    map: Tensor
    raw_map: Tensor
    threshold: float
    mask: Tensor
    boxes: Tensor
    trace: tuple[TraceStep, ...] = ()

    files = {"overlay": "overlay.png", "mask": "mask.png", "map": "map.npy"}

    @property
    def box(self) -> Tensor | None:
        """The box of the mask's largest part, (4,) int64 xyxy half-open; None where the mask is empty."""
        return self.boxes[0] if len(self.boxes) else None

    def cpu(self) -> Explanation:
        """Return the same explanation with every tensor on the CPU."""
        return replace(super().cpu(), trace=tuple(step.cpu() for step in self.trace))

    def overlay(
        self,
        alpha: float = 0.5,
        colormap: str = "inferno",
        boxes: Literal["largest", "all", "none"] = "largest",
        legend: bool = True,
    ) -> Image.Image:
        """Draw map, box, class and score over the image, with a legend.

        Args:
            alpha: Weight of the map's colours, in [0, 1].
            colormap: Name of a matplotlib colour map.
            boxes: Which boxes to draw.
            legend: Whether to explain the colours, the threshold and the box, on white below the image (beside it
                where it is narrow). A name that is too long for the image is there in full.

        Returns:
            RGB image. Without a legend it has the original's size; with one it is larger, and has the image at its
            top left.

        Raises:
            InputError: `alpha` is out of range, or the colour map is unknown.
        """
        chosen = self.choose(boxes).tolist()
        say: dict[str, Any] = {"threshold": self.threshold, "key": _key(boxes, len(chosen))} if legend else {}
        return draw_overlay(self.image, self.map.cpu().numpy(), chosen, self.caption, alpha, colormap, **say)

    def plot_trace(self, *, height: int = 140, columns: int | None = None, colormap: str = "inferno") -> Image.Image:
        """Draw the map after every step of the pipeline, and how each step changed it.

        Signed maps have a diverging colour map with 0 in its middle, normalised ones `colormap`; their ranges are
        written below. Under each is the difference from the step before, after both were brought to [0, 1].

        Args:
            height: Of a thumbnail, in pixels.
            columns: Thumbnails per row; as many as fit in about 1,600 pixels by default.
            colormap: Name of a matplotlib colour map, for normalised maps.

        Returns:
            RGB image.

        Raises:
            InputError: The explanation has no trace, or an argument cannot be used.
        """
        boxes = self.boxes.tolist()
        return draw_trace(self.image, self.trace, boxes, self.name, self.score, height, columns, colormap)

    @property
    def caption(self) -> str:
        """Name and score, as they are written on images."""
        return f"{self.name} {self.score:.1%}"

    def choose(self, boxes: Literal["largest", "all", "none"]) -> Tensor:
        """Return the boxes to draw, (n, 4).

        Raises:
            InputError: `boxes` is none of the three words.
        """
        chosen = {"largest": self.boxes[:1], "all": self.boxes, "none": self.boxes[:0]}
        if boxes not in chosen:
            raise InputError(f"boxes={boxes!r}: expected one of {', '.join(map(repr, chosen))}")
        return chosen[boxes]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, ready for JSON."""
        return {
            "source": self.source,
            "height": self.size[0],
            "width": self.size[1],
            "label": self.label,
            "name": self.name,
            "score": self.score,
            "box": None if self.box is None else self.box.tolist(),
            "boxes": self.boxes.tolist(),
            "threshold": self.threshold,
            "exact": self.exact,
            "layer": self.layer,
            "pipeline": self.pipeline,
            "map_size": list(self.raw_map.shape),
        }

    def to_coco(
        self, image_id: int = 1, *, first_annotation_id: int = 1, category_id: int | None = None
    ) -> dict[str, Any]:
        """Return a COCO data set of this one image: what annotation tools import.

        Args:
            image_id: Number of the image.
            first_annotation_id: Number of the first annotation; every part of the mask is one.
            category_id: Number of the class; `label + 1` by default, since 0 is reserved for background in many tools.

        Returns:
            "images", "annotations" (bbox as x, y, width, height; segmentation as uncompressed run lengths; score) and
            "categories".
        """
        category = self.label + 1 if category_id is None else category_id
        name = Path(self.source).name if self.source else f"{image_id}"
        image = {"id": image_id, "file_name": name, "height": self.size[0], "width": self.size[1]}
        found = coco_annotations(self.mask.cpu().numpy())
        annotations = [
            {"id": number, "image_id": image_id, "category_id": category, "score": self.score, **annotation}
            for number, annotation in enumerate(found, first_annotation_id)
        ]
        return {"images": [image], "annotations": annotations, "categories": [{"id": category, "name": self.name}]}

    def _write(self, stage: Path) -> None:
        self.overlay().save(stage / self.files["overlay"])
        Image.fromarray(self.mask.cpu().numpy().astype(np.uint8) * 255).save(stage / self.files["mask"])
        np.save(stage / self.files["map"], self.map.cpu().numpy())

    def __repr__(self) -> str:
        box = "none" if self.box is None else str(tuple(self.box.tolist()))
        kind = "exact" if self.exact else "linearised"
        return (
            f"Explanation({self.label} {self.name!r}, score={self.score:.3f}, box={box} of {len(self.boxes)}, "
            f"map={self.size[0]} x {self.size[1]} from {self.raw_map.shape[0]} x {self.raw_map.shape[1]}, {kind} at "
            f"{self.layer!r}{f', {self.source!r}' if self.source else ''})"
        )


def _key(boxes: str, count: int) -> str | None:
    """Say what the boxes drawn are."""
    if boxes == "none":
        return None
    if not count:
        return "no box: nothing above the threshold"
    return "box: largest part above it" if boxes == "largest" else "boxes: parts above it"
