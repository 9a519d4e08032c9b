"""Inputs of another size than the model's own, for pipelines with the step `Enlarge`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from camtools.images.preprocess import Preprocess, Transform
from camtools.images.read import InputImage

STRIDE = 32  # pixels; sides are multiples of it, as most networks halve five times


def enlarged_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the multiples of 32 nearest to `scale` times (height, width); the sides themselves for a scale of 1."""
    if scale == 1:
        return size
    height, width = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in size)
    return height, width


def enlarged(images: Sequence[InputImage], x: Tensor, transform: Transform, scale: float) -> Tensor:
    """Return the inputs of images at another size.

    Args:
        images: B of them.
        x: Their inputs at the model's own size, (B, C, h, w).
        transform: What made these.
        scale: Sides over the own ones.

    Returns:
        (B, C, h', w'), on the device of `x`: each image preprocessed anew, or its part of `x` interpolated where that
        is not possible: of ready tensors, of transforms that are no `Preprocess`, and of one that does not resize.
    """
    size = enlarged_size((x.shape[2], x.shape[3]), scale)
    ready = all(image.tensor is not None for image in images)
    if ready or not isinstance(transform, Preprocess) or transform.resize is None:
        return _interpolated(x, size)
    ratio = (size[0] / x.shape[2], size[1] / x.shape[3])
    if transform.crop_mode != "squash":
        ratio = (max(ratio), max(ratio))  # else it would show another part of the image
    larger = transform.scaled(ratio)
    made = [
        _interpolated(own[None] if image.tensor is not None else larger(image)[0][None], size)[0].to(x)
        for image, own in zip(images, x, strict=True)
    ]
    return torch.stack(made)


def _interpolated(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, C, h, w) at a size; it may be there already, or, without a fixed input size, a pixel off."""
    if x.shape[2:] == size:
        return x
    fewer = size[0] < x.shape[-2] or size[1] < x.shape[-1]
    made = interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=fewer)
    return made.to(x.dtype)
