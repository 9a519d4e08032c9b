"""Where classes are, class by class: boxes with their scores, and each box's part of the mask. What is exported."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours, label
from torch import Tensor

from camtools.checks import number
from camtools.errors import InputError

if TYPE_CHECKING:
    import supervision

Polygon = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClassRegions:
    """One class in one image.

    Attributes:
        label: Class index.
        name: Class name.
        score: The model's probability for the class.
        boxes: (N, 4) int64 on the CPU: x0, y0, x1, y1 in pixels, half-open.
        box_scores: A score for each box, N.
        mask: (H, W) bool, or whole numbers where parts are told apart by them, 0 outside.
    """

    label: int
    name: str
    score: float
    boxes: Tensor
    box_scores: list[float]
    mask: Tensor

    def parts(self) -> Iterator[NDArray[np.bool_]]:
        """Yield each box's pixels, (y1 - y0, x1 - x0) bool: the connected part it is around, else all within it."""
        labels = label(self.mask.cpu().numpy(), connectivity=2)
        areas = np.bincount(labels.ravel())
        around: dict[tuple[int, ...], list[int]] = {}
        places = ndimage.find_objects(labels)
        for part in 1 + np.argsort(areas[1:], kind="stable"):
            rows, columns = places[part - 1]
            around.setdefault((columns.start, rows.start, columns.stop, rows.stop), []).append(part)
        for x0, y0, x1, y1 in self.boxes.tolist():
            window = labels[y0:y1, x0:x1]
            candidates = around.get((x0, y0, x1, y1))
            yield window == candidates.pop() if candidates else window > 0

    def polygons(self, tolerance: float = 0.0) -> Iterator[list[Polygon]]:
        """Yield each box's polygons, see `HasRegions.polygons`."""
        for (x0, y0, _, _), part in zip(self.boxes.tolist(), self.parts(), strict=True):
            filled = np.pad(ndimage.binary_fill_holes(part), 1)
            rings = find_contours(filled.astype(np.float32), 0.5, fully_connected="high")
            rings = [approximate_polygon(ring, tolerance)[:-1, ::-1] for ring in rings]
            yield [np.add(ring, (x0 - 0.5, y0 - 0.5)).astype(np.float32) for ring in rings if len(ring) > 2]


class HasRegions(ABC):
    """What results offer to those who go on with boxes and masks elsewhere."""

    image: Image.Image
    size: tuple[int, int]

    @property
    @abstractmethod
    def regions(self) -> tuple[ClassRegions, ...]:
        """Where the classes are, one entry per class."""

    def polygons(self, tolerance: float = 0.0) -> list[list[Polygon]]:
        """Return the outlines of every box's part of the mask, class by class, in the order of the boxes.

        Args:
            tolerance: How far a simplified outline may lie from the mask's, in pixels; 0 keeps every vertex.

        Returns:
            A list per box: usually one polygon, (n, 2) float32, x and y in pixels from edge to edge (the centre of
            the top left pixel is at 0.5, 0.5), halfway through the sides of the outermost pixels. Holes are filled.

        Raises:
            InputError: `tolerance` is no number of at least 0.
        """
        number("tolerance", tolerance, "[0, inf)")
        return [polygons for region in self.regions for polygons in region.polygons(tolerance)]

    def to_supervision(self) -> supervision.Detections:
        """Return boxes, their parts of the mask, class indices, scores and names as `supervision.Detections`.

        `data["class_name"]` has the names; a box has its class's score where it has none of its own.

        Raises:
            InputError: supervision is not installed.
        """
        sv = extra("supervision", "export")
        regions = self.regions
        masks = [np.zeros((0, *self.size), bool)]
        for region in regions:
            for (x0, y0, x1, y1), part in zip(region.boxes.tolist(), region.parts(), strict=True):
                mask = np.zeros((1, *self.size), bool)
                mask[0, y0:y1, x0:x1] = part
                masks.append(mask)
        counts = [len(region.boxes) for region in regions]
        boxes = torch.cat([torch.zeros(0, 4, dtype=torch.int64), *(region.boxes for region in regions)])
        return sv.Detections(
            xyxy=boxes.numpy().astype(np.float32),
            mask=np.concatenate(masks),
            confidence=np.array([score for region in regions for score in region.box_scores], np.float32),
            class_id=np.repeat(np.array([region.label for region in regions], int), counts),
            data={"class_name": np.repeat(np.array([region.name for region in regions], str), counts)},
        )


class HasBoxes(HasRegions):
    """What a result of one class offers besides."""

    label: int
    name: str
    score: float
    boxes: Tensor
    box_scores: Tensor

    @property
    @abstractmethod
    def parts(self) -> Tensor:
        """The mask's parts, see `ClassRegions.mask`."""

    @property
    def regions(self) -> tuple[ClassRegions, ...]:
        """Where the class is: one entry."""
        scores = self.box_scores.tolist()
        return (ClassRegions(self.label, self.name, self.score, self.boxes, scores, self.parts),)

    @property
    def xywh(self) -> Tensor:
        """The boxes as x0, y0, width, height in pixels, (N, 4) int64: COCO's and torchvision's "xywh"."""
        return torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1)

    @property
    def xyxyn(self) -> Tensor:
        """The boxes as shares of the image's width and height, x0, y0, x1, y1 in [0, 1], (N, 4) float32."""
        height, width = self.size
        return self.boxes / torch.tensor([width, height, width, height], dtype=torch.float32)

    def crop(self, box: int = 0, margin: float = 0.0) -> Image.Image:
        """Cut a box out of the image.

        Args:
            box: Which; 0 is that of the mask's largest part.
            margin: Added on every side, as a share of the box's own width and height; cut off at the image's border.

        Returns:
            RGB image.

        Raises:
            InputError: There is no such box, or `margin` is no number of at least 0.
        """
        number("margin", margin, "[0, inf)")
        if not -len(self.boxes) <= box < len(self.boxes):
            raise InputError(
                f"box={box}: expected the number of a box, of which there are {len(self.boxes)}. Ask `len(exp.boxes)` "
                "first, or lower the threshold"
            )
        x0, y0, x1, y1 = self.boxes[box].tolist()
        height, width = self.size
        dx, dy = round(margin * (x1 - x0)), round(margin * (y1 - y0))
        return self.image.crop((max(0, x0 - dx), max(0, y0 - dy), min(width, x1 + dx), min(height, y1 + dy)))


def extra(module: str, name: str) -> Any:
    """Import a package that only comes with one of camtools' extras.

    Args:
        module: What to import.
        name: The extra.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f'this needs {module}, which cannot be imported ({error}): pip install "camtools[{name}]"'
        ) from error
