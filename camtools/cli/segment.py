"""`camtools segment`: semantic masks of images, folders and patterns."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
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
    stdout_console,
    stdout_to_stderr,
)


class Activation(StrEnum):
    """How logits become scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


def segment(
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
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="CLASS", help="Class to look for: index, name, or ImageNet wnid. Repeatable."),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(metavar="P", help="Without --class: look for classes above this score (0.2, with sigmoid 0.5)."),
    ] = None,
    activation: Annotated[
        Activation, typer.Option(help="Scores of one class per image, or of any number (sigmoid).")
    ] = Activation.SOFTMAX,
    pipeline: Annotated[str, typer.Option(metavar="NAME", help="Preset: cam, rcam, adaptive, ...")] = "rcam",
    background: Annotated[
        str | None,
        typer.Option(
            metavar="B|pipeline",
            help="Map value at which class and background are equally likely, or 'pipeline' for its own threshold.",
        ),
    ] = None,
    crf: Annotated[bool, typer.Option("--crf", help="Refine all classes together by a CRF over the pixels.")] = False,
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
    """Segment images: which class is every pixel of?

    Results go to --out as overlay and mask (PNG with VOC's palette: 0 is background, class index + 1 a class) and
    manifest.json. Images that fail are listed on stderr and in --out/manifest.json; the others are done all the same.

    Running again with the same --out computes everything anew and replaces each image's result as a whole;
    --resume leaves out what is done, and refuses where --out holds results of another model or other settings.

    Exit codes: 0 done, 1 some files failed, 2 wrong use, 130 interrupted (finished results are whole).
    """
    from camtools.cli.images import find_jobs
    from camtools.cli.run import summarise

    if classes and min_score is not None:
        raise typer.BadParameter("give --class or --min-score, not both", param_hint="--min-score")
    if resume and out is None:
        raise typer.BadParameter("needs --out, where the earlier results are", param_hint="--resume")
    level = _background(background)
    means, stds, height_width = parse_numbers(mean, "--mean"), parse_numbers(std, "--std"), parse_size(size)
    settings = {
        "model": model,
        "weights": weights,
        "model_args": parse_model_args(model_arg),
        "pipeline": pipeline,
        "target": classes,
        "mean": means,
        "std": stds,
        "size": height_width,
        "background": level,
        "min_score": min_score,
        "activation": activation.value,
        "crf": crf,
    }
    with exit_codes():
        jobs = find_jobs(paths, out)
        with stdout_to_stderr():
            run = _run(settings, out, resume)
            segmenter = _segmenter(run.settings, class_names, pick_device(device), batch_size)
            start = time.perf_counter()
            run.over(jobs, segmenter, batch_size)
        _show(run, output)
        summarise(run, time.perf_counter() - start)
        if run.interrupted:
            raise KeyboardInterrupt
    if run.failed:
        raise typer.Exit(SOME_FAILED)


def _background(text: str | None) -> float | str | None:
    """Read a number or "pipeline"; None stays with the default.

    Raises:
        typer.BadParameter: It is something else.
    """
    if text is None or text == "pipeline":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a number such as 0.3 nor 'pipeline'", param_hint="--background"
        ) from None


def _run(settings: dict[str, Any], out: Path | None, resume: bool) -> Any:
    """Return the account of a run whose images have one segmentation each."""
    from camtools.cli.images import Job
    from camtools.cli.results import save_image
    from camtools.cli.run import Run, Settings

    @dataclass(frozen=True)
    class SegmentSettings(Settings):
        """What decides a run's results."""

        command: str = "segment"
        background: float | str | None = None
        min_score: float | None = None
        activation: str = "softmax"
        crf: bool = False

    class SegmentRun(Run):
        """The account of one run; an entry's "classes" are those that were looked for."""

        doing = "Segmenting"

        def _save(self, job: Job, explanations: list[Any]) -> dict[str, Any]:
            found = explanations[0].to_dict()
            entry = {"source": str(job.path), "folder": None if self.out is None else job.folder}
            whole = {**entry, "height": found["height"], "width": found["width"], "classes": found["classes"]}
            if self.out is not None:
                save_image(explanations, self.out / job.folder, whole)
            return whole

        def _done(self, job: Job) -> dict[str, Any] | None:
            entry = super()._done(job)
            return None if entry is None else entry | {"classes": entry["classes"][0]["classes"]}

    return SegmentRun(SegmentSettings(**settings), out, resume=resume)


def _segmenter(settings: Any, class_names: Path | None, device: Any, batch_size: int) -> Any:
    """Build the model and what is run on every batch, and find the classes asked for."""
    from camtools.classes.names import load_names, resolve_target
    from camtools.loading import load_model
    from camtools.segmenter import BACKGROUND, Segmenter

    loaded = load_model(
        settings.model,
        settings.weights,
        class_names=load_names(class_names) if class_names is not None else None,
        mean=settings.mean,
        std=settings.std,
        size=settings.size,
        model_args=settings.model_args,
    )
    level = {None: BACKGROUND, "pipeline": None}.get(settings.background, settings.background)
    segmenter = Segmenter(
        loaded.model,
        settings.pipeline,
        background=level,
        min_score=settings.min_score,
        crf=settings.crf,
        activation=settings.activation,
        device=device,
        batch_size=batch_size,
        transform=loaded.preprocess,
        class_names=loaded.class_names,
    )
    wanted = [resolve_target(one, loaded.class_names) for one in settings.target] if settings.target else None

    def batch(images: Sequence[Any]) -> list[list[Any]]:
        found: Any = segmenter(list(images), classes=wanted)
        return [[one] for one in found]

    return batch


def _show(run: Any, output: Format) -> None:
    """Print a run's results on stdout: a table, or the manifest's document."""
    from rich.table import Table
    from rich.text import Text

    if output is Format.JSON:
        typer.echo(json.dumps(run.to_dict(), indent=1, ensure_ascii=False))
        return
    if not run.results:
        return
    table = Table("Image", "Class", "Score", "Value", "Pixels", "Largest part (x0, y0, x1, y1)")
    for entry in run.results:
        source, area = Text(entry["source"], overflow="fold"), entry["height"] * entry["width"]
        for number, found in enumerate(entry["classes"]):
            name, label, box = found["name"], found["label"], found["box"]
            cells = [
                f"{name} ({label})" if name != str(label) else str(label),
                f"{found['score']:.3f}",
                str(found["value"]),
                f"{found['pixels'] / area:.1%}",
                ", ".join(map(str, box)) if box else "none",
            ]
            table.add_row(Text("") if number else source, *map(Text, cells))
        if not entry["classes"]:
            table.add_row(source, Text("background only"))
    stdout_console().print(table)
