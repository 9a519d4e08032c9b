"""Inputs of another size than the model's own, for pipelines with the step `Enlarge`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from camtools.errors import ModelError
from camtools.guard import untouched
from camtools.inputs import Picture
from camtools.model import CamModel, unwrapped
from camtools.preprocess import Preprocess, Transform
from camtools.running import to_model

STRIDE = 32  # pixels; sides are multiples of it, as most networks halve five times


def enlarged_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the multiples of 32 nearest to `scale` times (height, width); the sides themselves for a scale of 1."""
    if scale == 1:
        return size
    height, width = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in size)
    return height, width


def enlarged(pictures: Sequence[Picture], x: Tensor, transform: Transform, scale: float) -> Tensor:
    """Return the inputs of pictures at another size.

    Args:
        pictures: B of them.
        x: Their inputs at the model's own size, (B, C, h, w).
        transform: What made these.
        scale: Sides over the own ones.

    Returns:
        (B, C, h', w'), on the device of `x`: each picture preprocessed anew, or its part of `x` interpolated where that
        is not possible: of ready tensors, of transforms that are no `Preprocess`, and of one that does not resize.
    """
    size = enlarged_size((x.shape[2], x.shape[3]), scale)
    anew = [picture.image is not None for picture in pictures]
    if not isinstance(transform, Preprocess) or transform.resize is None or not any(anew):
        return _interpolated(x, size)
    ratio = (size[0] / x.shape[2], size[1] / x.shape[3])
    if transform.crop_mode != "squash":
        ratio = (max(ratio), max(ratio))  # else it would show another part of the picture
    larger = transform.scaled(ratio)
    made = [
        _exactly(larger(picture)[0], size).to(x) if new else _interpolated(one[None], size)[0]
        for picture, one, new in zip(pictures, x, anew, strict=True)
    ]
    return torch.stack(made)


class Sizes:
    """Which input sizes a model takes, tried once each.

    Args:
        model: The classifier.
    """

    def __init__(self, model: CamModel) -> None:
        self._model = model
        self._taken: dict[tuple[int, ...], bool] = {}

    def taken(self, x: Tensor) -> bool:
        """Tell whether the model can be run on inputs of this shape; warns once for each that it can't.

        Args:
            x: Inputs, (B, C, h, w).
        """
        shape = tuple(x.shape[1:])
        if shape not in self._taken:
            self._taken[shape] = self._try(shape)
            if not self._taken[shape]:
                name = type(unwrapped(self._model)).__name__
                warnings.warn(
                    f"{name} can't be run on {shape[1]} x {shape[2]} pixels, so the step Enlarge does nothing: maps "
                    "are made from the model's own input size. Leave Enlarge out to silence this.",
                    stacklevel=2,
                )
        return self._taken[shape]

    def _try(self, shape: tuple[int, ...]) -> bool:
        inner = unwrapped(self._model)
        # Noise, as adapters look for features with it, and all is alike in a black picture.
        x = to_model(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)), inner)
        try:
            with torch.no_grad(), untouched(inner):
                self._model.activations(x)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except (ModelError, RuntimeError, AssertionError, ValueError, TypeError, IndexError):
            return False
        return True


def _exactly(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (C, h, w) at a size: preprocessing without a fixed size may be a pixel off."""
    return x if x.shape[1:] == size else _interpolated(x[None], size)[0]


def _interpolated(x: Tensor, size: tuple[int, int]) -> Tensor:
    fewer = size[0] < x.shape[-2] or size[1] < x.shape[-1]
    made = interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=fewer)
    return made.to(x.dtype)
