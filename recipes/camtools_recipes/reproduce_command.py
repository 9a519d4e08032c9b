"""`camtools reproduce`: the recipes against each other, from the same start, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    what: Annotated[str, typer.Argument(metavar="scenes|cub", help="What to reproduce.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where runs, table and images go; runs/scenes or runs/cub.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=20, metavar="N", help="Runs of each recipe.")] = 3,
    data: Annotated[
        str | None,
        typer.Option(metavar="ROOT", help="cub: of CUB-200-2011, or a folder with train/, train.csv, test/, test.csv."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="cub: MobileNetV2's ImageNet weights; else downloaded.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="cub: begins no further run after so many minutes.")
    ] = None,
    classes: Annotated[int, typer.Option(min=2, max=200, metavar="N", help="cub: how many of the 200 classes.")] = 200,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="cub: every n-th test image.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="cub: epochs of each run.")] = 24,
    views: Annotated[int, typer.Option(min=1, metavar="N", help="cub: augmented versions of each image.")] = 4,
    conv: Annotated[int, typer.Option(min=1, metavar="N", help="cub: channels of the fresh convolution.")] = 1024,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this recipe and its baseline. May be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few images, one epoch: shows that all runs, measures nothing.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")] = "auto",
) -> None:
    """Train every recipe from one start, and compare their maps: on drawn scenes, or on CUB-200-2011's birds.

    scenes begins with the classifier in the package, and needs no network and no data. cub ends MobileNetV2 at stride
    16 with a fresh 3 x 3 convolution, as the papers' VGG16 has one, and keeps what the frozen part gives; `--recipe`
    names a row of its table. Prints a table: accuracy, how well boxes and maps fit, the difference to gap (and to
    wildcat, on scenes of several classes) with a 95 % interval. Writes it to --out as table.md and table.csv, with
    bars.png and sheet.png, maps before and after. Finished runs are skipped, and a killed one goes on where it was.

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    from camtools.cli.common import exit_codes, stdout_to_stderr  # late: the commands import this module

    start, out = time.perf_counter(), out or Path("runs", what)
    with exit_codes(out):
        if what not in ("scenes", "cub"):
            raise typer.BadParameter(f"{what!r} is unknown, expected scenes or cub", param_hint="what")
        if what == "cub" and data is None:
            raise typer.BadParameter("cub needs --data ROOT", param_hint="--data")
        with stdout_to_stderr():
            if data is not None and what == "cub":
                from camtools_recipes.reproduce_cub import CubBudget, run_cub, write_cub_report

                birds = CubBudget(classes, every, epochs, seeds, conv=conv, views=views)
                done = run_cub(out, data, birds, recipe, weights=weights, minutes=minutes, device=device)
                paths = write_cub_report(out, data, done, birds, weights=weights, device=device)
            else:
                from camtools_recipes.reproduce import Budget, run_all
                from camtools_recipes.reproduce_report import write_report

                budget = Budget.quick(seeds) if quick else Budget(seeds=seeds)
                runs = run_all(out, budget, recipe, device=device)
                paths = write_report(out, runs, budget, device=device)
        typer.echo((out / "table.md").read_text(encoding="utf-8"))
        typer.echo(f"{', '.join(map(str, paths))}; {time.perf_counter() - start:.0f} s", err=True)
