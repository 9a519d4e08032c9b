"""What the commands share: the model they name, exit codes, and what goes to stdout and to stderr."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from camtools.errors import CamtoolsError, ModelError
from camtools.files import check_writable

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from camtools.sources.base import LoadedModel

SOME_FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
_WIDTH_OF_FILES = 200


def load(model: str, weights: str | None = None, *, class_names: Path | None = None, **options: Any) -> LoadedModel:
    """Build the model that the options name.

    Args:
        model: As in `camtools.load_model`.
        weights: Likewise.
        class_names: The file with the names.
        options: More options of `camtools.load_model`.
    """
    from camtools.classes.names import load_names
    from camtools.loading import load_model

    return load_model(model, weights, class_names=None if class_names is None else load_names(class_names), **options)


def cut_at(pipeline: Any, threshold: str | None, name: str | None = None) -> Any:
    """Return a pipeline, with another threshold where one is given.

    Args:
        pipeline: A preset's name, steps as text, or a pipeline.
        threshold: A number, or a file that has one.
        name: The pipeline's name in that file; its own where left out.
    """
    if threshold is None:
        return pipeline
    from camtools.evaluation import calibrated
    from camtools.pipeline.text import one_pipeline

    steps, own = one_pipeline(pipeline)
    number = re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e-?\d+)?\s*", threshold, re.IGNORECASE)
    return calibrated(steps, float(threshold) if number else threshold, name=name or own)


def pick_device(name: str) -> torch.device:
    """Return the torch device of a name; "auto" takes a GPU where there is one.

    Raises:
        ModelError: There is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.empty(0, device=name).device
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"Device {name!r} cannot be used: {reason}. Say auto, cpu, or cuda where there is one."
        ) from error


@contextlib.contextmanager
def exit_codes(out: Path | None = None, *, folder: bool = True) -> Iterator[None]:
    """Turn camtools' errors, and those of files, into one line and exit code 2, and Ctrl-C into exit code 130.

    Args:
        out: Where results will go, which is tried before anything else is done; None where nothing is written.
        folder: Whether that is a folder, not a file.
    """
    try:
        if out is not None:
            check_writable(out, folder=folder)
        yield
    except CamtoolsError as error:
        complain(error)
        raise typer.Exit(WRONG_USE) from error
    except OSError as error:  # of the place, not of the program: a name that no file can have, say
        complain(f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}")
        raise typer.Exit(WRONG_USE) from error
    except KeyboardInterrupt as error:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from error


def stdout_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """Send what libraries and users' functions print to stderr, so that stdout carries the results alone."""
    return contextlib.redirect_stdout(sys.stderr)


def complain(message: object) -> None:
    """Print an error on stderr, with its lines as they are."""
    typer.echo(f"Error: {str(message).strip()}", err=True)


def summarise(
    count: int,
    began: float,
    seconds: float,
    failed: Sequence[tuple[str, str]],
    out: Path | None,
    before: int = 0,
) -> None:
    """Say on stderr what failed and how much was done.

    Args:
        count: Of images that were done.
        began: When the command did, as `time.perf_counter` counts.
        seconds: What the images alone took, for their rate.
        failed: (image, error).
        out: Where results are.
        before: How many images an earlier run had done.
    """
    for name, error in failed:
        complain(f"{name}: {error}")
    whole, rate = time.perf_counter() - began, count / max(seconds, 1e-9)
    parts = [f"{count} image{'s' * (count != 1)} in {whole:.1f} s ({rate:.1f} images/s once the model was ready)"]
    parts += [f"{before} done before"] if before else []
    parts += [f"{len(failed)} failed"] if failed else []
    parts += [f"results in {out}"] if out is not None else []
    typer.echo(", ".join(parts), err=True)


def print_json(document: Any) -> None:
    """Print a JSON document on stdout."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def print_table(columns: Iterable[Any], rows: Iterable[Iterable[Any]], **options: Any) -> None:
    """Print a table on stdout; the options are those of `rich.table.Table`."""
    from rich.table import Table

    table = Table(*columns, **options)
    for row in rows:
        table.add_row(*row)
    stdout_console().print(table)


def stdout_console() -> Console:
    """Return a console for tables; files and pipes get wide lines instead of a terminal's 80 columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_FILES)
