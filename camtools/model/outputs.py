"""Finding the class scores in whatever a model returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from camtools.errors import ModelError

Activation = Literal["softmax", "sigmoid"]


def class_scores(output: Any, batch_size: int | None = None) -> Tensor:
    """Return the logits of a classifier's output.

    A tensor is taken as it is; a mapping or object with `logits` gives those (GoogLeNet and Inception with
    auxiliary heads, Hugging Face outputs); of a tuple or list the first element counts.

    Args:
        output: What the model's forward returned.
        batch_size: Number of images that went in, B, if known.

    Returns:
        Logits, (B, K).

    Raises:
        ModelError: There are no class scores in the output.
    """
    found = output
    if not isinstance(found, Tensor):
        if isinstance(found, Mapping) and "logits" in found:
            found = found["logits"]
        elif isinstance(getattr(found, "logits", None), Tensor):
            found = found.logits
        elif isinstance(found, (tuple, list)) and found:
            found = found[0]
    expected = f"class scores of shape (batch, classes){f' with batch {batch_size}' if batch_size else ''}"
    way_out = "Give camtools a classifier (timm: num_classes > 0), or wrap the model so that it returns its logits."
    if not isinstance(found, Tensor):
        raise ModelError(f"the model returned {type(output).__name__} without logits; expected {expected}. {way_out}")
    if found.dim() != 2 or (batch_size is not None and found.shape[0] != batch_size) or not found.is_floating_point():
        raise ModelError(
            f"the model returned a {found.dtype} tensor of shape {tuple(found.shape)}; expected {expected}. {way_out}"
        )
    if found.shape[1] == 0:
        raise ModelError(f"the model has 0 classes; expected {expected}. {way_out}")
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


def replace_tensor(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return `value` with one tensor (by identity) exchanged; containers on the way are rebuilt, others kept."""
    if value is old:
        return new
    if isinstance(value, tuple):
        items = [replace_tensor(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [replace_tensor(item, old, new) for item in value]
    if isinstance(value, dict):
        return type(value)((key, replace_tensor(item, old, new)) for key, item in value.items())
    return value


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Turn logits (B, K) into probabilities; a model with one class has a sigmoid whatever is asked."""
    scores = logits.float()
    if activation == "sigmoid" or logits.shape[1] == 1:
        return torch.sigmoid(scores)
    return torch.softmax(scores, dim=1)
