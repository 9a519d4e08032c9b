"""What the commands share: options, the model they name, exit codes, and what goes to stdout and to stderr."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camtools.errors import CamtoolsError, ModelError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from camtools.sources.base import LoadedModel

SOME_FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
_WIDTH_OF_FILES = 200


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read "0.5" or "0.485,0.456,0.406".

    Raises:
        typer.BadParameter: It is something else.
    """
    try:
        return tuple(float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a number, nor numbers with commas such as 0.485,0.456,0.406"
        ) from None


def parse_size(text: str) -> tuple[int, int]:
    """Read "224" or "224x320" as (height, width).

    Raises:
        typer.BadParameter: It is something else, or not positive.
    """
    match = re.fullmatch(r"(\d+)(?:[xX,](\d+))?", text.strip())
    if match is None or 0 in (height := int(match[1]), width := int(match[2] or match[1])):
        raise typer.BadParameter(f"{text!r} is not a size: say 224, or HEIGHTxWIDTH such as 224x320")
    return height, width


def parse_model_arg(text: str) -> tuple[str, Any]:
    """Read "KEY=VALUE"; the value is a Python literal where it reads like one, else text.

    Raises:
        typer.BadParameter: It lacks its key or "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


_model = typer.Option(metavar="NAME", help="timm/NAME, torchvision/NAME, package.module:function, or FILE.py:function.")
PathsArgument = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Images, folders (with sub-folders), or patterns: 'a/*.jpg'.")
]
ModelOption = Annotated[str, _model]
OptionalModelOption = Annotated[str | None, _model]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Checkpoint, .safetensors or .pth; the number of classes is read from it. 'random' for none; "
        "torchvision's own names (IMAGENET1K_V1) work too. Left out, published weights are downloaded.",
    ),
]
ModelArgOption = Annotated[
    list[Any] | None,
    typer.Option(
        metavar="KEY=VALUE",
        parser=parse_model_arg,
        help="Keyword argument for the model's constructor or function, such as pad_type=same. May be repeated.",
    ),
]
MeanOption = Annotated[
    Any,
    typer.Option(metavar="R,G,B", parser=parse_numbers, help="Mean of images in [0, 1], instead of the model's own."),
]
StdOption = Annotated[
    Any, typer.Option(metavar="R,G,B", parser=parse_numbers, help="Standard deviation, instead of the model's own.")
]
SizeOption = Annotated[
    Any,
    typer.Option(
        metavar="N|HxW", parser=parse_size, help="Input size in pixels, instead of the model's own: 224, or 224x320."
    ),
]
ClassNamesOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Names of the model's classes: one per line, or a JSON list.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where results go, a folder per image, and manifest.json over all. A result that is there already is "
        "replaced as a whole. Left out, nothing is written.",
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Leave out images whose result in --out is whole and newer than the image."),
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")]
BatchSizeOption = Annotated[int, typer.Option(min=1, metavar="N", help="Images per forward.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="What stdout gets: a table, or one JSON document. The rest goes to stderr.")
]


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


def complain(message: object) -> None:
    """Print one line on stderr."""
    typer.echo(f"Error: {' '.join(str(message).split())}", err=True)


def summarise(count: int, seconds: float, failed: Sequence[tuple[str, str]], out: Path | None, before: int = 0) -> None:
    """Say on stderr what failed, as (image, error), and how much was done."""
    for name, error in failed:
        complain(f"{name}: {error}")
    parts = [f"{count} image{'s' * (count != 1)} in {seconds:.1f} s ({count / max(seconds, 1e-9):.1f} images/s)"]
    parts += [f"{before} done before"] if before else []
    parts += [f"{len(failed)} failed"] if failed else []
    parts += [f"results in {out}"] if out is not None else []
    typer.echo(", ".join(parts), err=True)


def print_json(document: Any) -> None:
    """Print a JSON document on stdout."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def stdout_console() -> Console:
    """Return a console for tables; files and pipes get wide lines instead of a terminal's 80 columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_FILES)
