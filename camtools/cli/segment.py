"""`camtools segment`: semantic masks of images, folders and patterns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camtools.cli import common, options
from camtools.cli.run import Run, box_cell, class_cell

if TYPE_CHECKING:
    from camtools.images.batches import Batch


def parse_background(text: str) -> float | str:
    """Read a number or "pipeline".

    Raises:
        typer.BadParameter: It is something else.
    """
    try:
        return text if text == "pipeline" else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number such as 0.3 nor 'pipeline'") from None


def segment(
    paths: options.Paths,
    model: options.Model,
    weights: options.Weights = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="CLASS", help="Class to look for: index, name, or ImageNet wnid. Repeatable."),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(metavar="P", help="Without --class: look for classes above this score (0.2, with sigmoid 0.5)."),
    ] = None,
    activation: options.ActivationOption = None,
    logits: options.Logits = None,
    pipeline: Annotated[
        str, typer.Option(metavar="NAME|STEPS", help="Preset: cam, rcam, adaptive ...; or steps: 'NWC,IVR(45)'.")
    ] = "rcam",
    threshold: options.Threshold = None,
    background: Annotated[
        Any,
        typer.Option(
            metavar="B|pipeline",
            parser=parse_background,
            help="Map value at which class and background are equally likely, or 'pipeline' for its own threshold.",
        ),
    ] = None,
    crf: Annotated[bool, typer.Option("--crf", help="Refine all classes together by a CRF over the pixels.")] = False,
    out: options.Out = None,
    export: options.Export = None,
    resume: options.Resume = False,
    mean: options.Mean = None,
    std: options.Std = None,
    size: options.Size = None,
    class_names: options.ClassNames = None,
    model_arg: options.ModelArgs = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 32,
    crop: options.CropOption = None,
    precision: options.PrecisionOption = options.Precision.FLOAT32,
    save: options.Save = None,
    overlay_size: options.OverlaySize = 1280,
    overlay_format: options.OverlayFormatOption = options.OverlayFormat.JPG,
    workers: options.Workers = 4,
    progress: options.ProgressOption = options.Progress.AUTO,
    output: options.Output = options.Format.TABLE,
) -> None:
    """Segment images: which class is every pixel of?

    Results go to --out as overlay (JPEG), mask (PNG with VOC's palette: 0 is background, class index + 1 a class) and
    manifest.json. Images that fail are listed on stderr and in --out/manifest.json; the others are done all the same.

    Running again with the same --out computes everything anew and replaces each image's result as a whole;
    --resume leaves out what is done, and refuses where --out holds results of another model or other settings.
    Under torchrun or accelerate launch the processes share the images.

    Exit codes: 0 done, 1 some files failed, 2 wrong use, 130 interrupted (finished results are whole).
    """
    if classes and min_score is not None:
        raise typer.BadParameter("give --class or --min-score, not both", param_hint="--min-score")
    model_args = dict(model_arg or ())
    source = {"model": model, "weights": weights, "model_args": model_args, "mean": mean, "std": std, "size": size}
    settings = {"command": "segment", "pipeline": pipeline, "target": classes, "background": background}
    settings |= {"min_score": min_score, "crf": crf}
    if threshold is not None and background not in (None, "pipeline"):
        raise typer.BadParameter("give --threshold or --background, not both", param_hint="--threshold")
    settings |= options.told(threshold=threshold, crop=crop and crop.value)
    settings |= options.told(activation=activation and activation.value, output=logits, precision=precision.value)
    looks = options.looks(save, overlay_size, overlay_format)
    run = _Segmenting(source, settings, looks, out, resume, export or ())
    run(paths, class_names, device, batch_size, output, workers, progress)


class _Segmenting(Run):
    """An entry's "classes" are those that were looked for."""

    doing = "Segmenting"
    columns = "Class", "Score", "Value", "Pixels", "Largest part (x0, y0, x1, y1)"

    def prepare(self, loaded: Any, **known: Any) -> None:
        from camtools.classes.names import resolve_target
        from camtools.segmenter import BACKGROUND, Segmenter

        words = ("min_score", "crf", "crop", "activation", "output", "precision")
        chosen = {name: self.settings[name] for name in words if name in self.settings}
        background = {None: BACKGROUND, "pipeline": None}.get(self.settings["background"], self.settings["background"])
        threshold = self.settings.get("threshold")
        pipeline = common.cut_at(self.settings["pipeline"], threshold)
        background = background if threshold is None else None
        self.segmenter = Segmenter(loaded.model, pipeline, background=background, **chosen, **known)
        target = self.settings["target"]
        self.targets = [resolve_target(name, loaded.class_names) for name in target] if target else None

    @property
    def workers(self) -> Sequence[Any]:
        return [self.segmenter]

    def do(self, batch: Batch) -> list[list[Any]]:
        return [[segmentation] for segmentation in self.segmenter.segment_batch(batch)]

    def entry(self, documents: list[dict[str, Any]]) -> dict[str, Any]:
        [document] = documents
        return {name: document[name] for name in ("height", "width", "classes")}

    def rows(self, entry: dict[str, Any]) -> Iterator[list[str]]:
        area = entry["height"] * entry["width"]
        for part in entry["classes"]:
            value, share = str(part["value"]), f"{part['pixels'] / area:.1%}"
            yield [class_cell(part), f"{part['score']:.3f}", value, share, box_cell(part["box"])]
        if not entry["classes"]:
            yield ["background only"]
