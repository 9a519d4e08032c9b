"""`camtools models`: which adapter knows a model, whether its maps are exact, and how large they are."""

from __future__ import annotations

import fnmatch
import json
from typing import Annotated, Any

import typer

from camtools.cli.common import (
    SOME_FAILED,
    WRONG_USE,
    Format,
    FormatOption,
    ModelArgOption,
    SizeOption,
    complain,
    exit_codes,
    parse_model_args,
    parse_size,
    stdout_console,
    stdout_to_stderr,
)
from camtools.errors import CamtoolsError


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="[PATTERN]", help="Names to look into: 'torchvision/*', 'timm/resnet*', 'resnet50'."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="timm/NAME, torchvision/NAME, package.module:function, FILE.py:function, or a file of a model with "
            "another head. May be repeated.",
        ),
    ] = None,
    size: SizeOption = None,
    model_arg: ModelArgOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say how camtools sees models: adapter, exact or linearised maps, layer and map size.

    Each model is built with random weights, which is enough to tell, and run once; nothing is downloaded. A file's
    model has the file's weights. Without a pattern or --model, only the names are listed.

    Exit codes: 0 done, 1 some models have no map, 2 wrong use, 130 interrupted.
    """
    arguments, height_width = parse_model_args(model_arg), parse_size(size)
    from camtools.heads.saved import headed_config
    from camtools.sources import find_source

    with exit_codes():
        with stdout_to_stderr():
            names = list(model or []) + (_matching(pattern) if pattern or not model else [])
        if not names:
            complain(f"No model's name matches {pattern!r}. Without a pattern, all names are listed.")
            raise typer.Exit(WRONG_USE)
        if pattern is None and not model:
            _print_names(names, output)
            return
        for name in names:
            if headed_config(name) is None:
                find_source(name)  # an unknown name is wrong use, said before anything is built
        rows = _look_into(names, arguments, height_width)
        _print_rows(rows, output)
    if any(row["error"] for row in rows):
        raise typer.Exit(SOME_FAILED)


def _matching(pattern: str | None) -> list[str]:
    from camtools.cli.images import natural_key
    from camtools.sources import known_models

    names = known_models()
    if pattern is not None:
        names = [
            n for n in names if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n.partition("/")[2], pattern)
        ]
    return sorted(names, key=natural_key)


def _look_into(names: list[str], arguments: dict[str, Any], size: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Describe each model, with a progress bar on stderr where there are several."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    quiet = len(names) == 1 or not console.is_terminal
    with stdout_to_stderr():
        steps = track(names, "Models", console=console, disable=quiet, transient=True)
        return [describe(name, arguments, size) for name in steps]


def describe(name: str, arguments: dict[str, Any] | None = None, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Build one model and say how its maps come about.

    Args:
        name: As in `camtools.load_model`.
        arguments: Keyword arguments for its constructor or function.
        size: Input (height, width), instead of the model's own.

    Returns:
        model, adapter, exact, residual, layer, layout, head, input (height, width), map (rows, columns), channels; and
        error, None unless the model has no map, when all but the model are None.
    """
    import torch

    from camtools.heads.saved import headed_config
    from camtools.loading import load_model
    from camtools.model.cam_model import wrap
    from camtools.sources import FunctionSource, find_source

    row: dict[str, Any] = dict.fromkeys(
        ("model", "adapter", "exact", "residual", "layer", "layout", "head", "input", "map", "channels", "error")
    )
    row["model"] = name
    try:
        own = headed_config(name) is not None or isinstance(find_source(name), FunctionSource)
        loaded = load_model(name, None if own else "random", size=size, model_args=arguments)
        cam_model = wrap(loaded.model)
        example = cam_model.example()
        if size is not None:
            example = torch.randn(1, example.shape[1], *size, dtype=example.dtype)
        found = cam_model.locate(example)
    except CamtoolsError as error:
        return row | {"error": str(error)}
    return row | {
        "adapter": found.adapter,
        "exact": found.exact,
        "residual": found.residual,
        "layer": found.layer,
        "layout": str(found.layout),
        "head": found.head,
        "input": list(example.shape[-2:]),
        "map": list(found.grid),
        "channels": found.channels,
    }


def _print_names(names: list[str], output: Format) -> None:
    typer.echo(json.dumps(names, indent=1) if output is Format.JSON else "\n".join(names))


def _print_rows(rows: list[dict[str, Any]], output: Format) -> None:
    if output is Format.JSON:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("Model", "Adapter", "Maps", "Size", "Layer", "Head")
    for column in table.columns[:4]:
        column.no_wrap = True
    for row in rows:
        if row["error"]:
            table.add_row(row["model"], "", Text("none", style="red"), "", "", Text(row["error"]))
            continue
        maps = "exact" if row["exact"] else "linearised"
        size = f"{row['map'][0]} x {row['map'][1]}"
        table.add_row(row["model"], row["adapter"], maps, size, Text(row["layer"]), Text(row["head"]))
    stdout_console().print(table)
