"""Images in: everything `explain` takes becomes an `InputImage`, or one error that says what is wrong with it.

Nothing is resized here and no path is opened before its turn; `camtools.images.preprocess` makes tensors of images.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from camtools.errors import InputError
from camtools.images.stored import ImageBytes, in_store

Least = Callable[[tuple[int, int]], tuple[int, int]]
"""From an image's (height, width) to those at which it is needed."""

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values for images that lie on their side
_TRANSPARENT_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_OVERSHOOT = 1e-3  # what a float image may exceed [0, 1] by, a quarter of an 8-bit level; clipped
_EXPECTED = (
    "expected a path, a PIL image, a numpy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a uint8 tensor (C, H, W), "
    "or a float tensor (C, H, W) that is ready for the model"
)


@dataclass(frozen=True, eq=False)
class InputImage:
    """One image, either still to be preprocessed (`image`) or ready for the model (`tensor`); never both.

    Attributes:
        image: RGB, 8 bits, upright (EXIF rotation applied), with fewer pixels than `size` where a large JPEG was
            decoded at a fraction; None for a ready tensor, and where `pixels` is still to read it. Of `values` the
            first three channels, or the first in grey.
        tensor: Floating (C, H, W), normalised as the model expects, on the caller's device; None for an image.
        source: The path it came from, None if there was none.
        size: (height, width) in pixels; the size of its explanations.
        box: Where the image lies in the decoded fraction: x0, y0, x1, y1 in its pixels; None where it is whole.
        values: (H, W, C) float32 in [0, 1] of an image with other channels than a photo's; else None.
    """

    image: Image.Image | None
    tensor: Tensor | None
    source: str | None
    size: tuple[int, int]
    box: tuple[float, float, float, float] | None = None
    values: NDArray[np.float32] | None = None

    @property
    def is_data(self) -> bool:
        """Whether it is no photo, so that how it is drawn depends on its preprocessing; see `display_image`."""
        return self.tensor is not None or self.values is not None

    def shown(self, size: tuple[int, int]) -> Image.Image:
        """Return the image, RGB, shrunk to a size (height, width); raises what `pixels` raises."""
        at_hand = self.image
        if at_hand is None or (self.box is not None and (at_hand.height < size[0] or at_hand.width < size[1])):
            whole = self._again(lambda _: size)
            return whole.shown(size)
        if (at_hand.height, at_hand.width) == size and self.box is None:
            return at_hand
        return at_hand.resize(size[::-1], Image.Resampling.BILINEAR, self.box, reducing_gap=2)

    def shrunk(self, size: tuple[int, int]) -> InputImage:
        """Return it with no more pixels than to be shown at a size (height, width)."""
        if self.image is None or self.source is None or self.image.height * self.image.width <= size[0] * size[1]:
            return self
        return replace(self, image=self.shown(size), box=(0.0, 0.0, float(size[1]), float(size[0])))

    def pixels(self) -> Image.Image:
        """Return the image, RGB; read from `source` where it is not at hand.

        Raises:
            InputError: It is a ready tensor, or its file is gone, cannot be read or has another size by now.
        """
        whole = self if self.image is not None and self.box is None else self._again(None)
        assert whole.image is not None  # a file's
        return whole.image

    def _again(self, least: Least | None) -> InputImage:
        if self.tensor is not None or self.source is None:
            raise InputError("this image has no pixels: it came as a ready tensor, or was saved without a file's name")
        image = read_image(self.source, least=least)
        if image.size != self.size:
            raise InputError(
                f"{self.source} has {image.size[1]} x {image.size[0]} pixels, {self.size[1]} x {self.size[0]} when it "
                "was explained: expected the same file. Explain it anew"
            )
        return image


