"""What a format gets of every image."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from camtools.explanation import Explanation
from camtools.regions import ClassRegions
from camtools.segmentation import Segmentation

Result = Explanation | Segmentation


@dataclass(frozen=True)
class Expected:
    """A class that a data set says is in an image: for the report.

    Attributes:
        label: The class's index in the model.
        name: Its name.
        boxes: Its boxes, x0, y0, x1, y1 in pixels each.
    """

    label: int
    name: str
    boxes: list[list[float]]


@dataclass(frozen=True, eq=False)
class ImageExport:
    """One image's results.

    Attributes:
        file: The image's path relative to the root of all, with forward slashes.
        results: Its explanations, one per class, or its segmentation.
        name: Like `file` without the suffix, and unlike any other image's: what files about the image are called.
        expected: What should have been found; None where that is not known.
    """

    file: str
    results: Sequence[Result]
    name: str
    expected: Sequence[Expected] | None = None

    @property
    def source(self) -> Path | None:
        """Where the image is; None where it did not come from a file."""
        source = self.results[0].source
        return None if source is None else Path(source)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.results[0].size

    @property
    def image(self) -> Image.Image:
        """The image, RGB and upright."""
        return self.results[0].image

    @property
    def regions(self) -> list[ClassRegions]:
        """Where all classes are."""
        return [region for result in self.results for region in result.regions]

    @property
    def segmentation(self) -> Segmentation | None:
        """The segmentation, where it is one."""
        return self.results[0] if isinstance(self.results[0], Segmentation) else None

    @property
    def copy_name(self) -> str:
        """What a copy of the image is called."""
        return self.name + (PurePosixPath(self.file).suffix if self.source else ".png")


Writer = Generator[None, ImageExport | None, None]
"""A format at work: it is sent every image, and None at the end, whereupon it moves what it wrote to its place. Closed
before that it leaves nothing."""
