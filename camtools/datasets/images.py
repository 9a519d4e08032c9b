"""A data set's images and masks, and its boxes in the pixels of the image that is there."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from camtools.errors import InputError
from camtools.images.read import read_image

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error)
_ORIENTATION = 0x0112  # the EXIF tag
_UNDO = {  # what takes an upright image back to how it is stored, by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def read_annotated(path: Path, size: tuple[int, int] | None = None, upright: bool = False) -> Image.Image:
    """Read an image in the orientation that its annotations are in.

    The public data sets are annotated, and evaluated by everybody, in the pixels as stored, whatever EXIF says;
    images of one's own are usually annotated as viewers show them. The annotation's own size, if known, decides.

    Args:
        path: The file.
        size: (width, height) that the annotation states.
        upright: Which orientation to take where the size fits both, or is not known: as EXIF says, or as stored.

    Returns:
        RGB, see `camtools.images.read.read_image`.

    Raises:
        InputError: The image is missing or cannot be read; names the file.
    """
    image = read_image(path).image
    assert image is not None  # a path never gives a ready tensor
    try:
        with Image.open(path) as opened:
            undo = _UNDO.get(opened.getexif().get(_ORIENTATION, 1))
    except _BROKEN:  # unreadable metadata: `read_image` left the image as it is stored, too
        undo = None
    if undo is None:
        return image
    stored = image.transpose(undo)
    first, second = (image, stored) if upright else (stored, image)
    return second if size is not None and second.size == size != first.size else first


def fit_boxes(
    boxes: Tensor, stated: tuple[int, int] | None, image: Image.Image, path: Path, squashed: bool = False
) -> Tensor:
    """Bring boxes from the size of image that they were drawn on to the image that is there.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in pixels of an image of the stated size.
        stated: (width, height) that the annotation states; None for the image's own.
        image: The image.
        path: Its file, for the message.
        squashed: Whether an image of another aspect ratio is the same one squashed, not a crop.

    Returns:
        (N, 4) in pixels of the image.

    Raises:
        InputError: The sizes differ by more than scaling by one factor and rounding to whole pixels can explain.
    """
    if stated is None or stated == image.size:
        return boxes
    (width, height), (there_x, there_y) = stated, image.size
    pixels_off = min(abs(there_x - width * there_y / height), abs(there_y - height * there_x / width))
    if pixels_off > 1 and not squashed:
        raise InputError(
            f"{path} is {there_x} x {there_y} pixels, but its annotation is for {width} x {height}, of another aspect "
            f"ratio: expected the image that was annotated, or that one scaled. Take the original image"
        )
    return boxes * torch.tensor([there_x / width, there_y / height] * 2)


def read_levels(path: Path, palette: bool, image: Image.Image | None = None) -> NDArray[np.uint8]:
    """Read a mask file as (H, W) uint8.

    Args:
        path: An image of one channel, such as a PNG.
        palette: Whether the values of a palette image are wanted (classes, instances), or its grey levels, 0 to 255.
        image: The image that the mask is of, whose size it must have; None for any size.

    Raises:
        InputError: The file is missing, not an image, of another size than its image, or has several channels where
            values are wanted.
    """
    try:
        with Image.open(path) as opened:
            if palette and opened.mode not in ("P", "L"):
                raise InputError(f"{path} is of mode {opened.mode!r}: expected a mask of one 8-bit channel, 'P' or 'L'")
            levels = np.array(opened if palette else opened.convert("L"), dtype=np.uint8)
    except _BROKEN as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the mask {str(path)!r} cannot be read ({error}): expected an image file") from error
    if image is not None and levels.shape != (image.height, image.width):
        raise InputError(
            f"the mask {str(path)!r} is {levels.shape[1]} x {levels.shape[0]} pixels, but its image is "
            f"{image.width} x {image.height}: expected the same size"
        )
    return levels


def resize_masks(masks: Tensor, image: Image.Image) -> Tensor:
    """Bring masks, (N, h, w) bool, to the size of the image by the nearest pixel, (N, H, W) bool."""
    size = (image.height, image.width)
    if masks.shape[1:] == size or not len(masks):
        return masks if len(masks) else masks.new_zeros((0, *size))
    return torch.nn.functional.interpolate(masks[None].to(torch.uint8), size=size, mode="nearest-exact")[0].bool()


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the smallest boxes around masks, (N, H, W) bool, as (N, 4) float32; NaN where a mask is empty."""
    boxes = torch.full((len(masks), 4), float("nan"))
    filled = masks.flatten(1).any(dim=1)
    boxes[filled] = masks_to_boxes(masks[filled]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return boxes
