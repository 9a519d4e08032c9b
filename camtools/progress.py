"""The progress bar of everything that takes long, with a rate: on a terminal's stderr, or in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

EVERY = 10  # seconds between lines in logs


class Advance(Protocol):
    """What moves a bar on."""

    def __call__(self, count: int = 1, text: str = "") -> None:
        """Add so many units, with a text behind the label; "" keeps the one that is there."""


@contextmanager
def progress_bar(
    total: int, label: str, shown: bool = True, unit: str = "images", plain: bool = False
) -> Iterator[Advance]:
    """Show a bar on stderr, where that is a terminal, or below a notebook's cell (with ipywidgets).

    Args:
        total: Units to do; 0 shows nothing.
        label: What is being done.
        shown: Whether to show it at all.
        unit: What is counted, in the plural.
        plain: Write a line every ten seconds instead, whatever stderr is: for logs.

    Yields:
        `advance(count=1, text="")`: call it with how many more units are done.
    """
    if plain and shown and total:
        yield _Lines(total, label, unit)
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    seen = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
    hidden = not shown or not seen or total == 0
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task(label, total=total)

        def advance(count: int = 1, text: str = "") -> None:
            bar.update(task, advance=count, description=f"{label}, {text}" if text else None)

        yield advance


class _Lines:
    """Progress as lines of text, at most one every ten seconds, and the last."""

    def __init__(self, total: int, label: str, unit: str) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done, self.start, self.told = 0, time.monotonic(), time.monotonic()

    def __call__(self, count: int = 1, text: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told >= EVERY or self.done >= self.total:
            self.told, rate = now, self.done / max(now - self.start, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            said = f"{self.label}{f', {text}' if text else ''}: {self.done} of {self.total} {self.unit}"
            print(f"{said}, {rate:.1f} {self.unit}/s, {left:.0f} s left", file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:.1f} {self.unit}/s" if rate else f"- {self.unit}/s")
