"""What an `Explainer` does around a forward: the device, the batch's type, and whether the scores are numbers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from camtools.errors import InputError


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


def to_model(x: Tensor, model: nn.Module) -> Tensor:
    """Bring a batch to the model's device and floating type."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    return x if reference is None else x.to(reference.device, reference.dtype)
