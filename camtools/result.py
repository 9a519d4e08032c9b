"""What an `Explanation` and a `Segmentation` have in common: the image that they are of, and how they are saved."""

from __future__ import annotations

import abc
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from PIL import Image
from torch import Tensor

from camtools.checks import as_path, whole
from camtools.errors import CamtoolsError, InputError
from camtools.files import staging, swap
from camtools.images.preprocess import Transform, display_image
from camtools.images.read import InputImage
from camtools.notebook import encoded, html_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANIFEST = "manifest.json"
OVERLAY_SIZE = 1280
OverlayFormat = Literal["jpg", "png"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageResult(abc.ABC):
    """A result of one image.

    Attributes:
        exact: Whether maps come from the classifier's own weights (True) or from its head linearised (False).
        layer: Dotted name of the layer the features come from.
        logits: All class scores of the model, (K,).
        input_image: What came in.
        transform: What made it ready for the model; None where that is not known any more.
        pipeline: The preset's name, or the steps on one line.
    """

    exact: bool
    layer: str
    logits: Tensor
    input_image: InputImage
    transform: Transform | None
    pipeline: str = ""

    kinds: ClassVar[tuple[str, ...]]
    """What `save` can write beside the manifest."""
    usual: ClassVar[tuple[str, ...]]
    """What it writes where nothing else is asked for."""

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

    @property
    @abc.abstractmethod
    def caption(self) -> str:
        """Classes and scores on one line."""

    @abc.abstractmethod
    def overlay(self) -> Image.Image:
        """Draw the result over the image."""

    def show(self) -> None:
        """Show the overlay: below the cell in a notebook, else in the system's image viewer."""
        self.overlay().show(self.caption)

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the overlay on matplotlib axes, with the caption as their title; data coordinates are pixels.

        Args:
            ax: Where to draw; None makes a figure of its own.
            options: Of `overlay`; its legend is left out unless asked for.

        Returns:
            The axes.
        """
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots()[1]
        ax.imshow(self.overlay(**{"legend": False, **options}))
        ax.set_title(self.caption)
        ax.set_axis_off()
        return ax

    def _repr_png_(self) -> bytes:
        return encoded(self.overlay())

    def _repr_html_(self) -> str:
        return html_figure(self.overlay(), " · ".join(filter(None, (self.source, self.caption, self.pipeline))))

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, ready for JSON."""

    @abc.abstractmethod
    def _write(self, stage: Path, kinds: Collection[str], look: Look) -> dict[str, str | list[str]]:
        """Write files of these kinds to an empty directory; return their names by kind."""

    def _rebuild(self) -> dict[str, Any]:
        """Return what the manifest says for those who load the result; nothing where it cannot be loaded."""
        return {}

    def save(
        self,
        directory: str | os.PathLike[str],
        files: Collection[str] | None = None,
        *,
        overlay_size: int | None = OVERLAY_SIZE,
        overlay_format: OverlayFormat = "jpg",
    ) -> Path:
        """Write files and `manifest.json`, all or nothing.

        A result that is there already is replaced; other files in the directory stay. The manifest is written last:
        where it is, the others are whole.

        Args:
            directory: Made if it is missing.
            files: Which to write, words of `kinds`; None takes `usual`. With none of them the manifest is all.
            overlay_size: Longest side of the overlay's image in pixels; None leaves it as large as the original.
            overlay_format: "jpg" or "png", of overlay and crops.

        Returns:
            The directory.

        Raises:
            InputError: It cannot be written to, or an argument is out of range.
        """
        target, look = as_path("directory", directory), Look(overlay_size, overlay_format)
        kinds = self.usual if files is None else check_kinds(files, self.kinds)
        try:
            with staging(target) as stage:
                written = self._write(stage, kinds, look)
                told = self.to_dict() | ({"rebuild": rebuild} if (rebuild := self._rebuild()) else {})
                text = json.dumps(told | {"files": written}, indent=2, ensure_ascii=False)
                # A file name may hold bytes that are no text; escaped, they stay valid JSON and come back the same.
                (stage / MANIFEST).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
                names, before = _names(written), _names(_files_of(target))
                swap(stage, target, (*names, MANIFEST))
                for stale in {name for name in before if Path(name).name == name} - {*names}:
                    (target / stale).unlink(missing_ok=True)
        except CamtoolsError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a null byte
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{target} cannot be written ({reason}): expected a directory with room for the results. "
                "Choose another, or free the space; nothing half-written was left"
            ) from error
        return target


@dataclass(frozen=True)
class Look:
    """How overlays are written.

    Attributes:
        size: Longest side in pixels; None leaves them as they are.
        format: "jpg" or "png".

    Raises:
        InputError: One is out of range.
    """

    size: int | None = OVERLAY_SIZE
    format: OverlayFormat = "jpg"

    def __post_init__(self) -> None:
        if self.size is not None:
            whole("overlay_size", self.size)
        if self.format not in get_args(OverlayFormat):
            raise InputError(f"overlay_format={self.format!r}: expected 'jpg' or 'png'")

    def write(self, image: Image.Image, stem: Path) -> str:
        """Write an image beside its manifest; return its name."""
        file = stem.with_name(f"{stem.name}.{self.format}")
        image.save(file, quality=90) if self.format == "jpg" else image.save(file, compress_level=1)
        return file.name


def check_kinds(files: Collection[str], kinds: Sequence[str]) -> Collection[str]:
    """Return the files asked for.

    Raises:
        InputError: One is not among the kinds that there are.
    """
    wrong = [name for name in ([files] if isinstance(files, str) else files) if name not in kinds]
    if wrong or isinstance(files, str):
        raise InputError(f"files={files!r}: expected a list of any of {', '.join(map(repr, kinds))}")
    return files


def fitted(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """Return (height, width) shrunk until the longer side is at most so many pixels; None leaves them.

    Raises:
        InputError: `longest` is no whole number above 0.
    """
    if longest is None or max(size) <= whole("size", longest):
        return size
    height, width = (max(1, round(side * longest / max(size))) for side in size)
    return height, width


def _names(files: Any) -> list[str]:
    """Return the names in a manifest's "files": each is a name, or a list of them."""
    values = files.values() if isinstance(files, dict) else ()
    return [name for value in values for name in ([value] if isinstance(value, str) else value)]


def _files_of(folder: Path) -> Any:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("files")
    except (OSError, ValueError, AttributeError):
        return {}
