"""`camtools calibrate`: a threshold from images without labels, for `camtools explain --threshold`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from camtools.cli import common, options
from camtools.defaults import DEFAULT_PRESET


def calibrate(
    paths: options.Paths,
    model: options.Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the threshold goes: a JSON file.")],
    weights: options.Weights = None,
    pipeline: Annotated[
        str, typer.Option(metavar="NAME|STEPS", help="Whose threshold: a preset, or steps that don't look at pixels.")
    ] = DEFAULT_PRESET,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N images, evenly spaced.")] = 500,
    mean: options.Mean = None,
    std: options.Std = None,
    size: options.Size = None,
    model_arg: options.ModelArgs = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 32,
    crop: options.CropOption = None,
) -> None:
    """Choose a threshold on images of your own, without labels.

    The pipeline's boxes are compared with those of the presets rcam, fast and best on the same images: the threshold
    lies half-way from the pipeline's own to that at which its boxes are as large as theirs. Then:
    camtools explain ... --pipeline NAME --threshold FILE

    Exit codes: 0 done, 1 some files failed, 2 wrong use, 130 interrupted.
    """
    failed: list[tuple[str, str]] = []
    with common.exit_codes(out, folder=False):
        from camtools.images.find import find_jobs

        jobs = find_jobs(paths)
        with common.stdout_to_stderr():
            from camtools.evaluation.unlabelled import calibrate as calibrate_on
            from camtools.images.adjusted import shown_whole
            from camtools.images.preprocess import as_transform

            known = {"model_args": dict(model_arg or ()), "mean": mean, "std": std, "size": size}
            loaded = common.load(model, weights, **known)
            asked: Any = None if crop is None else crop.value
            own = loaded.preprocess
            transform = None if own is None else shown_whole(as_transform(own), asked)

            def note(_: Any, image: Any, error: Exception) -> None:
                failed.append((str(image), str(error)))

            found = calibrate_on(
                loaded.model,
                [job.path for job in jobs],
                pipeline,
                out=out,
                limit=limit,
                device=common.pick_device(device),
                batch_size=batch_size,
                transform=transform,
                crop=asked if own is None else None,
                failed=note,
                progress=True,
            )
        for name, error in failed:
            common.complain(f"{name}: {error}")
        typer.echo(
            f"{found.threshold:.3f}, half-way from {found.own:.3f}, the pipeline's own, to {found.matching:.3f}, at "
            f"which its boxes are as large as other presets'; {found.images} images. Written to {out}"
        )
    if failed:
        raise typer.Exit(common.SOME_FAILED)
