"""`camtools explain`: maps, masks and boxes of images, folders and patterns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camtools.cli import common, options
from camtools.cli.run import Run, box_cell, class_cell
from camtools.defaults import DEFAULT_PRESET, DESCRIPTIONS
from camtools.errors import TargetError

if TYPE_CHECKING:
    from camtools.images.batches import Batch

_PRESETS = " ".join(f"**{name}**: {line}" for name, line in DESCRIPTIONS.items())


def explain(
    paths: options.Paths,
    model: options.Model,
    weights: options.Weights = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Class to explain: index, name, or ImageNet wnid. May be repeated."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Explain the N likeliest classes. Without --target: 1.")
    ] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|STEPS",
            help="Steps, such as 'NWC,IVR(45)', or a preset. May be repeated: results then have a folder each, and "
            f"compare.jpg shows them side by side. {_PRESETS}  [default: {DEFAULT_PRESET}]",
        ),
    ] = None,
    threshold: options.Threshold = None,
    out: options.Out = None,
    export: options.Export = None,
    report: options.Report = None,
    resume: options.Resume = False,
    mean: options.Mean = None,
    std: options.Std = None,
    size: options.Size = None,
    class_names: options.ClassNames = None,
    logits: options.Logits = None,
    model_arg: options.ModelArgs = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 32,
    crop: options.CropOption = None,
    activation: options.ActivationOption = None,
    precision: options.PrecisionOption = options.Precision.FLOAT32,
    save: options.Save = None,
    overlay_size: options.OverlaySize = 1280,
    overlay_format: options.OverlayFormatOption = options.OverlayFormat.JPG,
    workers: options.Workers = 4,
    progress: options.ProgressOption = options.Progress.AUTO,
    output: options.Output = options.Format.TABLE,
) -> None:
    """Explain images: where in each does a class lie?

    Results go to --out as overlay (JPEG), mask (PNG), map (.npz, on the feature grid) and manifest.json. Images that
    fail are listed on stderr and in --out/manifest.json; the others are done all the same.

    Running again with the same --out computes everything anew and replaces each image's result as a whole;
    --resume leaves out what is done, and refuses where --out holds results of another model or other settings.
    Under torchrun or accelerate launch the processes share the images.

    Exit codes: 0 done, 1 some files failed, 2 wrong use, 130 interrupted (finished results are whole).
    """
    if target and top_k:
        raise typer.BadParameter("give --target or --top-k, not both", param_hint="--top-k")
    model_args = dict(model_arg or ())
    source = {"model": model, "weights": weights, "model_args": model_args, "mean": mean, "std": std, "size": size}
    chosen = pipeline or [DEFAULT_PRESET]
    if len(set(chosen)) < len(chosen):
        raise typer.BadParameter(f"{', '.join(chosen)}: expected every pipeline once", param_hint="--pipeline")
    if len(chosen) > 1 and (export or report):
        raise typer.BadParameter("goes with one pipeline: expected one --pipeline", param_hint="--export/--report")
    settings = {
        "pipeline": chosen if len(chosen) > 1 else chosen[0],
        "target": target,
        "top_k": top_k,
        "threshold": threshold,
    }
    settings |= {"crop": None if crop is None else crop.value}
    settings |= options.told(activation=activation and activation.value, output=logits, precision=precision.value)
    looks = options.looks(save, overlay_size, overlay_format)
    exports = [*(export or ()), *([f"report:{report}"] if report else ())]
    run = _Explaining(source, settings, looks, out, resume, exports)
    run(paths, class_names, device, batch_size, output, workers, progress)


class _Explaining(Run):
    """An entry's "classes" are those that were explained, a dictionary each."""

    doing = "Explaining"
    columns = "Class", "Score", "Box (x0, y0, x1, y1)", "Box score", "Boxes", "Map", "Pipeline"

    def prepare(self, loaded: Any, **known: Any) -> None:
        from camtools.classes.names import resolve_target
        from camtools.explainer import Explainer
        from camtools.images.adjusted import shown_whole
        from camtools.images.preprocess import as_transform

        known["crop"] = self.settings["crop"]
        if known["transform"] is not None:
            known["transform"] = shown_whole(as_transform(known["transform"]), known.pop("crop"))
        words = ("activation", "output", "precision")
        chosen = {name: self.settings[name] for name in words if name in self.settings}
        pipelines, target = self.settings["pipeline"], self.settings["target"]
        self.explainers = [
            Explainer(loaded.model, common.cut_at(text, self.settings["threshold"]), **chosen, **known)
            for text in (pipelines if isinstance(pipelines, list) else [pipelines])
        ]
        self.targets = [resolve_target(name, loaded.class_names) for name in target or ()]
        if len(set(self.targets)) < len(self.targets):
            raise TargetError(f"--target names a class twice: {', '.join(target)} are classes {self.targets}.")

    @property
    def workers(self) -> Sequence[Any]:
        return self.explainers

    def do(self, batch: Batch) -> list[list[Any]]:
        top_k = None if self.targets else self.settings["top_k"] or 1
        found = [explainer.explain_batch(batch, top_k) for explainer in self.explainers]
        return [list(chain(*zip(*of_image, strict=True))) for of_image in zip(*found, strict=True)]

    def entry(self, documents: list[dict[str, Any]]) -> dict[str, Any]:
        return {"classes": documents}

    def rows(self, entry: dict[str, Any]) -> Iterator[list[str]]:
        for result in entry["classes"]:
            maps = "exact" if result["exact"] else "linearised"
            sure = result.get("box_scores", [])  # results of earlier versions have none
            boxes = [
                box_cell(result["box"]) + " (cut)" * any(result.get("cut", ())[:1]),
                f"{sure[0]:.3f}" if sure else "",
                str(len(result["boxes"])),
            ]
            made = result.get("pipeline", "")
            yield [class_cell(result), f"{result['score']:.3f}", *boxes, maps, made]
