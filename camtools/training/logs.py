"""What a fine-tune logs: metrics.csv, one line per epoch, and TensorBoard's event files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camtools.files import write_text

CSV_FILE, EVENTS = "metrics.csv", "tensorboard"

EpochRow = dict[str, float]
"""One epoch: its number, learning rate, losses and metrics."""


class Logs:
    """Writes both kinds to a folder; nothing without one.

    Args:
        folder: Of the run; None for no logs.
        step: The step that a resumed run goes on from: later entries of a killed one are forgotten.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self.folder = folder
        self._events: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / EVENTS), purge_step=step or None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers to TensorBoard."""
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def epoch(self, history: Sequence[EpochRow], step: int) -> None:
        """Write the last row to TensorBoard, and all of them to metrics.csv, whole or not at all.

        Raises:
            InputError: The file cannot be written.
        """
        if self.folder is None:
            return
        names = list(dict.fromkeys(name for row in history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in history)
        write_text(self.folder / CSV_FILE, text.getvalue())
        self.scalars({f"epoch/{name}": value for name, value in history[-1].items() if name != "epoch"}, step)
        self._events.flush()

    def close(self) -> None:
        """Finish the event files."""
        if self._events is not None:
            self._events.close()
