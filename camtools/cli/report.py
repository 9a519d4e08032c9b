"""What stdout gets of a run: one table, or one JSON document."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from camtools.cli.common import Format, complain, stdout_console
from camtools.cli.run import Run


def show(run: Run, output: Format) -> None:
    """Print a run's results on stdout.

    Args:
        run: The finished run.
        output: A table for people, or JSON: the same document as the manifest.
    """
    if output is Format.JSON:
        typer.echo(json.dumps(run.to_dict(), indent=1, ensure_ascii=False))
        return
    if not run.results:
        return
    table = Table("Picture", "Class", "Score", "Box (x0, y0, x1, y1)", "Map")
    for entry in run.results:
        for number, found in enumerate(entry["classes"]):
            table.add_row(Text("" if number else entry["source"], overflow="fold"), *_cells(found))
    stdout_console().print(table)


def _cells(found: dict[str, Any]) -> list[Text]:
    name, label = found.get("name"), found["label"]
    box = found.get("box")
    cells = [
        f"{name} ({label})" if name and name != str(label) else str(label),
        f"{found['score']:.3f}",
        ", ".join(str(edge) for edge in box) if box else "none",
        "exact" if found["exact"] else "linearised",
    ]
    return [Text(cell) for cell in cells]


def summarise(run: Any, seconds: float) -> None:
    """Say on stderr how much was done, and what failed."""
    for failure in run.failed:
        complain(f"{failure['source']}: {failure['error']}")
    done, skipped = run.fresh, len(run.results) - run.fresh
    parts = [f"{done} picture{'s' * (done != 1)} in {seconds:.1f} s ({done / max(seconds, 1e-9):.1f} pictures/s)"]
    parts += [f"{skipped} done before"] if skipped else []
    parts += [f"{len(run.failed)} failed"] if run.failed else []
    parts += [f"results in {run.out}"] if run.out is not None else []
    typer.echo(", ".join(parts), err=True)
