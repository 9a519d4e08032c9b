"""`camtools evaluate`: how well a classifier's maps, or anybody's score maps, fit the truth of a data set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from camtools.cli import common, options


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help="Data set, NAME:PATH?key=value: boxfolder:FOLDER, cub:ROOT, voc2012:ROOT ..."
        ),
    ],
    model: options.OptionalModel = None,
    weights: options.Weights = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Presets with commas, cam,rcam,adaptive, or the steps of one pipeline, 'NWC,IVR(45)'. May be "
            "repeated. Deltas are to cam, or to the first.  [default: cam]",
        ),
    ] = None,
    threshold: options.Threshold = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="wsol|native",
            help="wsol: images squashed to 224 x 224, as the reference does. native: the model's own preprocessing.",
        ),
    ] = "wsol",
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Metric, such as MaxBoxAccV2. May be repeated. Left out: all that fit."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Data on which thresholds are chosen; written to --out/threshold.json."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go, and finished batches: a run that was killed goes on from there. A folder with "
            "another run is refused.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, whatever --out holds of an earlier run.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N images.")] = None,
    every: Annotated[int, typer.Option(min=1, metavar="K", help="Every K-th image.")] = 1,
    skip: Annotated[int, typer.Option(min=0, metavar="N", help="Leave out the first N images.")] = 0,
    scoremaps: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Judge the maps DIR/<image_id>.npy instead of a model's; NAME=DIR gives a name. May be repeated.",
        ),
    ] = None,
    sheets: Annotated[
        bool,
        typer.Option(
            "--sheets/--no-sheets",
            " /--no-report",
            help="Whether --out gets a table, threshold curves and contact sheets as well.",
        ),
    ] = True,
    report: options.Report = None,
    bootstrap: Annotated[int, typer.Option(min=0, metavar="N", help="Replicates for the intervals; 0: none.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the replicates.")] = 0,
    mean: options.Mean = None,
    std: options.Std = None,
    size: options.Size = None,
    class_names: options.ClassNames = None,
    logits: options.Logits = None,
    activation: options.ActivationOption = None,
    model_arg: options.ModelArgs = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = options.Precision.FLOAT32,
    batch_size: options.BatchSize = 32,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that read images.")] = 4,
    output: options.Output = options.Format.TABLE,
) -> None:
    """Measure how well maps fit the boxes and masks of a data set, several pipelines from one forward per image.

    Prints every metric with its best threshold, the difference to cam and a 95 % interval of it. --out gets
    results.json, rows.parquet (a row per image, class and pipeline), table.md, the threshold curves and contact sheets
    of the best and worst images. Images that fail are listed on stderr and in results.json; the others count all
    the same.

    Killed at any moment and started again with the same --out, a run goes on where it was. Under torchrun or
    accelerate launch the processes share the images.

    Exit codes: 0 done, 1 some images failed, 2 wrong use, 130 interrupted.
    """
    began = time.perf_counter()
    if threshold and model is None:
        raise typer.BadParameter("needs --model: score maps have no pipeline", param_hint="--threshold")
    if report and model is None:
        raise typer.BadParameter("needs --model: its maps are made from the model's grids", param_hint="--report")
    if (model is None) == (not scoremaps):
        raise typer.BadParameter("give --model or --scoremaps, one of them", param_hint="--model")
    with common.exit_codes(out):
        with common.stdout_to_stderr():
            from camtools.evaluation import evaluate as run
            from camtools.model import wrap
            from camtools.pipeline.text import parse_pipelines
            from camtools.processes import leads, several

            given: dict[str, Any] = {"scoremaps": _folders(scoremaps)} if scoremaps else {}
            network: Any = None
            pipelines: Any = ";".join(pipeline or ["cam"])
            if threshold:
                pipelines = {name: common.cut_at(steps, threshold, name) for name, steps in parse_pipelines(pipelines)}
            if model is not None:
                own = {"model_args": dict(model_arg or ()), "mean": mean, "std": std, "size": size}
                loaded = common.load(model, weights, class_names=class_names, **own)
                network = wrap(loaded.model, output=logits)
                shared = several() and device in ("auto", "cuda")  # of these each process takes its own later
                given |= {"transform": loaded.preprocess, "protocol": protocol}
                given |= {"device": device if shared else common.pick_device(device)}
                given |= {"class_names": loaded.class_names, "activation": activation and activation.value}
                given |= {"precision": precision.value}
            result = run(
                network,
                data,
                pipelines,
                metrics=metric or None,
                calibrate=calibrate,
                out=out,
                fresh=fresh,
                limit=limit,
                every=every,
                skip=skip,
                batch_size=batch_size,
                workers=workers,
                bootstrap=bootstrap,
                seed=seed,
                **given,
            )
            if out is not None and sheets and leads():
                from camtools.datasets import open_dataset
                from camtools.evaluation.report import model_maps, saved_maps, write_report

                if network is None:
                    maps = saved_maps(given["scoremaps"])
                else:
                    known = {name: given[name] for name in ("transform", "device", "protocol")}
                    maps = model_maps(network, pipelines, **known)
                write_report(result, out, open_dataset(data), maps)
            if report is not None and network is not None and leads():
                from camtools.datasets import open_dataset
                from camtools.evaluation.report import write_page

                known = {name: given[name] for name in ("transform", "device", "protocol", "class_names", "activation")}
                write_page(result, report, open_dataset(data), network, pipelines, batch_size=batch_size, **known)
        if not leads():  # exits with 0: launchers end all when one fails, and the leader may still be writing
            return
        if output is options.Format.JSON:
            common.print_json(result.to_dict())
        else:
            from camtools.evaluation.report import table

            common.stdout_console().print(table(result))
        common.summarise(int(result.timing["images"]), began, result.timing["seconds"], result.failed, out)
    if result.failed:
        raise typer.Exit(common.SOME_FAILED)


def _folders(texts: list[str]) -> dict[str, str]:
    """Read DIR or NAME=DIR.

    Raises:
        typer.BadParameter: Two have the same name.
    """
    folders: dict[str, str] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        if name in folders:
            raise typer.BadParameter(f"two folders are named {name!r}: say NAME=DIR", param_hint="--scoremaps")
        folders[name] = folder
    return folders
