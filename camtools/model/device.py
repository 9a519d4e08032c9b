"""What an `Explainer` does around a forward: the device, the batch's type, and whether the scores are numbers."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camtools.errors import InputError

Precision = Literal["float32", "bf16", "auto"]


def autocast_to(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return what to run a forward in: bfloat16 autocast for "bf16", and for "auto" where the device computes in it."""
    wanted = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16, rather than by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """Return the model, or a copy of it where it lives on another device."""
    if device is None or not isinstance(model, nn.Module):
        return model
    if isinstance(device, str) and device == "auto":
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
