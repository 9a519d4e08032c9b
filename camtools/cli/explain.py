"""`camtools explain`: maps, masks and boxes of images, folders and patterns."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from camtools.cli.common import (
    SOME_FAILED,
    Format,
    FormatOption,
    ModelArgOption,
    SizeOption,
    exit_codes,
    parse_model_args,
    parse_numbers,
    parse_size,
    pick_device,
    stdout_to_stderr,
)


def explain(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Images, folders (with sub-folders), or patterns: 'a/*.jpg'."),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help="timm/NAME, torchvision/NAME, package.module:function, or FILE.py:function."),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Checkpoint, .safetensors or .pth; the number of classes is read from it. 'random' for none; "
            "torchvision's own names (IMAGENET1K_V1) work too. Left out, published weights are downloaded.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Class to explain: index, name, or ImageNet wnid. May be repeated."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Explain the N likeliest classes. Without --target: 1.")
    ] = None,
    pipeline: Annotated[str, typer.Option(metavar="NAME", help="Preset: cam, rcam, adaptive, ...")] = "cam",
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|N",
            help="Threshold instead of the pipeline's own: a fraction of the map's maximum such as 0.35, or the "
            "threshold.json that 'camtools evaluate --calibrate' has written.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go, a folder an image, and manifest.json over all. A result that is there already is "
            "replaced as a whole. Left out, nothing is written.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Leave out images whose result in --out is whole and newer than the image."),
    ] = False,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Mean of images in [0, 1], instead of the model's own.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Standard deviation, instead of the model's own.")
    ] = None,
    size: SizeOption = None,
    class_names: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes: one a line, or a JSON list.")
    ] = None,
    model_arg: ModelArgOption = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images per forward.")] = 32,
    output: FormatOption = Format.TABLE,
) -> None:
    """Explain images: where in each does a class lie?

    Results go to --out as overlay and mask (PNG), map (.npy) and manifest.json. Images that fail are listed on stderr
    and in --out/manifest.json; the others are done all the same.

    Running again with the same --out computes everything anew and replaces each image's result as a whole;
    --resume leaves out what is done, and refuses where --out holds results of another model or other settings.

    Exit codes: 0 done, 1 some files failed, 2 wrong use, 130 interrupted (finished results are whole).
    """
    from camtools.cli.images import find_jobs
    from camtools.cli.run import Run, Settings, show, summarise

    if target and top_k:
        raise typer.BadParameter("give --target or --top-k, not both", param_hint="--top-k")
    if resume and out is None:
        raise typer.BadParameter("needs --out, where the earlier results are", param_hint="--resume")
    means, stds, height_width = parse_numbers(mean, "--mean"), parse_numbers(std, "--std"), parse_size(size)
    arguments = parse_model_args(model_arg)
    with exit_codes():
        jobs = find_jobs(paths, out)
        settings = Settings(
            model=model,
            weights=weights,
            model_args=arguments,
            pipeline=pipeline,
            target=target,
            top_k=top_k,
            mean=means,
            std=stds,
            size=height_width,
            threshold=threshold,
        )
        with stdout_to_stderr():
            run = Run(settings, out, resume=resume)
            explainer = _explainer(settings, class_names, pick_device(device), batch_size)
            start = time.perf_counter()
            run.over(jobs, explainer, batch_size)
        show(run, output)
        summarise(run, time.perf_counter() - start)
        if run.interrupted:
            raise KeyboardInterrupt
    if run.failed:
        raise typer.Exit(SOME_FAILED)


def _explainer(settings: Any, class_names: Path | None, device: Any, batch_size: int) -> Any:
    """Build the model and what is run on every batch, and find the classes asked for."""
    from camtools.classes.names import load_names
    from camtools.cli.run import Batches
    from camtools.explainer import Explainer
    from camtools.loading import load_model

    loaded = load_model(
        settings.model,
        settings.weights,
        class_names=load_names(class_names) if class_names is not None else None,
        mean=settings.mean,
        std=settings.std,
        size=settings.size,
        model_args=settings.model_args,
    )
    explainer = Explainer(
        loaded.model,
        settings.pipeline if settings.threshold is None else _calibrated(settings.pipeline, settings.threshold),
        device=device,
        batch_size=batch_size,
        transform=loaded.preprocess,
        class_names=loaded.class_names,
    )
    return Batches(explainer, settings.target, settings.top_k, loaded.class_names)


def _calibrated(pipeline: str, threshold: str) -> Any:
    """Return the preset with a threshold given as a number, or by the file that holds the chosen one."""
    from camtools.evaluation import calibrated

    number = re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e-?\d+)?\s*", threshold, re.IGNORECASE)
    return calibrated(pipeline, float(threshold) if number else threshold)