class InputImages(Sequence[InputImage]):
    """Images read one at a time, when asked for, and not kept; slices stay lazy.

    Args:
        items: What `read_image` takes, one per image; a batch tensor or array counts as its elements.
        channels: Passed on to `read_image`.
        indices: Which of the items, all by default; errors name the item's own index.
        single: Errors then speak of "the image" instead of "image 0".
    """

    def __init__(
        self,
        items: Sequence[Any] | Tensor | NDArray[Any],
        *,
        channels: int | None = None,
        indices: range | None = None,
        single: bool = False,
    ) -> None:
        self._items = items
        self._channels = channels
        self._indices = range(len(items)) if indices is None else indices
        self._single = single

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> InputImage: ...
    @overload
    def __getitem__(self, index: slice) -> InputImages: ...
    def __getitem__(self, index: int | slice) -> InputImage | InputImages:
        chosen = self._indices[index]
        if isinstance(chosen, range):
            return InputImages(self._items, channels=self._channels, indices=chosen, single=self._single)
        return read_image(self._items[chosen], channels=self._channels, index=None if self._single else chosen)

    def __repr__(self) -> str:
        return f"<InputImages: {len(self)}, read when asked for>"


def read_images(x: Any, *, channels: int | None = None) -> tuple[InputImages, bool]:
    """Take one image or many; nothing is opened or checked before its element is asked for.

    Args:
        x: One image as in `read_image`; a list, tuple or other sequence of them, kinds mixed as you like; a batch
            tensor (B, C, H, W) or a batch array (N, H, W, C). A batch of one is still a batch.
        channels: Passed on to `read_image`.

    Returns:
        The images, a lazy sequence, and whether `x` was a single one.

    Raises:
        InputError: `x` holds no image, or is an iterator, whose end is unknown.
    """
    batch = isinstance(x, Tensor | np.ndarray) and x.ndim == 4
    if not batch and (not isinstance(x, Sequence) or isinstance(x, str | bytes | bytearray)):
        if isinstance(x, Iterator):
            raise InputError(
                f"got {type(x).__name__}, an iterator, expected images that can be counted: pass list(...) of it, "
                f"or give it to Explainer.stream(...)"
            )
        return InputImages([x], channels=channels, single=True), True
    if batch and isinstance(x, Tensor):
        check_dense(x, "the batch")
    if len(x) == 0:
        shape = f" of shape {tuple(x.shape)}" if hasattr(x, "shape") else ""
        raise InputError(f"got an empty {type(x).__name__}{shape}: expected at least one image, pass one or more")
    return InputImages(x, channels=channels), False


def read_image(
    x: Any, *, channels: int | None = None, index: int | None = None, least: Least | None = None
) -> InputImage:
    """Read and check one image.

    Rotation in EXIF is applied, to PIL images too, so that a path and `Image.open(path)` give the same. Transparency is
    composited over white, which is what viewers show (`convert("RGB")` would uncover whatever lies beneath). 16-bit
    values are scaled by 1/257, not clipped. PIL modes "I" and "F" do not say their range: the smallest of [0, 1]
    ("F" only), [0, 255] and [0, 65535] that holds every value is taken. Of an animation, a path gives the first frame.

    Args:
        x: A path (str or `os.PathLike`); a URL of a store that fsspec knows, such as "s3://bucket/cat.jpg", but of no
            web page; an image file's bytes, also as `ImageBytes`; a PIL image of any mode; a numpy array (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16, bool, or float in [0, 1]; a uint8 tensor (C, H, W), C 1,
            3 or 4; or a floating tensor (C, H, W), taken as ready for the model and left as it is.
        channels: The C that the model expects. Of ready tensors None accepts any; arrays (H, W, C) and uint8 tensors
            (C, H, W) may have it beside 1, 3 and 4.
        index: The element of the caller's batch, for the messages.
        least: Takes an image's (height, width) to those it is needed at; a JPEG file of twice that or more is decoded
            at a half, a quarter or an eighth, whichever still has as many pixels. None decodes everything.

    Returns:
        The image, RGB and upright, or the ready tensor.

    Raises:
        InputError: Not an image, or one that cannot be read; says which, what was expected and the way out.
    """
    where = "the image" if index is None else f"image {index}"
    if isinstance(x, InputImage):
        return x
    if isinstance(x, bytes):
        x = ImageBytes(x)
    if isinstance(x, ImageBytes):
        return _decoded(x.data, f"{where} ({x.name!r})" if x.name else where, x.name, None)
    if isinstance(x, str) and in_store(x):
        return _decoded(_stored(x, where), f"{where} ({x!r})", x, least)
    if isinstance(x, str | os.PathLike):
        return _from_path(x, f"{where} ({os.fspath(x)!r})", least)
    if isinstance(x, Image.Image):
        source = getattr(x, "filename", None)
        source = source if isinstance(source, str) and source else None
        return _from_image(_load(x, f"{where} ({source!r})" if source else where), source)
    if isinstance(x, Tensor):
        return _from_tensor(x, channels, where)
    if isinstance(x, np.ndarray):
        if _is_other(channels) and x.ndim == 3:
            return _from_values(x, channels, where)
        return _from_image(Image.fromarray(_array_to_uint8(x, where)), None)
    raise InputError(f"{where} is of type {type(x).__name__}: {_EXPECTED}. Convert it to one of these")


