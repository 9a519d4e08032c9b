"""`camtools export-model`: a classifier and its maps as one ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from camtools.cli import common, options


def export_model(
    model: options.Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the graph goes, .onnx.")],
    weights: options.Weights = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Maps of the N likeliest classes. Left out: of all classes."),
    ] = None,
    pipeline: Annotated[
        str, typer.Option(metavar="NAME|STEPS", help="A preset or steps on the feature grid: cam, rcam, fast, ...")
    ] = "cam",
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Let the graph take images of any size, where the model does.")
    ] = False,
    mean: options.Mean = None,
    std: options.Std = None,
    size: options.Size = None,
    class_names: options.ClassNames = None,
    crop: options.CropOption = None,
    logits: options.Logits = None,
    activation: options.ActivationOption = None,
    model_arg: options.ModelArgs = None,
) -> None:
    """Write a classifier with its class maps as an ONNX file, which runs without torch.

    Outputs are logits, classes, maps and heatmaps; class names, preprocessing and threshold are in the file's metadata.
    camtools.runtime.OnnxExplainer reads it. Needs pip install 'camtools[onnx]'.

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    with common.exit_codes(out, folder=False), common.stdout_to_stderr():
        from camtools.images.adjusted import shown_whole
        from camtools.images.preprocess import as_transform
        from camtools.model.inputs import assumed_transform
        from camtools.onnx_graph import to_onnx

        own = {"model_args": dict(model_arg or ()), "mean": mean, "std": std, "size": size}
        loaded = common.load(model, weights, class_names=class_names, **own)
        transform: Any = assumed_transform() if loaded.preprocess is None else as_transform(loaded.preprocess)
        to_onnx(
            loaded.model,
            out,
            top_k=top_k,
            dynamic_size=dynamic_size,
            pipeline=pipeline,
            transform=shown_whole(transform, None if crop is None else crop.value),
            class_names=loaded.class_names,
            activation=None if activation is None else activation.value,
            output=logits,
        )
    typer.echo(f"{out} written, {out.stat().st_size / 1e6:.1f} MB", err=True)
