"""What the commands share: options, exit codes, and values read from text."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from camtools.errors import CamtoolsError, ModelError

SOME_FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
_WIDTH_OF_FILES = 200


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="What stdout gets: a table, or one JSON document. The rest goes to stderr.")
]
ModelArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg",
        metavar="KEY=VALUE",
        help="Keyword argument for the model's constructor or function, such as pad_type=same. May be repeated.",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="N|HxW", help="Input size in pixels, instead of the model's own: 224, or 224x320."),
]


def stdout_console() -> Any:
    """Return a console for tables; files and pipes get wide lines instead of a terminal's 80 columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_FILES)


def complain(message: object) -> None:
    """Print one line on stderr."""
    typer.echo(f"Error: {' '.join(str(message).split())}", err=True)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what camtools raises on purpose into one line and exit code 2, and Ctrl-C into exit code 130."""
    try:
        yield
    except CamtoolsError as error:
        complain(error)
        raise typer.Exit(WRONG_USE) from error
    except KeyboardInterrupt as error:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from error


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what libraries and users' functions print to stderr, so that stdout carries the results alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Read "0.5" or "0.485,0.456,0.406".

    Raises:
        typer.BadParameter: It is something else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a number, nor numbers with commas such as 0.485,0.456,0.406", param_hint=option
        ) from None


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read "224" or "224x320" as (height, width).

    Raises:
        typer.BadParameter: It is something else, or not positive.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:[xX,](\d+))?", text.strip())
    if found is None or 0 in (height := int(found[1]), width := int(found[2] or found[1])):
        raise typer.BadParameter(
            f"{text!r} is not a size: say 224, or HEIGHTxWIDTH such as 224x320", param_hint="--size"
        )
    return height, width


def parse_model_args(texts: Sequence[str] | None) -> dict[str, Any]:
    """Read "KEY=VALUE" pairs; a value is a Python literal where it reads like one, else text.

    Raises:
        typer.BadParameter: A pair lacks its key or "=".
    """
    args: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--model-arg")
        try:
            args[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            args[key] = value
    return args


def pick_device(name: str) -> Any:
    """Return the torch device of a name; "auto" takes a GPU where there is one.

    Raises:
        ModelError: There is no such device here.
    """
    import torch

    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"Device {name!r} cannot be used: {reason}. Say auto, cpu, or cuda where there is one."
        ) from error
    return device