def max_pixels() -> int:
    """Return the most pixels that an image may have: Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS`, or none."""
    return sys.maxsize if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS


def _from_path(path: str | os.PathLike[str], where: str, least: Least | None) -> InputImage:
    try:
        file = Path(path).expanduser()
        if file.is_dir():
            raise InputError(
                f"{where} is a directory: expected an image file. Pass its files, e.g. sorted(Path(...).glob('*.jpg'))"
            )
        if file.stat().st_size == 0:
            raise InputError(f"{where} is an empty file (0 bytes): expected an image. Copy or download it again")
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "URLs are not fetched, download it first" if "://" in str(path) else f"paths start at {Path.cwd()}"
        raise InputError(f"{where} does not exist: expected the path of an image file. Check it ({hint})") from error
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~nobody has no home
        raise InputError(f"{where} cannot be opened ({error}): expected a readable image file") from error
    return _decoded(file, where, os.fspath(path), least)


def _stored(url: str, where: str) -> bytes:
    """Read a file of a store by fsspec, which finds credentials as the store's own tools do."""
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read()
            return data
    except ImportError as error:
        raise InputError(f"{where} ({url!r}) is in a store that needs another package: {error}") from error
    except Exception as error:  # whatever the store's own library raises
        raise InputError(
            f"{where} ({url!r}) cannot be read from its store ({type(error).__name__}: {error}): expected a file that "
            "exists and that you may read"
        ) from error


def _decoded(file: Path | bytes, where: str, source: str | None, least: Least | None) -> InputImage:
    """Decode an image file, or what is in one."""
    if isinstance(file, Path) and file.suffix.lower() in (".heic", ".heif"):
        _know_heif(where)
    with _reading(where), Image.open(BytesIO(file) if isinstance(file, bytes) else file) as opened:
        width, height = opened.size
        _check_pixels(opened, where)
        turn = opened.getexif().get(_ORIENTATION, 1) if isinstance(opened, JpegImageFile) else 1
        size = (width, height) if turn in _TURNED else (height, width)
        if least is not None and isinstance(opened, JpegImageFile):
            needed = least(size)
            opened.draft(None, needed if turn in _TURNED else needed[::-1])  # PIL's sizes are (width, height)
        scale = round(width / opened.width) if opened.width else 1
        image = _load(opened, where)
    made = _from_image(image, source)
    if scale == 1:
        return made
    # A fraction of a pixel is added on the stored image's right and below, wherever these are when it is upright.
    high, wide = size[0] / scale, size[1] / scale
    left = made.size[1] - wide if turn in (2, 3, 6, 7) else 0.0
    top = made.size[0] - high if turn in (3, 4, 7, 8) else 0.0
    return replace(made, size=size, box=(left, top, left + wide, top + high))


