"""What a module gave in a forward, for losses and banks that look at more than the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from camtools.errors import InputError
from camtools.training.config import TrainConfig


@contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect a module's outputs for a while; the hook comes off after an error, too."""
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output)

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def refuse_compiled(name: str, config: TrainConfig) -> None:
    """Refuse `compile`, under which hooks do not run.

    Raises:
        InputError: It is set.
    """
    if config.compile:
        raise InputError(f"compile=True: {name} looks into the forward by a hook, expected compile=False. Leave it out")
