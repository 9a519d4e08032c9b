"""Targets: which classes to explain, from what callers write to class indices.

`class_indices` and what it takes are for images with names and lists of classes of any length; `target_indices` is for
tensors of indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camtools.checks import whole
from camtools.classes.names import resolve_target
from camtools.errors import TargetError

Target = int | str
Targets = int | Sequence[int] | Tensor | None


def is_list(target: Any) -> bool:
    """Return whether a target names several classes: a sequence, or an array or tensor with an axis."""
    if isinstance(target, (Tensor, np.ndarray)):
        return target.ndim > 0
    return isinstance(target, Sequence) and not isinstance(target, str)


def per_image(target: Any, count: int, single: bool) -> list[Any]:
    """Return one target, or list of targets, per image.

    Args:
        target: What the caller gave; None for the likeliest class.
        count: Number of images.
        single: Whether the caller gave one image, not a list of one; a list then means several classes of it.

    Raises:
        TargetError: A list of another length than there are images.
    """
    if isinstance(target, (Tensor, np.ndarray)):
        try:
            target = target.tolist()
        except (TypeError, RuntimeError) as error:  # torch's own for meta, sparse and nested tensors
            raise TargetError(f"targets are a tensor without plain values ({error}); pass class indices") from error
    if single or not is_list(target):
        return [target] * count
    if len(target) != count:
        raise TargetError(
            f"{len(target)} targets were given for {count} images; pass one per image (each a class or a list of "
            "classes), or a single class for all"
        )
    return list(target)


def check_top_k(top_k: Any, targets: Any) -> None:
    """Refuse a `top_k` that is no count, or that comes with targets.

    Raises:
        TargetError: Says which.
    """
    if top_k is None:
        return
    whole("top_k", top_k, error=TargetError)
    if targets is not None:
        raise TargetError(f"both target={targets!r} and top_k={top_k} were given; give one of them")


def class_indices(
    targets: Sequence[Any], logits: Tensor, top_k: int | None, class_names: Sequence[str] | None
) -> tuple[Tensor, list[int]]:
    """Return the classes to explain in each image of a batch.

    Args:
        targets: For each image an index or name, a list of them, or None for the likeliest class.
        logits: Class scores, (B, K).
        top_k: This many likeliest classes where no image has a target.
        class_names: Names by index; None where there are none.

    Returns:
        Indices (B, K'), images with fewer classes repeating their first; and how many count for each image.

    Raises:
        TargetError: A class does not exist, a list is empty, or there are not as many names as classes.
    """
    classes = logits.shape[1]
    if class_names is not None and len(class_names) != classes:
        raise TargetError(
            f"{len(class_names)} class names were given for a model with {classes} classes; give one per class"
        )
    if top_k is not None and top_k > classes:
        raise TargetError(f"top_k={top_k} is more than the model's {classes} classes")
    likeliest = top_scores(logits, top_k or 1)
    if all(target is None for target in targets):
        return likeliest, [likeliest.shape[1]] * len(targets)
    rows = [
        best if target is None else _resolve(target, class_names, classes)
        for target, best in zip(targets, likeliest.tolist(), strict=True)
    ]
    longest = max(map(len, rows))
    padded = [row + row[:1] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, device=logits.device), [len(row) for row in rows]


def _resolve(target: Any, class_names: Sequence[str] | None, classes: int) -> list[int]:
    wanted = target if is_list(target) else [target]
    if not len(wanted):
        raise TargetError("the target list of an image is empty; name at least one class, or pass None")
    if len(wanted) > classes:
        raise TargetError(
            f"{len(wanted)} targets were given for an image, but the model has {classes} classes; name each once"
        )
    return [resolve_target(label, class_names if isinstance(label, str) else None, classes) for label in wanted]


def target_indices(targets: Targets, batch: int, classes: int) -> Tensor:
    """Return class indices as (B, K') int64 on the CPU or the tensor's own device.

    Args:
        targets: None for all classes, one index, one per image (B,), or several per image (B, K').
        batch: B, number of images.
        classes: K, number of classes.

    Raises:
        TargetError: An index out of range, or a list of the wrong length.
    """
    if targets is None:
        return torch.arange(classes).expand(batch, classes)
    if isinstance(targets, Sequence) and not isinstance(targets, str):  # before a tensor is made of a billion indices
        longest = max((len(row) for row in targets[:batch] if isinstance(row, Sequence)), default=0)
        if len(targets) > batch or longest > classes:
            shape = f"({len(targets)}, {longest})" if longest else f"({len(targets)},)"
            raise TargetError(
                f"targets of shape {shape} do not go with {batch} images; pass one index, one per image ({batch},), or "
                f"several per image ({batch}, n), n at most {classes}"
            )
    try:
        given = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TargetError(f"targets must be whole numbers, got {repr(targets)[:60]}; pass class indices") from error
    if given.numel() and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
        raise TargetError(f"targets must be whole numbers, got {given.dtype}; pass class indices")
    indices = given.long()
    if indices.dim() == 0:
        indices = indices.expand(batch)
    if indices.dim() == 1:
        indices = indices[:, None]
    if indices.dim() != 2 or indices.shape[0] != batch or indices.shape[1] == 0:
        raise TargetError(
            f"targets of shape {tuple(given.shape)} do not go with {batch} images; pass one "
            f"index, one per image ({batch},), or several per image ({batch}, n)"
        )
    wrong = indices[(indices < 0) | (indices >= classes)]
    if len(wrong):
        raise TargetError(
            f"class index {int(wrong[0])} is out of range: the model has {classes} classes, 0 to {classes - 1}"
        )
    return indices


def top_scores(logits: Tensor, k: int) -> Tensor:
    """Return the indices of the k highest class scores, highest first, (B, k)."""
    return torch.topk(logits.detach().float(), k, dim=1).indices
