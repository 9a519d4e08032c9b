"""`explain` in one call, and `Explainer`, its reusable form: images in, explanations out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from itertools import repeat
from os import PathLike
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from camtools.checks import flag, whole
from camtools.classes.targets import Target, check_top_k, class_indices, is_list, per_image
from camtools.defaults import DEFAULT_PRESET
from camtools.engine import Engine
from camtools.errors import InputError
from camtools.explanation import Explanation
from camtools.heads.box_regressor import BoxRegressor, whole_pixels
from camtools.images.adjusted import Crop, shown_whole
from camtools.images.batches import READERS, Batch, Errors, Ready, images_of, on_error, read_batches
from camtools.images.preprocess import Transform, display_image
from camtools.images.read import read_images
from camtools.model.cam_model import CamModel
from camtools.model.device import Precision
from camtools.model.outputs import Activation, Output
from camtools.notebook import ResultList
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.pixels import in_threads, on_pixels, portions
from camtools.pipeline.text import one_pipeline
from camtools.pipeline.trace import Cut, TraceStep
from camtools.progress import progress_bar
from camtools.steps.base import State, Step
from camtools.steps.peaks import part_boxes

Targets = Target | Sequence[Target | Sequence[Target]] | Tensor | None
ClassList = list[Any] | tuple[Any, ...]
SingleImage = str | PathLike[str] | Image.Image
"""What is one image for sure; an array or tensor may be a batch."""


class _Streaming(TypedDict, total=False):
    """How `Explainer.stream` goes about it."""

    errors: Errors
    progress: bool
    workers: int


class Explainer:
    """Explains images with one model and one pipeline, prepared once.

    The model is run in eval mode and left exactly as it was: training flags, gradients, buffers and hooks.

    Args:
        model: Any classifier, or a `CamModel`.
        pipeline: Preset name, `Pipeline`, step, list of steps, or steps as text, "NWC,IVR(45)".
        device: Where to run; a model that lives elsewhere is copied there, never moved. None stays with the model.
        batch_size: Images per forward.
        transform: What the model was trained with: a `Preprocess`, a torchvision or timm transform, or any
            deterministic callable from PIL image to tensor; None asks the model. Floating tensors skip it.
        class_names: Names of the classes in order; None asks the model.
        activation: How logits become `score`: "softmax"; "sigmoid" for multi-label models and single logits; "none"
            leaves a number that is no logit, such as an age, as it is. None goes by the model's output.
        output: Which of the model's outputs holds the class scores: a position, key or attribute, or a function; None
            finds out. See `camtools.wrap`.
        forward_args: What forward takes after the images; tensors have one row for all images, or one per image.
        forward_kwargs: Likewise, by name.
        display: Which channels are drawn where images have other than three: one, or three as red, green and blue.
        trace: Whether explanations keep the map after every step, see `Explanation.trace`.
        boxes_from: A `BoxRegressor` whose box takes the place of those around the mask's parts; None keeps these.
        crop: What the model is shown: "squash", the whole image at the model's size whatever its aspect; "pad", with a
            border instead; "full", with its short side at the model's; "model", what the model's own preprocessing
            leaves. None: "squash", but a `transform` of the caller's as it is.
        precision: "float32": the model as it is. "bf16": its forward under bfloat16 autocast. "auto": bf16 where the
            device computes in it.
        progress: Whether a call shows a bar, on a terminal or in a notebook.

    Raises:
        ModelError: No module, or no adapter knows it.
        PipelineError: The pipeline is unknown or impossible.
        InputError: The transform or an argument cannot be used.
        TargetError: `class_names` is not a list of names.
    """

    def __init__(
        self,
        model: nn.Module,
        pipeline: str | Pipeline | Step | Sequence[Step] = DEFAULT_PRESET,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        transform: Any = None,
        class_names: Sequence[str] | None = None,
        activation: Activation | None = None,
        output: Output = None,
        forward_args: Sequence[Any] = (),
        forward_kwargs: Mapping[str, Any] | None = None,
        display: int | Sequence[int] | None = None,
        trace: bool = False,
        boxes_from: BoxRegressor | None = None,
        crop: Crop | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> None:
        self.trace, self.progress = flag("trace", trace), flag("progress", progress)
        if boxes_from is not None and not callable(getattr(boxes_from, "boxes_of", None)):
            raise InputError(f"boxes_from={boxes_from!r}: expected a camtools.heads.BoxRegressor, or None")
        self.pipeline, self.pipeline_name = one_pipeline(pipeline)
        self.engine = Engine(
            model,
            [self.pipeline],
            device=device,
            transform=transform,
            class_names=class_names,
            activation=activation,
            batch_size=batch_size,
            output=output,
            forward_args=forward_args,
            forward_kwargs=forward_kwargs,
            display=display,
            precision=precision,
        )
        if crop is not None or transform is None:
            self.engine.transform = shown_whole(self.engine.transform, crop)
        self.boxes_from = boxes_from

    @property
    def model(self) -> CamModel:
        """The classifier, wrapped."""
        return self.engine.model

    @property
    def transform(self) -> Transform:
        """The preprocessing."""
        return self.engine.transform

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes in order; None where they are not known."""
        return self.engine.class_names

    @overload
    def __call__(self, images: SingleImage, target: Target | None = None, top_k: None = None) -> Explanation: ...
    @overload
    def __call__(self, images: SingleImage, target: ClassList) -> list[Explanation]: ...
    @overload
    def __call__(self, images: SingleImage, target: None = None, *, top_k: int) -> list[Explanation]: ...
    @overload
    def __call__(
        self, images: Sequence[Any], target: Target | Sequence[Target] | None = None, top_k: None = None
    ) -> list[Explanation]: ...
    @overload
    def __call__(self, images: Sequence[Any], target: None = None, *, top_k: int) -> list[list[Explanation]]: ...
    @overload
    def __call__(
        self, images: Any, target: Targets = None, top_k: int | None = None, *, errors: Errors = "raise"
    ) -> Any: ...
    def __call__(
        self,
        images: Any,
        target: Targets = None,
        top_k: int | None = None,
        *,
        errors: Errors = "raise",
    ) -> Any:
        """Explain one image or many.

        Args:
            images: A path, PIL image, array or tensor, or a list or batch of them; see `camtools.explain`.
            target: Class index or name; a list gives several classes for a single image, one per image for many
                (where an element may itself be a list). None takes the likeliest class.
            top_k: This many likeliest classes instead.
            errors: What becomes of images of a list that cannot be read, see `stream`; None stands in their place.

        Returns:
            One explanation for a single image and a single class; a list for several classes or several images;
            a list of lists for both.

        Raises:
            InputError: An image cannot be used.
            TargetError: A class does not exist, or `target` has the wrong length.
            ModelError: The model cannot be explained.
        """
        check_top_k(top_k, target)
        inputs, single = read_images(images)
        targets = per_image(target, len(inputs), single)
        lost: list[int] = []
        batches = self.engine.batches(images, targets, single, None if single else on_error(errors, lost))
        per_class: list[Any] = []
        with progress_bar(len(inputs), "Images", self.progress) as advance:
            for batch in batches:
                per_class += self.explain_batch(batch, top_k)
                advance(len(batch.images))
        for index in lost:
            per_class.insert(index, None)
        if top_k is None and not any(map(is_list, targets)):
            first = ResultList(own and own[0] for own in per_class)
            return first[0] if single else first
        return ResultList(per_class[0]) if single else ResultList(own and ResultList(own) for own in per_class)

    @overload
    def stream(self, images: Any, target: Target | None = None, **how: Unpack[_Streaming]) -> Iterator[Explanation]: ...
    @overload
    def stream(self, images: Any, target: ClassList, **how: Unpack[_Streaming]) -> Iterator[list[Explanation]]: ...
    @overload
    def stream(
        self, images: Any, target: None = None, *, top_k: int, **how: Unpack[_Streaming]
    ) -> Iterator[list[Explanation]]: ...
    def stream(
        self,
        images: Any,
        target: Target | Sequence[Target] | None = None,
        top_k: int | None = None,
        *,
        errors: Errors = "raise",
        progress: bool = False,
        workers: int = READERS,
    ) -> Iterator[Explanation | list[Explanation]]:
        """Explain images one after another without keeping them: for more than fit in memory.

        Args:
            images: Any iterable of images, or of tuples that begin with one, such as a data set of (image, label); or a
                folder, a pattern, a .txt file with a path per line, WebDataset's shards ("birds-*.tar"), or a folder or
                pattern in a store of fsspec's ("s3://bucket/birds"). Some `2 * batch_size` are read ahead.
            target: A class for all images, or a list of classes for each; None takes the likeliest.
            top_k: This many likeliest classes instead.
            errors: What becomes of images that cannot be read. "raise"; "skip": a warning, and the others go on; or a
                callable, which is given the image and the error in place of the warning.
            progress: Whether to show a progress bar, on a terminal and where the number of images is known.
            workers: Threads that read.

        Yields:
            What a call would give for each image, in order.

        Raises:
            InputError: An image cannot be used; those before it have been yielded by then. Or an argument cannot be.
            TargetError: A class does not exist.
            ModelError: The model cannot be explained.
        """
        if isinstance(target, (Tensor, np.ndarray)):
            target = target.tolist()
        check_top_k(top_k, target)
        failed, items = on_error(errors), images_of(images)
        sized = items if isinstance(items, Sized) else images
        total = len(sized) if flag("progress", progress) and isinstance(sized, Sized) else 0
        several = top_k is not None or is_list(target)
        engine = self.engine
        batches = read_batches(
            enumerate(items),
            repeat(target),
            engine.transform,
            engine.batch_size,
            engine.least,
            whole("workers", workers),
            failed,
        )
        with progress_bar(total, "Explaining") as advance:
            for batch in batches:
                for explanations in self.explain_batch(batch, top_k):
                    yield explanations if several else explanations[0]
                    advance(1)

    @torch.inference_mode(False)  # results are the caller's to train with
    @torch.no_grad()
    def explain_batch(self, batch: Batch, top_k: int | None) -> list[list[Explanation]]:
        """Explain one batch: one forward, then batched steps for the images of each geometry.

        Args:
            batch: Images that are ready for the model, each with its target: a class, a list of them, or None.
            top_k: This many likeliest classes instead.

        Returns:
            The explanations of every image.

        Raises:
            InputError: The model does not take inputs of this shape.
            TargetError: A class does not exist.
            ModelError: The model cannot be explained.
        """
        engine, trace = self.engine, self.trace
        forward = engine.run(batch)
        wanted = [ready.target for ready in batch.images]
        targets, counts = class_indices(wanted, forward.logits, top_k, engine.class_names)
        grid_trace: list[TraceStep] = []
        [state] = engine.maps(forward, targets, grid_trace if trace else None)
        scores = engine.scores(forward).gather(1, targets).tolist()
        labels, decomposition = targets.tolist(), forward.activations.decomposition
        geometries = [ready.geometry for ready in batch.images]
        on_portion = partial(self._on_pixels, batch, state, scores)
        found: dict[tuple[int, int], dict[str, Any]] = {}  # what was found on the pixels, by image and class
        for some in in_threads(on_portion, portions(geometries, targets.shape[1]), targets.device):
            found |= some
        explanations: list[list[Explanation]] = [[] for _ in batch.images]
        grids, raw = state.require("maps", self), state.require("raw_maps", self)
        for i, k in sorted(found):
            cut, on_image = Cut(k), found[i, k]
            runs = on_image.pop("runs")
            explanation = Explanation(
                label=labels[i][k],
                name=engine.name(labels[i][k]),
                score=scores[i][k],
                grid_map=cut(grids, i),
                raw_map=cut(raw, i),
                geometry=geometries[i],
                pixel_steps=self.pipeline.pixel_steps,
                activation=engine.activation or "softmax",
                peaks=self.pipeline.peaks,
                exact=decomposition.exact,
                layer=decomposition.layer,
                logits=forward.logits[i].detach().clone(),
                input_image=batch.images[i].input_image,
                transform=engine.transform,
                pipeline=self.pipeline_name,
                **on_image | {"trace": cut.steps(grid_trace, i) + on_image["trace"]},
            )
            object.__setattr__(explanation, "_runs", runs)
            explanations[i].append(explanation)
        if self.boxes_from is not None:
            explanations = _with_boxes(explanations, self.boxes_from, batch.images)
        return [per_class[:count] for per_class, count in zip(explanations, counts, strict=True)]

    def _on_pixels(
        self, batch: Batch, state: State, scores: list[list[float]], portion: tuple[list[int], slice]
    ) -> dict[tuple[int, int], dict[str, Any]]:
        """Return what is found on the pixels of some images and classes of a batch, by image and class."""
        rows, part = portion
        shown = self._shown(batch, rows) if self.pipeline.needs_image else None
        trace: list[TraceStep] = []
        resize = batch.images[rows[0]].geometry.resize
        done = on_pixels(self.pipeline, state.classes(part), rows, resize, shown, trace if self.trace else None)
        maps, limits = (done.require(field, self) for field in ("maps", "thresholds"))
        parts, thresholds = iter(part_boxes(done, self.pipeline.peaks)), limits.tolist()
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for row, i in enumerate(rows):
            for own, k in enumerate(range(part.start, part.stop)):
                cut, own_parts = Cut(own), next(parts)
                found[i, k] = {
                    "boxes": own_parts.boxes,
                    "box_scores": scores[i][k] * own_parts.peaks,
                    "runs": own_parts.runs,
                    "threshold": thresholds[row][own],
                    "kept": cut(maps, row) if self.trace or self.pipeline.needs_image else None,
                    "trace": cut.steps(trace, row),
                }
        return found

    def _shown(self, batch: Batch, rows: Sequence[int]) -> list[Image.Image]:
        return [display_image(batch.images[i].input_image, self.engine.transform) for i in rows]

    def __repr__(self) -> str:
        return f"Explainer({self.engine.about}, {self.pipeline!r}, transform={self.transform!r})"


