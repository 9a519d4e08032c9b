"""`camtools finetune`: train a classifier by a recipe, such that its maps fit objects better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from camtools.cli import options
from camtools.cli.common import exit_codes, load, print_table, stdout_to_stderr


def finetune(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="gap, tap, wgap, minmaxcam ...; left out: lists them.")
    ] = None,
    model: options.OptionalModel = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Training set, NAME:PATH?key=value; only its labels are used.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where checkpoints, logs and images of the run go.")
    ] = None,
    val: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Validation set; its boxes and masks are measured against.")
    ] = None,
    weights: options.Weights = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images per step and process.")] = None,
    lr: Annotated[float | None, typer.Option(metavar="X", help="Learning rate of the backbone.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of everything random.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the recipe. May be repeated; see --settings."),
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="List the recipe's settings, and leave.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    model_arg: options.ModelArgs = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")] = "auto",
) -> None:
    """Fine-tune a classifier on images and their labels, by a recipe.

    Prints a line per epoch, and at the end the metrics before and after. --out gets best.safetensors and
    last.safetensors, which every command takes as --weights; metrics.csv, TensorBoard logs, config.json, and an image
    of maps before and after. A run that was killed goes on with --resume, and ends with the same weights. Under
    accelerate launch or torchrun the processes share the batches.

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    with exit_codes(None if recipe is None or settings else out):
        if recipe is None:
            from camtools.training import installed_recipes, recipe_class

            rows = [(name, recipe_class(name)().summary) for name in installed_recipes()]
            print_table(("recipe", "what it does"), rows)
            return
        if settings:
            from camtools.training import recipe_class
            from camtools.training.config import describe

            print_table(("setting", "default", "what it is"), describe(recipe_class(recipe).Config))
            return
        named = (("--model", model), ("--data", data), ("--out", out))
        missing = [name for name, value in named if value is None]
        if missing:
            raise typer.BadParameter("has to be given", param_hint=", ".join(missing))
        assert model is not None and data is not None
        chosen = _settings(set_, {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed})
        with stdout_to_stderr():
            from camtools.processes import leads
            from camtools.training import finetune as run
            from camtools.training import make_recipe

            method = make_recipe(recipe, chosen)  # before a model is loaded: the likelier mistakes are here
            loaded = load(model, weights, model_args=dict(model_arg or ()))
            result = run(method, loaded, data, val, out=out, resume=resume, device=device)
        if leads():
            _show(result)


def _settings(texts: list[str] | None, shorthands: dict[str, Any]) -> dict[str, Any]:
    """Read KEY=VALUE pairs, beside the options that have their own names.

    Raises:
        typer.BadParameter: A pair lacks its "=", or a setting is given twice.
    """
    settings = {name: value for name, value in shorthands.items() if value is not None}
    for text in texts or ():
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
        if key in settings:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint="--set")
        settings[key] = value
    return settings


def _show(result: Any) -> None:
    """Print metrics before training and of the best epoch, and where files are."""
    epochs = {int(row["epoch"]): row for row in result.history}
    before, best = epochs.get(0, {}), epochs[result.best_epoch]
    rows = []
    for name in (name for name in best if name == "val_accuracy" or "/" in name):
        old = before.get(name)
        changed = ("", "") if old is None else (f"{old:.1f}", f"{best[name] - old:+.1f}")
        rows.append((name, changed[0], f"{best[name]:.1f}", changed[1]))
    if rows:
        print_table(("metric", "before", f"epoch {result.best_epoch}", "change"), rows)
    for key, path in result.paths.items():
        typer.echo(f"{key}: {path}", err=True)
