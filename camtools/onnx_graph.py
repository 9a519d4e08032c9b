"""A classifier and its maps as one ONNX graph, for `camtools.runtime.OnnxExplainer` and any other ONNX runtime."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from camtools.checks import flag, whole
from camtools.engine import Engine
from camtools.errors import CamtoolsError, ModelError, PipelineError, TargetError
from camtools.files import replacing
from camtools.images.adjusted import Crop, shown_whole
from camtools.images.preprocess import Preprocess
from camtools.model.activations import Activations
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.guard import untouched
from camtools.model.outputs import Activation, Output
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.text import one_pipeline
from camtools.runtime import METADATA
from camtools.steps.base import Stage, State, Step
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.minmax import MinMax
from camtools.steps.pas import PaS
from camtools.steps.range_threshold import RangeThreshold

MOST_GRADIENTS = 32  # maps of a linearised head, each of which is a backward pass through it in the graph


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    top_k: int | None = None,
    dynamic_size: bool = False,
    pipeline: str | Pipeline | Step | Sequence[Step] = "cam",
    transform: Any = None,
    crop: Crop | None = None,
    class_names: Sequence[str] | None = None,
    activation: Activation | None = None,
    output: Output = None,
    forward_args: Sequence[Any] = (),
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a classifier as an ONNX file whose outputs are its logits and its class maps, from one run.

    The graph takes `images`, (B, C, H, W) float32 as the model expects them, with any B. It gives `logits` (B, K),
    `classes`, the k likeliest (B, k) int64; `maps`, signed, on the grid that the pipeline leaves them on, (B, k, h, w),
    or (B, K, h, w) of all classes without `top_k`; and `heatmaps`, those of `classes` in [0, 1] at the input's size,
    (B, k, H, W). One logit is two classes, as in `explain`. Class names, preprocessing, threshold and layer are in the
    file's metadata, so that `camtools.runtime.OnnxExplainer(path)` needs nothing else, torch least of all.

    Maps of linear heads are a product with the classifier's own weights; those of other heads have the head's
    backward pass in the graph, as many times as there are maps.

    Args:
        model: Any classifier, or a `CamModel`; left as it is.
        path: The file, .onnx.
        top_k: Maps of the k likeliest classes; None for all classes, and `heatmaps` of the likeliest.
        dynamic_size: Whether the graph takes images of any height and width, where the model does; it is tried at two
            other sizes. Steps on earlier stages ("fast") take the input's own size only.
        pipeline: As for `explain`, of steps on the feature grid, "fast" among them; those that look at the image's
            pixels, an enlarged input or gradients at earlier stages cannot be in the graph.
        transform: The model's preprocessing; None asks the model.
        crop: As for `explain`.
        class_names: Names of the classes in order; None asks the model.
        activation: How logits become scores; None goes by the model's output.
        output: Which of the model's outputs holds the class scores; see `wrap`.
        forward_args: What forward takes after the images, the same for all; see `wrap`.
        forward_kwargs: Likewise, by name.

    Returns:
        The file.

    Raises:
        ModelError: An extra is missing, the head cannot be in a graph, or torch cannot export the model.
        PipelineError: A step cannot be in the graph.
        InputError: An argument cannot be used, or the file cannot be written.

    Example:
        >>> camtools.to_onnx(timm.create_model("resnet18", pretrained=True), "model.onnx", top_k=3)
    """
    _check_installed()
    steps, name = one_pipeline(pipeline)
    rule = threshold_rule(steps)
    call: Any = {"output": output, "forward_args": forward_args, "forward_kwargs": forward_kwargs}
    own = copy.deepcopy(unwrapped(model)) if isinstance(model, nn.Module) else model
    if isinstance(own, nn.Module):
        own = own.cpu().float().eval().requires_grad_(False)
    if isinstance(model, CamModel):
        own = model.rewrap(own)
    engine = Engine(own, [steps], transform=transform, class_names=class_names, activation=activation, **call)
    if crop is not None or transform is None:
        engine.transform = shown_whole(engine.transform, crop)
    graph = _Graph(engine, top_k)
    if flag("dynamic_size", dynamic_size) and graph.pipeline.needs_pyramid:
        raise PipelineError(f"{steps!r} works on stages that depend on the size: leave dynamic_size out, or take 'cam'")
    with _quiet():
        program = _program(graph, dynamic_size)
    decomposition = graph.model.decomposition
    known = asdict(engine.transform) if isinstance(engine.transform, Preprocess) else None
    metadata = {
        "class_names": None if engine.class_names is None else list(engine.class_names),
        "preprocess": known and {key: known[key] for key in known if key not in ("assumed", "display")},
        "input_size": list(graph.example.shape[1:]),
        "dynamic_size": dynamic_size,
        "activation": engine.activation or "softmax",
        "threshold": rule,
        "pipeline": name,
        "layer": decomposition.layer,
        "exact": decomposition.exact,
        "classes": "all" if top_k is None else "likeliest",
    }
    program.model.metadata_props[METADATA] = json.dumps(metadata)
    place = Path(path)
    with replacing(place) as partial:
        program.save(partial, external_data=False)
    return place


