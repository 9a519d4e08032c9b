"""What metrics are given: one rule for numbers, boxes, classes and sizes, whichever metric they are for.

Numbers are tensors, arrays, or lists of them. A box is a row x0, y0, x1, y1 in pixels, x0 <= x1 and y0 <= y1, finite; a
row of NaN alone is an object without a box. Classes are whole numbers of at least 0. Anything else is an `InputError`
that names the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtools.checks import whole
from camtools.errors import InputError
from camtools.images.read import max_pixels

Boxes = Sequence[Tensor | NDArray[Any]]
Labels = Tensor | NDArray[Any] | Sequence[int]
Sizes = Sequence[tuple[int, int]]

_FARTHEST = 2.0**31
"""Coordinates beyond are a mistake, and their areas might be infinite."""


def numbers(name: str, given: Any, device: torch.device | str | None = None) -> Tensor:
    """Return a tensor of what can only be numbers.

    Args:
        name: The argument's name.
        given: A tensor or array, or a list of numbers.
        device: Where it should be; None leaves a tensor where it is.

    Raises:
        InputError: It is no such thing: None, text, a list of different lengths, a sparse or a complex tensor.
    """
    try:
        if given is None:
            raise TypeError
        found = torch.as_tensor(np.ascontiguousarray(given) if isinstance(given, np.ndarray) and given.ndim else given)
        if found.layout != torch.strided or found.is_meta or found.is_nested or found.is_complex():
            raise TypeError
        return found.detach().to(device)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise InputError(f"{name}: expected a tensor, array or list of real numbers, got {_shown(given)}.") from error


def each(name: str, given: Any, count: int | None = None, owner: str = "maps") -> Sequence[Any]:
    """Return a list that has an entry for each of something.

    Args:
        name: The argument's name.
        given: A list or tuple, or a tensor or array with its entries along the first dimension.
        count: How many entries there have to be; None for any number.
        owner: Of what there are so many, for the error.

    Raises:
        InputError: It is no list, or of another length.
    """
    if not isinstance(given, Tensor | np.ndarray | list | tuple) or (
        isinstance(given, Tensor | np.ndarray) and not given.ndim
    ):
        raise InputError(f"{name}: expected a list with an entry for each image, got {_shown(given)}.")
    if count is not None and len(given) != count:
        raise InputError(f"{name}: got {len(given)} for {count} {owner}; give one for each of them, in order.")
    return given  # type: ignore[return-value]


def box_rows(name: str, given: Any, device: torch.device | str | None = None, *, blank: bool = True) -> Tensor:
    """Return boxes, (N, 4) float64.

    Args:
        name: The argument's name.
        given: (N, 4), or empty.
        device: Where they should be.
        blank: Whether rows of NaN may stand for objects without a box.

    Raises:
        InputError: They are of another shape, not finite, or end before they begin.
    """
    boxes = numbers(name, given, device).double()
    boxes = boxes.reshape(-1, 4) if boxes.numel() == 0 else boxes
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise InputError(
            f"{name}: expected (N, 4), a row x0, y0, x1, y1 for each object, got {tuple(boxes.shape)}. One box is "
            "box[None]."
        )
    sound = ((boxes[:, :2] <= boxes[:, 2:]) & (boxes.abs() < _FARTHEST).view(-1, 2, 2).all(1)).all(1)
    sound |= boxes.isnan().all(1) & blank
    if not sound.all():
        row = int((~sound).nonzero()[0, 0])
        missing = "; a row of NaN is an object without a box" if blank else "; leave out what has no box"
        raise InputError(
            f"{name}[{row}] is {boxes[row].tolist()}: expected finite pixels, x0 <= x1 and y0 <= y1{missing}. "
            "Boxes given as x, y, width, height become x, y, x + width, y + height."
        )
    return boxes


def class_labels(
    name: str, given: Any, count: int, owner: str = "maps", device: torch.device | str | None = None
) -> Tensor:
    """Return classes, (count,) int64.

    Raises:
        InputError: They are not so many whole numbers of at least 0.
    """
    labels = numbers(name, given, device)
    if labels.numel() == 0 and count == 0:
        return labels.long().flatten()
    whole_ones = not labels.is_floating_point() and labels.dtype != torch.bool
    if labels.shape != (count,) or not whole_ones or bool((labels.long() < 0).any()):
        raise InputError(
            f"{name}: expected {count} class indices, integers >= 0, one for each of the {owner}, got "
            f"{tuple(labels.shape)} {labels.dtype}{_sample(labels)}."
        )
    return labels.long()


def flags(name: str, given: Any, count: int, device: torch.device | str | None = None) -> Tensor:
    """Return (count,) bool, one for each box.

    Raises:
        InputError: It is of another shape or type.
    """
    found = numbers(name, given, device)
    if found.shape != (count,) or (found.dtype != torch.bool and count):
        raise InputError(f"{name}: expected bool of shape ({count},), one per box, got {_shown(found)}.")
    return found.bool()


def ranked_scores(name: str, given: Any, count: int, owner: str, device: torch.device | str | None = None) -> Tensor:
    """Return scores that can be ranked, (count,) float64.

    Raises:
        InputError: There are not so many of them, or one is NaN.
    """
    scores = numbers(name, given, device).double()
    if scores.shape != (count,) or scores.isnan().any():
        raise InputError(
            f"{name}: expected {count} numbers, one for each of the {owner}, got shape {tuple(scores.shape)}"
            f"{' with a NaN; leave such out' if scores.isnan().any() else ''}."
        )
    return scores


def image_sizes(given: Any, count: int, *, in_memory: bool = False) -> list[tuple[int, int]]:
    """Return images' sizes, `count` pairs (width, height).

    Args:
        given: As many pairs.
        count: How many maps there are.
        in_memory: Whether maps are to be enlarged to that size, so that it must not be more pixels than an image may
            have.

    Raises:
        InputError: There are not so many, or one is not two positive whole numbers.
    """
    pairs = []
    for index, size in enumerate(each("sizes", given, count)):
        pair = numbers(f"sizes[{index}]", size).double()
        if pair.shape != (2,) or not bool(((pair == pair.round()) & (pair > 0) & (pair < _FARTHEST)).all()):
            raise InputError(
                f"sizes[{index}] is {_shown(size, 80)}: expected (width, height), two positive integers below 2**31."
            )
        width, height = (int(side) for side in pair.tolist())
        if in_memory and width * height > (limit := max_pixels()):
            raise InputError(
                f"sizes[{index}] is {(width, height)}: expected at most {limit:,} pixels. Raise "
                "PIL.Image.MAX_IMAGE_PIXELS where memory allows more."
            )
        pairs.append((width, height))
    return pairs


def map_size(size: Any) -> tuple[int, int] | None:
    """Return a size at which maps are compared: (height, width), or None for the maps' own.

    Raises:
        InputError: It is something else, or more pixels than an image may have.
    """
    if size is None:
        return None
    if not (isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise InputError(
            f"size={_shown(size, 80)}: expected (height, width), two positive integers, or None to leave maps alone."
        )
    if size[0] * size[1] > max_pixels():
        raise InputError(f"size={size}: expected (height, width) of at most {max_pixels():,} pixels.")
    return size


def check_workers(workers: int | None) -> int | None:
    """Check a number of threads; None is for as many as torch uses.

    Raises:
        InputError: `workers` is neither None nor a positive integer.
    """
    return None if workers is None else whole("workers", workers)


def _shown(value: Any, most: int = 60) -> str:
    """Return what an error says of a value: shape and type of tensors, the value itself where it is short."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} {value.dtype}"
    text = repr(value)
    return text if len(text) <= most else f"a {type(value).__name__} that begins {text[: most // 2]}"


def _sample(labels: Tensor) -> str:
    """Return the first value that is no class, in words."""
    values = labels.flatten().double()
    wrong = values[(values < 0) | (values != values.round())]
    return f" with {wrong[0].item():g}" if len(wrong) else ""
