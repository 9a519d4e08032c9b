"""What an `Explanation` and a `Segmentation` have in common: the image that they are of, and how they are saved."""

from __future__ import annotations

import abc
import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image
from torch import Tensor

from camtools.errors import InputError
from camtools.files import staging, swap
from camtools.images.preprocess import Transform, display_image
from camtools.images.read import InputImage

MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageResult(abc.ABC):
    """A result of one image.

    Attributes:
        exact: Whether maps come from the classifier's own weights (True) or from its head linearised (False).
        layer: Dotted name of the layer the features come from.
        logits: All class scores of the model, (K,).
        input_image: What came in.
        transform: What made it ready for the model.
        pipeline: The preset's name, or the steps on one line.
    """

    exact: bool
    layer: str
    logits: Tensor
    input_image: InputImage
    transform: Transform
    pipeline: str = ""

    files: ClassVar[dict[str, str]]
    """The files that `save` writes beside the manifest, by what they are."""

    @property
    def image(self) -> Image.Image:
        """The original image, RGB; a ready tensor is shown with its normalisation undone, as far as it is known."""
        return display_image(self.input_image, self.transform)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the original image in pixels."""
        return self.input_image.size

    @property
    def source(self) -> str | None:
        """The image's path, or None where it did not come from a file."""
        return self.input_image.source

    def cpu(self) -> Self:
        """Return the same result with every tensor on the CPU."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.cpu() for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, ready for JSON."""

    @abc.abstractmethod
    def _write(self, stage: Path) -> None:
        """Write all files but the manifest to an empty directory."""

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the result's `files` and `manifest.json`, all or nothing.

        A result that is there already is replaced; other files in the directory stay. The manifest is written last:
        where it is, the others are whole.

        Args:
            directory: Made if it is missing.

        Returns:
            The directory.

        Raises:
            InputError: It cannot be written to.
        """
        target = Path(directory)
        try:
            with staging(target) as stage:
                self._write(stage)
                text = json.dumps({**self.to_dict(), "files": self.files}, indent=2, ensure_ascii=False)
                # A file name may hold bytes that are no text; escaped, they stay valid JSON and come back the same.
                (stage / MANIFEST).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
                swap(stage, target, (*self.files.values(), MANIFEST))
        except OSError as error:
            raise InputError(
                f"{target} cannot be written ({error.strerror or error}): expected a directory with room for the "
                "results. Choose another, or free the space; nothing half-written was left"
            ) from error
        return target
