"""`evaluate`: how well the maps of a classifier fit the truth of a data set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from camtools.checkpoints import weights_hash
from camtools.checks import as_path, one_of, whole
from camtools.classes.matching import ClassMap, match_classes
from camtools.datasets.selection import Selection
from camtools.engine import Engine
from camtools.errors import CamtoolsError, InputError, ModelError
from camtools.evaluation.bootstrap import image_weights
from camtools.evaluation.protocol import Protocol
from camtools.evaluation.results import EvaluationResult
from camtools.evaluation.runner import ModelRunner, Runner
from camtools.evaluation.scoremaps import MapRunner, map_folders
from camtools.evaluation.statistics import Measured, check_metrics, summarise
from camtools.evaluation.store import Failure, Store, forget, merged
from camtools.evaluation.thresholds import FILE, write_thresholds
from camtools.files import locked
from camtools.images.preprocess import Preprocess
from camtools.model.cam_model import unwrapped
from camtools.model.device import Precision
from camtools.model.guard import untouched
from camtools.model.outputs import Output
from camtools.pipeline.text import named_pipelines
from camtools.processes import Team, team
from camtools.progress import progress_bar

CALIBRATION = "calibration"  # folder of its batches
_MOST_CLASSES = 200  # of multi-label data, whose maps are all made for every image
_LOOKED_AT = 8  # images, to see whether a data set has masks


def evaluate(
    model: nn.Module | None,
    dataset: Any,
    pipeline: Any = "cam",
    *,
    protocol: Literal["wsol", "native"] = "wsol",
    metrics: Sequence[str] | None = None,
    calibrate: Any = None,
    out: str | Path | None = None,
    fresh: bool = False,
    limit: int | None = None,
    every: int = 1,
    skip: int = 0,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    transform: Any = None,
    class_names: Sequence[str] | None = None,
    activation: Literal["softmax", "sigmoid"] | None = None,
    output: Output = None,
    forward_args: Sequence[Any] = (),
    forward_kwargs: Mapping[str, Any] | None = None,
    workers: int = 4,
    bootstrap: int = 1000,
    seed: int = 0,
    scoremaps: str | Path | Mapping[str, str | Path] | None = None,
    progress: bool = True,
    precision: Precision = "float32",
) -> EvaluationResult:
    """Measure how well the maps of a classifier fit the truth of a data set, for several pipelines at once.

    Every image goes through the model once. With `out`, finished batches are kept there: a run that was killed goes
    on where it was when it is started again, and ends with the same files. Under `torchrun` or `accelerate launch` the
    processes share the batches; all return the result, the first one writes it.

    Args:
        model: Any classifier; it is left exactly as it was. None with `scoremaps`.
        dataset: A `camtools.datasets` data set of records, a `Subset` of one, or a specification for `open_dataset`.
        pipeline: What to compare: preset names ("cam,rcam"), steps as text ("NWC,IVR(45)"; ";" between pipelines), a
            `Pipeline`, a list of these, or a mapping from names. Deltas are to "cam", else to the first.
        protocol: "wsol" (images squashed to 224 x 224, maps bicubic to 224 x 224, as the reference does) or "native"
            (the model's own preprocessing, boxes on the original image).
        metrics: Some of the names in `camtools.evaluation.METRICS`; None for all that the data has truth for.
        calibrate: Another data set on which thresholds are chosen; they are reported beside those best for `dataset`.
        out: Folder for results and finished batches.
        fresh: Whether to start over where `out` holds another run; without it, that raises.
        limit: At most this many images.
        every: Every n-th image.
        skip: How many images to leave out at the start.
        batch_size: Images per forward.
        device: Where to run; a model that lives elsewhere is copied there. None stays with the model.
        transform: The model's preprocessing; None asks the model. "wsol" takes mean and std from it.
        class_names: Names of the model's classes in order; None asks the model.
        activation: How logits become scores: "softmax", or "sigmoid" for multi-label models and single logits; None
            goes by the model's output.
        output: Which of the model's outputs holds the class scores; see `camtools.wrap`.
        forward_args: What forward takes after the images, the same for all; see `camtools.wrap`.
        forward_kwargs: Likewise, by name.
        workers: Threads that read images.
        bootstrap: Replicates for the 95 % intervals of the deltas; 0 for none.
        seed: Of the replicates.
        scoremaps: A folder of maps `<image_id>.npy` to judge instead of a model's, or several by name.
        progress: Whether to show a progress bar, on a terminal.
        precision: "float32"; "bf16", the forward under bfloat16 autocast; "auto", bf16 where the device computes in it.

    Returns:
        The metrics, and one row per image, class and pipeline.

    Raises:
        InputError: An argument or the data cannot be used, or `out` holds another run.
        TargetError: The data's classes are not the model's.
        ModelError: The model cannot be explained.
        PipelineError: A pipeline is unknown or impossible.
    """
    wanted = check_metrics(metrics)
    whole("batch_size", batch_size)
    whole("workers", workers)
    image_weights(0, bootstrap, seed)  # raises for what are no such numbers
    if activation is not None:
        one_of("activation", activation, ("softmax", "sigmoid"))
    if (model is None) == (scoremaps is None):
        raise InputError(f"got {'neither model nor' if model is None else 'both model and'} scoremaps: expected one")
    data, folder = Selection(dataset, limit, every, skip), None if out is None else as_path("out", out)
    others = None if calibrate is None else Selection(calibrate)
    group = team()
    job: ModelJob | MapJob
    if model is not None:
        pipelines = named_pipelines(pipeline)
        engine = Engine(
            model,
            list(pipelines.values()),
            device=group.device(device),
            transform=transform,
            class_names=class_names,
            activation=activation,
            output=output,
            forward_args=forward_args,
            forward_kwargs=forward_kwargs,
            precision=precision,
        )
        job = ModelJob(engine, tuple(pipelines), protocol, workers)
    else:
        assert scoremaps is not None
        job = MapJob(scoremaps, workers)

    def measure(of: Selection, place: Path | None, label: str) -> tuple[Measured, list[Failure], int, dict[str, Any]]:
        runner = job.on(of)
        return *_run(runner, place, label, group, batch_size, fresh, progress), runner.settings

    with locked(folder if group.leads else None):
        start = time.perf_counter()
        measured, failed, count, settings = measure(data, folder, "Evaluating")
        calibration, below = None, None if folder is None else folder / CALIBRATION
        if others is None and fresh and below is not None and group.leads:
            forget(below)
        if others is not None:
            calibration, _, more, theirs = measure(others, below, "Calibrating")
            settings |= {"calibration": theirs["data"]}
            count += more
        evaluated = time.perf_counter()
        settings |= {"bootstrap": bootstrap, "seed": seed}
        values, baseline = summarise(measured, wanted, calibration=calibration, bootstrap=bootstrap, seed=seed)
        timing = {"images": float(count), "seconds": evaluated - start}
        timing["summary_seconds"] = time.perf_counter() - evaluated
        listed = [(name, error) for _, name, error in failed]
        detections = {name: dict(kinds) for name, kinds in measured.detections.items()}
        result = EvaluationResult(
            measured.pipelines, measured.rows, values, listed, settings, baseline, detections, timing=timing
        )
        if folder is not None and group.leads:
            result.save(folder)
            if calibration is not None:
                write_thresholds(values, settings, folder / FILE)
    group.wait()
    return result


def _run(
    runner: Runner, folder: Path | None, label: str, group: Team, batch_size: int, fresh: bool, progress: bool
) -> tuple[Measured, list[Failure], int]:
    """Evaluate what is not done yet, shared by all processes.

    Returns:
        What was measured, the images that failed, and how many images this process did now.
    """
    store = Store(folder, runner.names, runner.settings, fresh=fresh, leader=group.leads)
    group.wait()
    done, indices = store.done(), runner.data.indices
    # Batches are the same however often a run was killed and however many processes share them: numbers depend on a
    # batch's make-up in their last bits.
    chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    mine = [chunks[number] for number in group.share(len(chunks))]
    todo = [left for chunk in mine if (left := [index for index in chunk if index not in done])]
    count = sum(map(len, todo))
    with progress_bar(count, label, progress and group.leads) as tick:
        runner.over(todo, store.add, tick)
    group.wait()
    parts = group.gather(store.read()) if folder is None else [store.read()]
    return *merged((shard for part in parts for shard in part), tuple(runner.names)), count


class ModelJob:
    """The maps that pipelines make of one model.

    Args:
        engine: The model and the pipelines.
        names: Of the pipelines.
        protocol: As in `camtools.evaluate`.
        workers: Threads that read images.
    """

    def __init__(self, engine: Engine, names: tuple[str, ...], protocol: str, workers: int) -> None:
        self.engine, self.names, self.workers = engine, names, workers
        self.protocol = Protocol.of(protocol, engine.transform)
        self.num_classes = _num_classes(engine, self.protocol)
        self.activation: Literal["softmax", "sigmoid"] = "sigmoid" if engine.activation == "sigmoid" else "softmax"
        self._weights = weights_hash(unwrapped(engine.model))

    def on(self, data: Selection) -> Runner:
        """Prepare for a data set.

        Raises:
            TargetError: Its classes are not the model's.
        """
        classes = match_classes(data.classes, data.occurring, self.num_classes, self.engine.class_names)
        multilabel = data.multilabel and len(classes.known) <= _MOST_CLASSES
        masks = has_masks(data)
        settings = {
            "data": data.fingerprint(),
            "protocol": self.protocol.name,
            "transform": repr(self.protocol.transform),
            "pipelines": {n: ", ".join(map(repr, p)) for n, p in zip(self.names, self.engine.pipelines, strict=True)},
            "model": type(unwrapped(self.engine.model)).__name__,
            "weights": self._weights,
            "classes": classes.how,
            "activation": self.activation,
            "masks": masks,
            "multilabel": multilabel,
        } | ({} if self.engine.precision == "float32" else {"precision": self.engine.precision})
        rest = (data, classes, self.names, settings, self.workers)
        return ModelRunner(self.engine, self.protocol, self.activation, masks, multilabel, *rest)


class MapJob:
    """Score maps from files; arguments and errors are those of `camtools.evaluate`."""

    def __init__(self, scoremaps: str | Path | Mapping[str, str | Path], workers: int) -> None:
        self.folders = map_folders(scoremaps)
        self.workers = workers

    def on(self, data: Selection) -> Runner:
        """Prepare for a data set."""
        classes = ClassMap(tuple(range(len(data.classes))), tuple(data.classes), "the data set's own")
        masks = has_masks(data)
        settings = {
            "data": data.fingerprint(),
            "protocol": "wsol",
            "scoremaps": {name: str(folder) for name, folder in self.folders.items()},
            "masks": masks,
        }
        return MapRunner(self.folders, masks, data, classes, tuple(self.folders), settings, self.workers)


def has_masks(data: Selection) -> bool:
    """Whether any of the first images has masks; those that can't be read are left to their own turn."""
    for index in data.indices[:_LOOKED_AT]:
        try:
            if data.record(index).masks is not None:
                return True
        except Exception:  # listed when the image is evaluated
            continue
    return False


def _num_classes(engine: Engine, protocol: Protocol) -> int:
    """Run the model once on noise of its own input size, and count its classes."""
    model, inner = engine.model, unwrapped(engine.model)
    example = model.example()
    if isinstance(protocol.transform, Preprocess) and protocol.transform.input_size is not None:
        shape = (1, protocol.transform.channels, *protocol.transform.input_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        example = noise.to(example.device, example.dtype)
    try:
        with untouched(inner), torch.no_grad():
            return int(engine.settled(model.activations(example)).logits.shape[1])
    except CamtoolsError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(inner).__name__} cannot be run on an input of shape {tuple(example.shape)}: {error}. Give the "
            "model's own preprocessing (transform=)"
        ) from error
