"""`camtools reproduce`: the recipes against each other, from the same start, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    what: Annotated[str, typer.Argument(metavar="scenes", help="What to reproduce; so far: scenes.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, table and images go.")] = Path("runs/scenes"),
    seeds: Annotated[int, typer.Option(min=1, max=20, metavar="N", help="Runs of each recipe.")] = 3,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this recipe and its baseline. May be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few images, one epoch: shows that all runs, measures nothing.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")] = "auto",
) -> None:
    """Train every recipe on drawn scenes from the classifier in the package, and compare their maps.

    Needs no network and no data. Prints a table: accuracy, how well boxes and maps fit, the difference to gap (and to
    wildcat, on scenes of several classes) with a 95 % interval. Writes it to --out as table.md and table.csv, with
    bars.png and sheet.png, maps before and after. Finished runs are skipped, and a killed one goes on where it was.

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    from camtools.cli.common import exit_codes, stdout_to_stderr  # late: the commands import this module

    start = time.perf_counter()
    with exit_codes(out):
        if what != "scenes":
            raise typer.BadParameter(f"{what!r} is unknown, expected scenes", param_hint="what")
        with stdout_to_stderr():
            from camtools_recipes.reproduce import Budget, run_all
            from camtools_recipes.reproduce_report import TABLE_FILE, write_report

            budget = Budget.quick(seeds) if quick else Budget(seeds=seeds)
            runs = run_all(out, budget, recipe, device=device)
            paths = write_report(out, runs, budget, device=device)
        typer.echo((out / TABLE_FILE).read_text(encoding="utf-8"))
        typer.echo(f"{', '.join(map(str, paths))}; {time.perf_counter() - start:.0f} s", err=True)
