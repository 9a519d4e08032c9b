"""The folder of a fine-tune: checkpoints, which only a run with the same settings goes on from, models and images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from camtools.errors import InputError, WeightsError
from camtools.files import parse_json, replacing, write_json
from camtools.training.logs import CSV_FILE, EVENTS

STATE, SETTINGS_FILE, IMAGE_FILE = "state.pt", "config.json", "examples.png"
BEST_FILE, LAST_FILE = "best.safetensors", "last.safetensors"
FROZEN_FOLDER = "frozen"  # of what a frozen part gives

Writers = Mapping[str, Callable[[Path], object]]
"""What a recipe saves beside a model: functions that write a file, by the end of its name."""


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint of tensors, numbers, text and containers of these; nothing is executed.

    Raises:
        WeightsError: The file is damaged or something else.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises whatever a damaged file leads it into
        raise WeightsError(
            f"{path} is no checkpoint of a fine-tune: {' '.join(str(error).split())[:200]}. Delete it to start over"
        ) from error
    if not isinstance(state, dict) or "settings" not in state:
        raise WeightsError(f"{path} is no checkpoint of a fine-tune: expected one. Choose another folder (out=)")
    return state


class TrainingFolder:
    """Where a run's files go. Without a path nothing is written, and of several processes only one writes.

    Args:
        path: The folder, which need not exist; None for a run that leaves nothing.
        leads: Whether this is the process that writes.

    Attributes:
        written: The folder where this process writes files; None where it doesn't.
    """

    def __init__(self, path: Path | None, leads: bool) -> None:
        self.path, self.written = path, path if leads else None

    def checkpoint(self, settings: Mapping[str, Any], resume: bool, device: torch.device) -> dict[str, Any] | None:
        """Return the checkpoint that a run goes on from; None where it begins.

        Args:
            settings: What the weights depend on.
            resume: Whether there may be a run.
            device: Where tensors go.

        Raises:
            InputError: There is a run, and `resume` is False or its settings were others.
            WeightsError: The checkpoint is damaged.
        """
        if self.path is None or not (self.path / STATE).exists():
            return None
        if not resume:
            raise InputError(
                f"{self.path} holds a run already: expected an empty folder. Go on with it (resume=True, --resume), "
                "or choose another (out=)"
            )
        state = read_state(self.path / STATE, device)
        before, now = parse_json(state["settings"]), json.loads(json.dumps(settings))
        different = [
            f"{key} was {before.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}"
            for key in {**before, **now}
            if before.get(key, "absent") != now.get(key, "absent")
        ]
        if different:
            raise InputError(
                f"{self.path} holds a run with other settings ({'; '.join(different)}): expected the same to resume "
                "it. Give those, or another folder (out=)"
            )
        return state

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write all settings as JSON.

        Raises:
            InputError: The file cannot be written; likewise below.
        """
        if self.written is not None:
            write_json(dict(settings), self.written / SETTINGS_FILE)

    def write_checkpoint(self, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Write what a run goes on from."""
        if self.written is not None:
            with replacing(self.written / STATE) as partial, partial.open("wb") as file:
                torch.save({"settings": json.dumps(settings), **state}, file)

    def write_model(self, name: str, model: nn.Module, writers: Writers) -> None:
        """Write a model, with its description where it has one, and what the recipe saves beside it."""
        own = getattr(model, "save", None)
        self.write(name, own if callable(own) else lambda path: safetensors.torch.save_model(model, str(path)))
        for end, write in writers.items():
            self.write(beside(name, end), write)

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file."""
        if self.written is not None:
            with replacing(self.written / name) as partial:
                write(partial)

    def paths(self, writers: Writers) -> dict[str, Path]:
        """Return the files by what they are; empty without a folder."""
        if self.path is None:
            return {}
        names = {"best": BEST_FILE, "last": LAST_FILE, "state": STATE, "csv": CSV_FILE, "tensorboard": EVENTS}
        names |= {end.partition(".")[0]: beside(BEST_FILE, end) for end in writers}
        names["config"] = SETTINGS_FILE
        if (self.path / IMAGE_FILE).exists():
            names["examples"] = IMAGE_FILE
        return {key: self.path / name for key, name in names.items()}


def beside(name: str, end: str) -> str:
    """Return the name of a file that goes with a model's: "best.safetensors" and "bank.pt" make "best.bank.pt"."""
    return f"{name.partition('.')[0]}.{end}"
