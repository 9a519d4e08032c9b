"""Changing what is known of a model's preprocessing: mean, std and size, and which part of the image it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from camtools.checks import one_of
from camtools.errors import InputError, ModelError
from camtools.images.preprocess import Preprocess, Transform

Crop = Literal["model", "squash", "pad", "full"]


DEFAULT_CROP: Crop = "squash"
"""What `explain` shows a model where nobody says otherwise: all of the image, at the model's size."""


def shown_whole(transform: Transform, crop: Crop | None) -> Transform:
    """Return a model's transform with the crop asked for; None takes `DEFAULT_CROP` where that can be."""
    if crop is None:
        return with_crop(transform, DEFAULT_CROP if isinstance(transform, Preprocess) else "model")
    return with_crop(transform, crop)


def with_crop(transform: Transform, crop: Crop) -> Transform:
    """Return a transform that shows another part of the image, at the model's size.

    Args:
        transform: A `Preprocess`; another one only with "model".
        crop: "model" changes nothing. "squash" resizes the whole image to the model's input whatever its aspect; "pad"
            keeps the aspect and fills up with the mean; "full" keeps the aspect without filling: the short side gets
            the input's shorter side, so that inputs differ in shape and the model has to take that.

    Raises:
        InputError: `crop` is none of these, or the transform is somebody's own, which cannot be changed from outside.
    """
    one_of("crop", crop, get_args(Crop))
    if crop == "model":
        return transform
    if not isinstance(transform, Preprocess):
        raise InputError(f"crop={crop!r} cannot change {transform!r}: expected a Preprocess. Leave crop out, or change "
                         "the transform itself")  # fmt: skip
    size = transform.input_size
    if size is None:  # nothing is cut off as it is
        return transform
    if crop == "full":
        return replace(transform, input_size=None, resize=min(size), crop_mode="center")
    return replace(transform, resize=size, crop_mode="squash" if crop == "squash" else "border")


def adjust(
    preprocess: Preprocess | Callable[..., Any] | None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
) -> Preprocess | Callable[..., Any] | None:
    """Change some of a model's preprocessing.

    Args:
        preprocess: What is known; None takes ImageNet's usual where there is something to change.
        mean: Of images in [0, 1], one number or one per channel.
        std: In the same unit.
        size: The input's (height, width) in pixels; the resize before the crop changes in proportion.

    Raises:
        ModelError: `preprocess` is a transform of somebody's own, which cannot be changed from outside; or a number is
            missing or impossible.
    """
    if mean is None and std is None and size is None:
        return preprocess
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise ModelError("mean, std and size cannot change the transform that the function returned: change it there.")
    lengths = [len(values) for values in (mean, std) if values is not None and not isinstance(values, int | float)]
    known = preprocess or Preprocess.imagenet().with_channels(max([3, *lengths] if 1 not in lengths else [3]))
    given = {name: values for name, values in (("mean", mean), ("std", std)) if values is not None}
    changes: dict[str, Any] = {name: _channel_values(name, values, known.channels) for name, values in given.items()}
    if size is not None:
        changes["input_size"] = size
        if known.resize is not None and known.input_size is not None:
            # Scaled by as much as the crop after it; a crop that is not square is covered, never padded.
            sides = known.resize if isinstance(known.resize, tuple) else (known.resize, known.resize)
            resize = tuple(
                max(1, round(r * new / old)) for r, new, old in zip(sides, size, known.input_size, strict=True)
            )
            short = isinstance(known.resize, int) and resize[0] == resize[1]
            changes |= {"resize": resize[0]} if short else {"resize": resize, "crop_mode": known.crop_mode}
    return replace(known, assumed="" if mean is not None and std is not None else known.assumed, **changes)


def _channel_values(name: str, values: float | Sequence[float], channels: int) -> tuple[float, ...]:
    numbers = (float(values),) if isinstance(values, int | float) else tuple(float(value) for value in values)
    if len(numbers) not in (1, channels):
        raise ModelError(f"{name} needs 1 or {channels} numbers, one per channel, but has {len(numbers)}: {numbers}.")
    if name == "std" and min(numbers) <= 0:
        raise ModelError(f"std must be positive, but is {numbers}.")
    return numbers * channels if len(numbers) == 1 else numbers
