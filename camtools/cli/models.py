"""`camtools models`: models by name; which adapter knows one, whether its maps are exact, and how large they are."""

from __future__ import annotations

import fnmatch
from typing import Annotated, Any

import typer

from camtools.cli import common, options
from camtools.errors import CamtoolsError


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="[PATTERN]", help="Names to list: 'torchvision/*', 'timm/resnet*'; or one: 'resnet50'."),
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
    describe_all: Annotated[
        bool, typer.Option("--describe", help="Describe every name that the pattern matches, which builds each model.")
    ] = False,
    size: options.Size = None,
    model_arg: options.ModelArgs = None,
    output: options.Output = options.Format.TABLE,
) -> None:
    """List models by name, or say how camtools sees them: adapter, exact or linearised maps, layer and map size.

    A pattern with * ? or [ lists the names that match, and none lists all. One name, --model and --describe tell more:
    each model is then built with random weights, which is enough to tell, and run once; nothing is downloaded. A file's
    model has the file's weights.

    Exit codes: 0 done, 1 some models have no map, 2 wrong use, 130 interrupted.
    """
    with common.exit_codes():
        from camtools.heads.saved import headed_config
        from camtools.progress import progress_bar
        from camtools.sources import find_source

        with common.stdout_to_stderr():
            names = list(model or []) + (_matching(pattern) if pattern or not model else [])
        if not names:
            common.complain(f"No model's name matches {pattern!r}. Without a pattern, all names are listed.")
            raise typer.Exit(common.WRONG_USE)
        one = pattern is not None and not any(sign in pattern for sign in "*?[")
        if not (model or one or describe_all):
            if output is options.Format.JSON:
                common.print_json(names)
            else:
                typer.echo("\n".join(names))
            return
        for name in names:
            if headed_config(name) is None:
                find_source(name)  # an unknown name is wrong use, said before anything is built
        rows = []
        with (
            common.stdout_to_stderr(),
            progress_bar(len(names), "Models", shown=len(names) > 1, unit="models") as advance,
        ):
            for name in names:
                rows.append(describe(name, dict(model_arg or ()), size))
                advance()
        if output is options.Format.JSON:
            common.print_json(rows)
        else:
            _print_table(rows)
    if any(row["error"] for row in rows):
        raise typer.Exit(common.SOME_FAILED)


def _matching(pattern: str | None) -> list[str]:
    from camtools.images.find import natural_key
    from camtools.sources import known_models

    names = [
        name
        for name in known_models()
        if pattern is None or any(fnmatch.fnmatchcase(text, pattern) for text in (name, name.partition("/")[2]))
    ]
    return sorted(names, key=natural_key)


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
    from camtools.model.cam_model import COMPLAINTS, wrap
    from camtools.sources import FunctionSource, find_source

    keys = "adapter", "exact", "residual", "layer", "layout", "head", "input", "map", "channels", "error"
    row: dict[str, Any] = {"model": name} | dict.fromkeys(keys)
    try:
        own = headed_config(name) is not None or isinstance(find_source(name), FunctionSource)
        cam_model = wrap(common.load(name, None if own else "random", size=size, model_args=arguments).model)
        example = cam_model.example()
        if size is not None:
            example = torch.randn(1, example.shape[1], *size, dtype=example.dtype)
        try:
            where = cam_model.locate(example)
        except COMPLAINTS as error:
            raise cam_model.refusal(example, error, "Give another --size") from error
    except CamtoolsError as error:
        return row | {"error": str(error)}
    row |= {key: getattr(where, key) for key in ("adapter", "exact", "residual", "layer", "head", "channels")}
    return row | {"layout": str(where.layout), "input": list(example.shape[-2:]), "map": list(where.grid)}


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Column
    from rich.text import Text

    columns = [*(Column(name, no_wrap=True) for name in ("Model", "Adapter", "Maps", "Size")), "Layer", "Head"]
    cells: list[tuple[Any, ...]] = []
    for row in rows:
        if row["error"]:
            cells.append((row["model"], "", Text("none", style="red"), "", "", Text(row["error"])))
            continue
        maps = "exact" if row["exact"] else "linearised"
        size = f"{row['map'][0]} x {row['map'][1]}"
        cells.append((row["model"], row["adapter"], maps, size, Text(row["layer"]), Text(row["head"])))
    common.print_table(columns, cells)
