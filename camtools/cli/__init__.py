"""The `camtools` command: its sub-commands are the modules here, and those of the group `camtools.commands`.

A plug-in's entry point in that group is a function as typer takes it, and the entry point's name is the command's.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Annotated

import typer

from camtools.cli.calibrate import calibrate
from camtools.cli.common import complain
from camtools.cli.demo import demo
from camtools.cli.doctor import doctor
from camtools.cli.evaluate import evaluate
from camtools.cli.explain import explain
from camtools.cli.export_model import export_model
from camtools.cli.export_results import export_results
from camtools.cli.finetune import finetune
from camtools.cli.models import models
from camtools.cli.segment import segment
from camtools.errors import ModelError
from camtools.plugins import load_plugin

__all__ = ["app"]

app = typer.Typer(
    name="camtools",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (calibrate, demo, doctor, evaluate, explain, export_model, export_results, finetune, models, segment):
    app.command()(command)
for point in sorted(entry_points(group="camtools.commands"), key=lambda point: point.name):
    try:
        app.command(point.name)(load_plugin(point))
    except ModelError as error:  # the other commands work all the same
        complain(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"camtools {version('camtools')}")
        except PackageNotFoundError:
            typer.echo("camtools, not installed: run from its own folder")
        raise typer.Exit


@app.callback()
def _camtools(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Class activation maps, masks and boxes for image classifiers.

    Exit codes: 0 done, 1 some files or models failed, 2 wrong use, 130 interrupted.
    """
