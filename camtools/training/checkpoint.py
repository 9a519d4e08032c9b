"""Checkpoints: written whole or not at all, and refused by a run with other settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from camtools.errors import InputError, WeightsError

STATE = "state.pt"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what was written becomes `path` at the end, at once, and after an error nothing does.

    Raises:
        InputError: It cannot be written: the disk is full, say.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # torch.save turns some of the former into the latter
            raise InputError(
                f"{path} cannot be written: {' '.join(str(error).split())}. What was there before is unharmed: make "
                "room, and go on with resume (--resume)"
            ) from error
        raise


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, text and containers of these.

    Raises:
        InputError: It cannot be written.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(dict(state), file)


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `write_state` wrote; nothing is executed.

    Raises:
        WeightsError: The file is damaged or something else.
    """
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises whatever a damaged file leads it into
        raise WeightsError(
            f"{path} is no checkpoint of a fine-tune: {' '.join(str(error).split())[:200]}. Delete it to start over"
        ) from error
    if not isinstance(found, dict) or "settings" not in found:
        raise WeightsError(f"{path} is no checkpoint of a fine-tune: expected one. Choose another folder (out=)")
    return found


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let a function write a file, whole or not at all.

    Args:
        path: Where it ends up.
        write: Called with a path of the same suffix in the same folder.

    Raises:
        InputError: It cannot be written.
    """
    with replacing(path) as partial:
        named = partial.with_name(f".part{path.suffix}")
        try:
            write(named)
            named.replace(partial)
        finally:
            named.unlink(missing_ok=True)


def check_same(saved: str, now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run of other settings.

    Args:
        saved: The settings of the checkpoint, as JSON.
        now: Those of this run.
        folder: For the message.

    Raises:
        InputError: Some differ; names them with both values.
    """
    before, after = json.loads(saved), json.loads(json.dumps(now))
    different = [
        f"{key} was {before.get(key, 'absent')!r}, is {after.get(key, 'absent')!r}"
        for key in {**before, **after}
        if before.get(key, "absent") != after.get(key, "absent")
    ]
    if different:
        raise InputError(
            f"{folder} holds a run with other settings ({'; '.join(different)}): expected the same to resume it. Give "
            "those, or another folder (out=)"
        )