class _Options(TypedDict, total=False):
    """What `explain` passes on to `Explainer`."""

    pipeline: str | Pipeline | Step | Sequence[Step]
    device: str | torch.device | None
    batch_size: int
    transform: Any
    class_names: Sequence[str] | None
    activation: Activation | None
    output: Output
    forward_args: Sequence[Any]
    forward_kwargs: Mapping[str, Any] | None
    display: int | Sequence[int] | None
    trace: bool
    boxes_from: BoxRegressor | None
    crop: Crop | None
    precision: Precision
    progress: bool


@overload
def explain(
    model: nn.Module, image: SingleImage, *, target: Target | None = None, **options: Unpack[_Options]
) -> Explanation: ...
@overload
def explain(
    model: nn.Module, image: SingleImage, *, target: ClassList, **options: Unpack[_Options]
) -> list[Explanation]: ...
@overload
def explain(model: nn.Module, image: SingleImage, *, top_k: int, **options: Unpack[_Options]) -> list[Explanation]: ...
@overload
def explain(
    model: nn.Module,
    image: Sequence[Any],
    *,
    target: Target | Sequence[Target] | None = None,
    **options: Unpack[_Options],
) -> list[Explanation]: ...
@overload
def explain(
    model: nn.Module, image: Sequence[Any], *, top_k: int, **options: Unpack[_Options]
) -> list[list[Explanation]]: ...
@overload
def explain(
    model: nn.Module, image: Any, *, target: Targets = None, top_k: int | None = None, **options: Unpack[_Options]
) -> Any: ...
def explain(
    model: nn.Module,
    image: Any,
    *,
    target: Targets = None,
    top_k: int | None = None,
    pipeline: str | Pipeline | Step | Sequence[Step] = DEFAULT_PRESET,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    transform: Any = None,
    class_names: Sequence[str] | None = None,
    activation: Activation | None = None,
    output: Output = None,
    forward_args: Sequence[Any] = (),
    forward_kwargs: Mapping[str, Any] | None = None,
    display: int | Sequence[int] | None = None,
    trace: bool = False,
    boxes_from: BoxRegressor | None = None,
    crop: Crop | None = None,
    precision: Precision = "float32",
    progress: bool = False,
) -> Explanation | list[Explanation] | list[list[Explanation]]:
    """Say where a classifier sees a class: map, mask and boxes, from one forward.

    Args:
        model: Any classifier: timm, torchvision, or a module of your own. It is left exactly as it was.
        image: One image or a list of them: path, PIL image, uint8 tensor (C, H, W), or array (H, W[, C]) of uint8,
            uint16 or floats in [0, 1]. A floating tensor (C, H, W), or a batch (B, C, H, W), is taken as ready for the
            model, and boxes are in its pixels.
        target: Class index or name; a list gives several classes for a single image, one per image for many.
            None takes the likeliest class.
        top_k: This many likeliest classes instead.
        pipeline: Preset name (a key of `camtools.PRESETS`), `Pipeline`, step, or list of steps.
        device: Where to run; a model that lives elsewhere is copied there. None stays with the model.
        batch_size: Images per forward.
        transform: The model's preprocessing; None asks the model. See `Explainer`.
        class_names: Names of the classes in order; None asks the model.
        activation: How logits become `score`: "softmax", "sigmoid" or "none"; None goes by the model's output.
        output: Which of the model's outputs holds the class scores; see `Explainer`.
        forward_args: What forward takes after the images; see `Explainer`.
        forward_kwargs: Likewise, by name.
        display: Which channels are drawn, one or three; None draws the first three.
        trace: Whether to keep the map after every step, for `Explanation.plot_trace`.
        boxes_from: A `BoxRegressor` that the boxes come from, see `Explainer`.
        crop: Which part of the image the model is shown: "squash", "pad", "full" or "model"; see `Explainer`.
        precision: "float32", "bf16" or "auto"; see `Explainer`.
        progress: Whether to show a bar, on a terminal or in a notebook.

    Returns:
        One `Explanation` for a single image and class; a list for several classes or several images; a list of
        lists for both.

    Raises:
        InputError: An image or argument cannot be used.
        TargetError: A class does not exist, or `target` has the wrong length.
        ModelError: The model cannot be explained.
        PipelineError: The pipeline is unknown or impossible.

    Example:
        >>> exp = camtools.explain(timm.create_model("resnet50", pretrained=True), "bird.jpg")
        >>> exp.name, exp.score, exp.box
    """
    explainer = Explainer(
        model,
        pipeline,
        device=device,
        batch_size=batch_size,
        transform=transform,
        class_names=class_names,
        activation=activation,
        output=output,
        forward_args=forward_args,
        forward_kwargs=forward_kwargs,
        display=display,
        trace=trace,
        boxes_from=boxes_from,
        crop=crop,
        precision=precision,
        progress=progress,
    )
    return explainer(image, target=target, top_k=top_k)


def _with_boxes(
    explanations: list[list[Explanation]], regressor: BoxRegressor, images: Sequence[Ready]
) -> list[list[Explanation]]:
    """Give every image's explanations the regressor's box instead of their masks'."""
    shares = regressor.boxes_of([ready.input_image for ready in images])
    boxes = [whole_pixels(share[None], ready.input_image.size) for share, ready in zip(shares, images, strict=True)]
    return [
        [replace(exp, boxes=box, box_scores=torch.full((len(box),), exp.score)) for exp in per_class]
        for per_class, box in zip(explanations, boxes, strict=True)
    ]
