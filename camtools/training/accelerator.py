"""One `Accelerator` for the length of a fine-tune: `accelerate` keeps its settings for the whole process otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from camtools.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def accelerated(mixed_precision: str, device: str | None) -> Iterator[Accelerator]:
    """Give an accelerator; what `accelerate` remembers of it is forgotten afterwards, unless the caller uses it too.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
        device: "cpu"; None, "auto" or "cuda" for a GPU where there is one.

    Raises:
        InputError: There is no such device, or it lacks the precision; or the caller's own accelerator has another.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if device not in (None, "auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"device={device!r}: expected cpu, or cuda or auto with a GPU. Say cpu")
    shared = bool(AcceleratorState._shared_state)
    began = bool(PartialState._shared_state)
    try:
        try:
            found = Accelerator(mixed_precision=mixed_precision, cpu=device == "cpu")
        except ValueError as error:
            raise InputError(
                f"mixed_precision={mixed_precision!r} cannot be had here: {error}. Say no, or change the caller's own"
            ) from error
        yield found
    finally:
        if not shared:
            AcceleratorState._reset_state(not began and not torch.distributed.is_initialized())
            GradientState._reset_state()
