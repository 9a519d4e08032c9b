"""A model's preprocessing with another normalisation or input size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from camtools.errors import ModelError
from camtools.preprocess import Preprocess


def adjust(
    preprocess: Preprocess | Callable[..., Any] | None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
) -> Preprocess | Callable[..., Any] | None:
    """Change some of a model's preprocessing.

    Args:
        preprocess: What is known; None takes ImageNet's usual where there is something to change.
        mean: Of pictures in [0, 1], one number or one a channel.
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
    known = preprocess or Preprocess.imagenet()
    changes: dict[str, Any] = {}
    for name, values in (("mean", mean), ("std", std)):
        if values is not None:
            changes[name] = _per_channel(name, values, known.channels)
    if size is not None:
        changes |= _resized(known, size)
    return dataclasses.replace(known, **changes)


def _resized(known: Preprocess, size: tuple[int, int]) -> dict[str, Any]:
    """Scale the resize by as much as the crop after it; a crop that is not square is covered, never padded."""
    if known.resize is None or known.input_size is None:
        return {"input_size": size}
    before = known.resize if isinstance(known.resize, tuple) else (known.resize, known.resize)
    resize = tuple(max(1, round(r * new / old)) for r, new, old in zip(before, size, known.input_size, strict=True))
    if isinstance(known.resize, int) and resize[0] == resize[1]:
        return {"input_size": size, "resize": resize[0]}
    return {"input_size": size, "resize": resize, "crop_mode": known.crop_mode}


def _per_channel(name: str, values: float | Sequence[float], channels: int) -> tuple[float, ...]:
    numbers = (float(values),) if isinstance(values, int | float) else tuple(float(value) for value in values)
    if len(numbers) not in (1, channels):
        raise ModelError(f"{name} needs 1 or {channels} numbers, one a channel, but has {len(numbers)}: {numbers}.")
    if name == "std" and min(numbers) <= 0:
        raise ModelError(f"std must be positive, but is {numbers}.")
    return numbers * channels if len(numbers) == 1 else numbers
