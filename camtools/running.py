"""What an `Explainer` does around a forward: the device, the batch's type, and whether the scores are numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from camtools.errors import InputError, ModelError, TargetError
from camtools.reading import Ready


def on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """Return the model, or a copy of it where it lives on another device."""
    if device is None or not isinstance(model, nn.Module):
        return model
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={device!r} cannot be used: {reason}. Pass 'cpu', 'cuda' or 'auto'") from error
    if wanted.type == "meta":
        raise InputError(f"device={device!r} holds no values: expected one that computes. Pass 'cpu', 'cuda' or 'auto'")
    there = {p.device.type for p in model.parameters()} == {wanted.type}
    there = there and wanted.index in (None, *(p.device.index for p in model.parameters()))
    return model if there else copy.deepcopy(model).to(wanted)


def checked_names(names: Any) -> list[str]:
    """Check class names that the caller gives."""
    listed = [] if isinstance(names, (str, Mapping)) or not isinstance(names, Iterable) else list(names)
    if not listed or not all(isinstance(name, str) for name in listed):
        raise TargetError(f"class_names={names!r}: expected a list of one name per class, in the order of the scores")
    return listed


def to_model(x: Tensor, model: nn.Module) -> Tensor:
    """Bring a batch to the model's device and floating type."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    return x if reference is None else x.to(reference.device, reference.dtype)


def check_scores(logits: Tensor, batch: list[Ready]) -> None:
    """Refuse scores that are not numbers."""
    bad = (~torch.isfinite(logits)).any(1).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(batch[i].name for i in bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise ModelError(
            f"the model returned NaN or infinite class scores for {names}. Check its weights; in float16 try "
            "bfloat16 or float32"
        )