class _Graph(nn.Module):
    """From images to logits, the likeliest classes, their maps and heatmaps."""

    def __init__(self, engine: Engine, top_k: int | None) -> None:
        super().__init__()
        self.engine, self.model, [self.pipeline] = engine, engine.model, engine.pipelines
        self.example = self._example()
        found = engine.forward(self.example).activations  # which finds the features, and the stages that steps look at
        count = found.logits.shape[1]
        if engine.class_names is not None and len(engine.class_names) != count:
            raise TargetError(f"{len(engine.class_names)} class names were given for {count} classes: expected as many")
        self.top_k = None if top_k is None else whole("top_k", top_k, most=count)
        maps = count if self.top_k is None else self.top_k
        if not found.decomposition.exact and maps > MOST_GRADIENTS:
            raise ModelError(
                f"the head of {engine.about} is linearised ({found.decomposition.head}), and a graph with the maps of "
                f"{maps} classes would hold as many backward passes: expected at most {MOST_GRADIENTS}. Pass top_k=3"
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = (images.shape[2], images.shape[3])
        found = self.engine.settled(self.model.traced(images, self.pipeline.needs_pyramid))
        logits = found.logits.detach().float()
        classes = logits.topk(self.top_k or 1, dim=1).indices
        wanted = classes
        if self.top_k is None:
            wanted = torch.arange(logits.shape[1]).expand(logits.shape[0], -1)
        maps = self._maps(found, wanted)
        if self.top_k or maps.shape[1] == 1:
            shown = maps
        elif (
            found.decomposition.exact and not self.pipeline.needs_pyramid
        ):  # once more: a product for one class is less than looking it up among all
            shown = self._maps(found, classes)
        else:
            shown = maps.gather(1, classes[..., None, None].expand(-1, -1, *maps.shape[2:]))
        state = State(maps=interpolate(shown, size=size, mode="bilinear", align_corners=False), labels=classes)
        for step in self.pipeline.pixel_steps:
            state = step(state)
        return logits, classes, maps, state.require("maps", self)

    def _maps(self, found: Activations, classes: Tensor) -> Tensor:
        """Return the maps of classes (B, k) on the grid; of all of them where there are as many."""
        every = self.top_k is None and found.decomposition.exact and classes.shape[1] == found.logits.shape[1]
        weights = found.weights() if every else found.weights_of(classes)
        features = found.features.detach().float()
        state = State(features, weights.detach().float(), labels=classes, pyramid=found.pyramid)
        return self.pipeline.features(state).require("maps", self)

    def _example(self) -> Tensor:
        known = self.engine.transform
        example = self.model.example()
        if isinstance(known, Preprocess) and known.input_size is not None:
            example = torch.randn(1, known.channels, *known.input_size, generator=torch.Generator().manual_seed(0))
        return torch.cat([example, example.flip(3)])  # a batch of one would be taken for a constant


def _program(graph: _Graph, dynamic_size: bool) -> Any:
    """Trace the graph, its backward passes included, and turn it into ONNX."""
    example, exact = graph.example, graph.model.decomposition.exact
    try:
        with untouched(unwrapped(graph.model)), torch.no_grad():
            traced: Any = graph
            if not exact:
                with _MeanPooling(), sdpa_kernel(SDPBackend.MATH):  # whose backward passes are plain operations
                    traced = make_fx(graph, tracing_mode="symbolic", _allow_non_fake_inputs=True)(example)
            axes: Any = {0: torch.export.Dim("batch")}
            if dynamic_size:
                axes |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
            exported = torch.export.export(traced, (example,), dynamic_shapes=(axes,), strict=False)
            if dynamic_size:
                _check_sizes(graph, exported)
            names = ["logits", "classes", "maps", "heatmaps"]
            return torch.onnx.export(
                exported, input_names=["images"], output_names=names, dynamo=True, optimize=True, verbose=False
            )
    except CamtoolsError:
        raise
    except Exception as error:  # whatever torch's exporters meet in somebody's model
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        head = "" if exact else f" Its head is linearised ({graph.model.decomposition.head}), so that its backward pass"
        also = "" if exact else " has to be in the graph as well."
        raise ModelError(
            f"torch cannot export {graph.engine.about} to ONNX ({said}).{head}{also} Try torch.onnx.export on the "
            "model alone to see whether it is the model"
        ) from error


def _check_sizes(graph: _Graph, exported: Any) -> None:
    """Raise unless an exported program gives at other sizes what the model gives."""
    height, width = graph.example.shape[2:]
    for sides in ((2 * height, width), (height, width + width // 2)):
        images = torch.randn(*graph.example.shape[:2], *sides, generator=torch.Generator().manual_seed(1))
        try:
            wrong = max(
                float((a - b).abs().max()) for a, b in zip(exported.module()(images), graph(images), strict=True)
            )
            why = f"its outputs are off by up to {wrong:.2g}" if wrong > 1e-3 else ""
        except Exception as error:  # whatever a model raises on sizes that it does not take
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if why:
            raise ModelError(
                f"the graph of {graph.engine.about} does not take images of {sides[0]} x {sides[1]} ({why}), but only "
                f"of {height} x {width}. Leave dynamic_size out"
            )


class _MeanPooling(TorchFunctionMode):
    """Pools by the mean where a pooling to 1 x 1 would set strides, which ONNX has none of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "adaptive_avg_pool2d" and args[1:] in ((1,), ((1, 1),), ([1, 1],)):
            return args[0].mean((-2, -1), keepdim=True)
        return func(*args, **(kwargs or {}))


def threshold_rule(pipeline: Pipeline) -> dict[str, float | None]:
    """Return a threshold low + theta * (high - low) as percentiles of a map; None is the value 0, or the maximum.

    Raises:
        PipelineError: A step cannot be in the graph.
    """
    for step in pipeline:
        lacks = {
            "an enlarged input": step.stage == Stage.INPUT,
            "gradients of earlier stages": step.needs_gradients,
            "the image's pixels": step.needs_image or (step in pipeline.pixel_steps and not isinstance(step, MinMax)),
            "masks": step.stage == Stage.PARTS,
        }
        if why := next((place for place, is_so in lacks.items() if is_so), None):
            raise PipelineError(
                f"{step!r} works on {why}, which the graph does not have: expected steps on the feature grid, as in "
                "'cam', 'rcam' and 'fast'"
            )
        if step.stage == Stage.THRESHOLD:
            if isinstance(step, FixedThreshold):
                return {"low": None, "high": None, "theta": step.theta}
            if isinstance(step, PaS):
                return {"low": None, "high": step.percentile, "theta": step.threshold}
            if isinstance(step, RangeThreshold):
                return {"low": step.percentile, "high": None, "theta": step.theta}
            raise PipelineError(
                f"{step!r} is a threshold that the runtime does not know: expected FixedThreshold, PaS or "
                "RangeThreshold. Take camtools.evaluation.calibrated(pipeline, 0.3)"
            )
    raise PipelineError(f"{pipeline!r} has no threshold: expected one")


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(f"to_onnx needs {error.name}, which is not installed: pip install 'camtools[onnx]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and warnings to themselves; what goes wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