def _know_heif(where: str) -> None:
    """Have Pillow read HEIC, which takes a package of its own."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise InputError(
            f'{where} is HEIC, which needs pillow-heif: pip install "camtools[heif]", or convert it to JPEG'
        ) from error
    register_heif_opener()


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what Pillow raises for a file into one error that says what is wrong with it."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{where} is not an image, or of a kind Pillow does not know: expected JPEG, PNG, TIFF, WebP or the like. "
            f"Convert it to one of these"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{where} is too large to open safely ({error}): expected fewer pixels. Make it smaller, "
            f"or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except MemoryError as error:
        raise InputError(f"{where} does not fit into memory: expected fewer pixels. Make it smaller") from error
    except Exception as error:  # whatever a decoder raises, plug-ins' own included: this is the one boundary
        raise InputError(
            f"{where} is truncated or damaged ({error}): expected a complete image. Copy or download it again, "
            f"or convert it to RGB yourself"
        ) from error


def _load(image: Image.Image, where: str) -> Image.Image:
    """Decode, turn upright and convert to 8-bit RGB; always a new image."""
    _check_pixels(image, where)
    with _reading(where):
        image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # unreadable metadata: shown as it is stored, as viewers do
            image = image.copy()
        return _to_rgb(image, where)


def _check_pixels(image: Image.Image, where: str) -> None:
    if 0 in image.size:
        raise InputError(
            f"{where} has no pixels (height {image.height}, width {image.width}): expected at least 1 x 1. Leave it out"
        )
    if image.width * image.height > (limit := max_pixels()):
        raise InputError(
            f"{where} has {image.width} x {image.height} pixels: expected at most {limit:,}, as a small file may hold "
            "more than memory does. Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_unknown_range_to_uint8(np.asarray(image), image.mode, where)).convert("RGB")
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` copies


def _unknown_range_to_uint8(values: NDArray[Any], mode: str, where: str) -> NDArray[Any]:
    """Scale a PIL image of mode "I;16", "I" or "F", (H, W), to 8 bits; see `read_image` for the range taken."""
    if mode.startswith("I;16"):
        peak = 65535
    else:
        low, high = float(values.min()), float(values.max())
        fitting = [p for p in ((1, 255, 65535) if mode == "F" else (255, 65535)) if low >= 0 and high <= p]
        if not fitting:  # NaN comes here too
            raise InputError(
                f"{where} has PIL mode {mode!r} with values from {low:g} to {high:g}: expected [0, 65535]. "
                f"Scale it to 8 bits and pass a uint8 array"
            )
        peak = fitting[0]
    return np.rint(values.astype(np.float64) * (255 / peak)).astype(np.uint8)


def _array_to_uint8(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Check an array and give it as uint8 (H, W) or (H, W, 3 or 4)."""
    shape = f"{where} is an array of shape {array.shape}"
    if array.ndim not in (2, 3):
        raise InputError(f"{shape}: expected one image, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Index it")
    if array.size == 0:
        raise InputError(f"{shape}, without pixels: expected at least 1 x 1. Leave it out")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        hint = "Transpose it: array.transpose(1, 2, 0)" if array.shape[0] in (1, 3, 4) else "Select 1, 3 or 4 of them"
        raise InputError(f"{shape}, so of {array.shape[2]} channels: expected 1, 3 or 4, channels last. {hint}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = np.rint(array.astype(np.float64) / 257).astype(np.uint8)
    elif array.dtype.kind == "f":
        _require_finite(int(array.size - np.isfinite(array).sum()), array.size, where)
        low, high = float(array.min()), float(array.max())
        if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
            raise InputError(
                f"{where} is a float array with values from {low:g} to {high:g}: expected [0, 1]. Divide by 255 if "
                f"they are 8-bit levels, or pass a torch tensor (C, H, W) if they are normalised for the model"
            )
        array = np.rint(np.clip(array, 0, 1).astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(
            f"{where} is an array of dtype {array.dtype}: expected uint8, uint16, bool, or float in [0, 1]. "
            f"Convert it, e.g. array.astype(np.uint8) if its values are 0 to 255"
        )
    return np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def check_dense(tensor: Tensor, where: str) -> None:
    """Check that a tensor has its values, and in a type that can be computed with.

    Raises:
        InputError: It is sparse, nested, quantized or on the meta device, or of 8-bit floats.
    """
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise InputError(
            f"{where} is a sparse, nested, quantized or meta tensor: expected one with its values. Make it dense"
        )
    if tensor.is_floating_point() and tensor.element_size() < 2:
        raise InputError(f"{where} is a tensor of dtype {tensor.dtype}: expected float16 or wider. Convert it")


def _from_tensor(tensor: Tensor, channels: int | None, where: str) -> InputImage:
    check_dense(tensor, where)
    shape = f"{where} is a tensor of shape {tuple(tensor.shape)}"
    if tensor.ndim != 3:
        hint = "Add the channels: tensor.unsqueeze(0)" if tensor.ndim == 2 else "Pass a batch (B, C, H, W) on its own"
        raise InputError(f"{shape}: expected one image, (C, H, W). {hint}")
    if tensor.numel() == 0:
        raise InputError(f"{shape}, without pixels: expected at least 1 x 1. Leave it out")
    if not tensor.is_floating_point() and tensor.dtype != torch.uint8:
        raise InputError(
            f"{where} is a tensor of dtype {tensor.dtype}: expected uint8 (an image) or a floating type (ready for "
            f"the model). Convert it, e.g. tensor.to(torch.uint8) if its values are 0 to 255"
        )
    ready = tensor.is_floating_point()
    expected = ((channels,) if channels is not None else ()) if ready else (1, 3, 4)
    if not ready and _is_other(channels):
        return _from_values(tensor.permute(1, 2, 0).cpu().numpy(), channels, where)
    if expected and tensor.shape[0] not in expected:
        wanted = f"{channels}, as the model takes" if ready else "1, 3 or 4"
        hint = "Permute it: tensor.permute(2, 0, 1)" if tensor.shape[2] in expected else "Select or repeat channels"
        raise InputError(f"{shape}, so of {tensor.shape[0]} channels: expected {wanted}, channels first. {hint}")
    if ready:
        _require_finite(int((~torch.isfinite(tensor)).sum()), tensor.numel(), where)
        return InputImage(image=None, tensor=tensor, source=None, size=(tensor.shape[1], tensor.shape[2]))
    array = tensor.permute(1, 2, 0).cpu().numpy()
    return _from_image(Image.fromarray(_array_to_uint8(array, where)), None)


def _is_other(channels: int | None) -> bool:
    """Whether a model takes what is no photo: neither grey nor RGB."""
    return channels not in (None, 1, 3)


def _from_values(array: np.ndarray, channels: int | None, where: str) -> InputImage:
    """Take an array (H, W, C) of any channels, checked as others are; 16-bit values and floats keep their precision."""
    if array.shape[2] != channels:
        raise InputError(
            f"{where} has shape {array.shape} (rows, columns, channels), so {array.shape[2]} channels: expected "
            f"{channels}, as the model takes. Select or add channels"
        )
    _array_to_uint8(array.reshape(array.shape[0], -1), where)  # raises for what is no image
    if array.dtype.kind == "f":
        values = np.clip(array, 0, 1).astype(np.float32)
    else:
        values = (array / (65535 if array.dtype == np.uint16 else 1 if array.dtype == bool else 255)).astype(np.float32)
    shown = _array_to_uint8(values[..., :3] if array.shape[2] >= 3 else values[..., 0], where)
    image = _from_image(Image.fromarray(shown), None)
    return replace(image, values=values)


def _from_image(image: Image.Image, source: str | None) -> InputImage:
    rgb = image if image.mode == "RGB" else _to_rgb(image, "the image")
    return InputImage(image=rgb, tensor=None, source=source, size=(rgb.height, rgb.width))


def _require_finite(bad: int, total: int, where: str) -> None:
    if bad:
        raise InputError(
            f"{where} has {bad} NaN or infinite values of {total}: expected finite ones. Find where they arise, "
            f"or replace them (torch.nan_to_num, numpy.nan_to_num)"
        )
