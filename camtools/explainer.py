"""`explain` in one call, and `Explainer`, its reusable form: images in, explanations out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from camtools.boxes import SPECK, boxes_from_masks
from camtools.classes.names import checked_names
from camtools.classes.targets import Target, check_top_k, class_indices, is_list, per_image
from camtools.engine import Sizes, check_scores
from camtools.errors import InputError
from camtools.explanation import Explanation
from camtools.heads.box_regressor import BoxRegressor, whole_pixels
from camtools.images.batches import Batch, Ready, is_ready_batch, read_batches, ready_batches
from camtools.images.enlarged import enlarged
from camtools.images.preprocess import Preprocess, as_transform, display_image
from camtools.images.read import read_images
from camtools.model.activations import Activations
from camtools.model.cam_model import CamModel, unwrapped, wrap
from camtools.model.device import on_device, to_model
from camtools.model.guard import untouched
from camtools.model.outputs import probabilities
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.presets import as_pipeline
from camtools.pipeline.trace import Cut, TraceStep
from camtools.steps.base import State, Step


class Explainer:
    """Explains images with one model and one pipeline, prepared once.

    The model is run in eval mode and left exactly as it was: training flags, gradients, buffers and hooks.

    Args:
        model: Any classifier, or a `CamModel`.
        pipeline: Preset name, `Pipeline`, step, or list of steps.
        device: Where to run; a model that lives elsewhere is copied there, never moved. None stays with the model.
        batch_size: Images per forward.
        transform: What the model was trained with: a `Preprocess`, a torchvision or timm transform, or any
            deterministic callable from PIL image to tensor; None asks the model. Floating tensors skip it.
        class_names: Names of the classes in order; None asks the model.
        activation: How logits become `score`: "softmax", or "sigmoid" for multi-label models.
        trace: Whether explanations keep the map after every step, see `Explanation.trace`.
        boxes_from: A `BoxRegressor` whose box takes the place of those around the mask's parts; None keeps these.

    Raises:
        ModelError: No module, or no adapter knows it.
        PipelineError: The pipeline is unknown or impossible.
        InputError: The transform or an argument cannot be used.
        TargetError: `class_names` is not a list of names.
    """

    def __init__(
        self,
        model: nn.Module,
        pipeline: str | Pipeline | Step | Sequence[Step] = "cam",
        *,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        transform: Any = None,
        class_names: Sequence[str] | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        trace: bool = False,
        boxes_from: BoxRegressor | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size={batch_size!r}: expected a whole number of at least 1")
        if activation not in ("softmax", "sigmoid"):
            raise InputError(f"activation={activation!r}: expected 'softmax' or 'sigmoid'")
        if not isinstance(trace, bool):
            raise InputError(f"trace={trace!r}: expected True or False")
        if boxes_from is not None and not callable(getattr(boxes_from, "boxes_of", None)):
            raise InputError(f"boxes_from={boxes_from!r}: expected a camtools.heads.BoxRegressor, or None")
        self.boxes_from = boxes_from
        self.pipeline = as_pipeline(pipeline)
        self.pipeline_name = pipeline if isinstance(pipeline, str) else self.pipeline.summary
        self.trace = trace
        self.model: CamModel = wrap(on_device(model, device))
        self._sizes = Sizes(self.model)
        self.batch_size = batch_size
        self.activation: Literal["softmax", "sigmoid"] = activation
        adapter, inner = self.model.adapter, unwrapped(self.model)
        if transform is None:
            transform = adapter.data_config(inner)
        self.transform = Preprocess.imagenet() if transform is None else as_transform(transform)
        self.class_names = adapter.class_names(inner) if class_names is None else checked_names(class_names)

    def __call__(
        self,
        images: Any,
        target: Target | Sequence[Target | Sequence[Target]] | Tensor | None = None,
        top_k: int | None = None,
    ) -> Explanation | list[Explanation] | list[list[Explanation]]:
        """Explain one image or many.

        Args:
            images: A path, PIL image, array or tensor, or a list or batch of them; see `camtools.explain`.
            target: Class index or name; a list gives several classes for a single image, one per image for many
                (where an element may itself be a list). None takes the likeliest class.
            top_k: This many likeliest classes instead.

        Returns:
            One explanation for a single image and a single class; a list for several classes or several images;
            a list of lists for both.

        Raises:
            InputError: An image cannot be used.
            TargetError: A class does not exist, or `target` has the wrong length.
            ModelError: The model cannot be explained.
        """
        check_top_k(top_k, target)
        input_images, single = read_images(images)
        targets = per_image(target, len(input_images), single)
        found = list(self._run(self.batches(images, targets, single), top_k))
        if top_k is None and not any(map(is_list, targets)):
            ones = [one[0] for one in found]
            return ones[0] if single else ones
        return found[0] if single else found

    def stream(
        self, images: Iterable[Any], target: Target | Sequence[Target] | None = None, top_k: int | None = None
    ) -> Iterator[Explanation | list[Explanation]]:
        """Explain images one after another without keeping them: for more than fit in memory.

        Args:
            images: Any iterable of images; it is read `2 * batch_size` ahead.
            target: A class for all images, or a list of classes for each; None takes the likeliest.
            top_k: This many likeliest classes instead.

        Yields:
            What a call would give for each image, in order.

        Raises:
            InputError: An image cannot be used; those before it have been yielded by then.
            TargetError: A class does not exist.
            ModelError: The model cannot be explained.
        """
        if isinstance(target, (Tensor, np.ndarray)):
            target = target.tolist()
        check_top_k(top_k, target)
        several = top_k is not None or is_list(target)
        batches = read_batches(enumerate(images), repeat(target), self.transform, self.batch_size)
        for one in self._run(batches, top_k):
            yield one if several else one[0]

    def batches(self, images: Any, targets: list[Any], single: bool) -> Iterator[Batch]:
        """Yield one image or many as batches for the model, read ahead.

        Args:
            images: As a call takes them.
            targets: One per image, passed through.
            single: Whether `images` is one image.

        Raises:
            InputError: An image cannot be used; batches of those before it have been yielded by then.
        """
        if is_ready_batch(images, self.transform):
            return ready_batches(images, targets, self.batch_size)
        numbered = [(None, images)] if single else enumerate(images)
        return read_batches(numbered, targets, self.transform, self.batch_size)

    def _run(self, batches: Iterator[Batch], top_k: int | None) -> Iterator[list[Explanation]]:
        """Yield the explanations of each image, one a class."""
        for batch in batches:
            yield from self._explain(batch, top_k)

    def _explain(self, batch: Batch, top_k: int | None) -> list[list[Explanation]]:
        """Explain one batch: one forward, then batched steps for each image size."""
        wanted = [ready.target for ready in batch.images]
        counts: list[int] = []

        def choose(logits: Tensor) -> Tensor:
            targets, counts[:] = class_indices(wanted, logits, top_k, self.class_names)
            return targets

        activations, state, trace = self.on_grid(batch, choose)
        device = activations.features.device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            found = self._on_images(state, batch.images, activations, trace)
        if self.boxes_from is not None:
            found = _with_boxes(found, self.boxes_from, batch.images)
        return [of_image[:count] for of_image, count in zip(found, counts, strict=True)]

    def on_grid(self, batch: Batch, choose: Callable[[Tensor], Tensor]) -> tuple[Activations, State, list[TraceStep]]:
        """Run the model once, or twice for `Enlarge`, and the pipeline's steps on the feature grid.

        Args:
            batch: Images of any sizes whose tensors have one shape.
            choose: From logits (B, K) to the classes to map, (B, K') int64.

        Returns:
            What the forward at the model's own size gave; the state before the resize, float32, with the classes as
            `labels`; and the maps after every step where `trace` asks for them.

        Raises:
            ModelError: The model cannot be explained, or its scores are not numbers.
        """
        inner = unwrapped(self.model)
        x = to_model(batch.tensor, inner)
        with torch.inference_mode(False), torch.no_grad():
            larger = self._larger(batch, x)
            stages = self.pipeline.needs_stages
            with untouched(inner):
                activations = self.model.activations(x, stages if larger is None else 0)
                check_scores(activations.logits, batch.images)
                targets = choose(activations.logits)
                source = activations if larger is None else self.model.activations(larger, stages)
                weights = source.weights(targets)
            with torch.autocast(x.device.type, enabled=False):
                # Half precision has too few levels for a map: from here on everything is float32.
                state = State(source.features.detach().float(), weights.detach().float(), labels=targets)
                trace: list[TraceStep] = []
                state = state.replace(stages=source.stages)
                state = self.pipeline.features(state, trace if self.trace else None)
        return activations, state, trace

    def _larger(self, batch: Batch, x: Tensor) -> Tensor | None:
        """Return the inputs that the pipeline wants maps from; None for the model's own."""
        if self.pipeline.scale == 1:
            return None
        larger = enlarged([ready.input_image for ready in batch.images], x, self.transform, self.pipeline.scale)
        return larger if self._sizes.taken(larger) else None

    def _on_images(
        self,
        state: State,
        batch: list[Ready],
        activations: Activations,
        trace: list[TraceStep],
    ) -> list[list[Explanation]]:
        """Run the steps on the images' pixels, together for images of one geometry, and collect the results."""
        targets = state.require("labels", self)
        scores = probabilities(activations.logits, self.activation).gather(1, targets).cpu()
        labels, logits = targets.cpu(), activations.logits.detach()
        found: list[list[Explanation]] = [[] for _ in batch]
        for geometry in dict.fromkeys(ready.geometry for ready in batch):
            members = [i for i, ready in enumerate(batch) if ready.geometry == geometry]
            later: list[TraceStep] = []
            part = self.part(state, members, batch, self.pipeline.needs_image)
            done = self.pipeline.image(part, later if self.trace else None)
            maps, raw, masks, thresholds = (done.require(f, self) for f in ("maps", "raw_maps", "masks", "thresholds"))
            boxes, limits = iter(boxes_from_masks(masks, SPECK)), thresholds.cpu()
            for row, i in enumerate(members):
                for k in range(labels.shape[1]):
                    early, cut = Cut(k), Cut(k)  # a step on the grid has a row for each of the batch's images
                    exp = Explanation(
                        label=int(labels[i, k]),
                        name=self.name(int(labels[i, k])),
                        score=float(scores[i, k]),
                        map=cut(maps, row),
                        raw_map=cut(raw, row),
                        threshold=float(limits[row, k]),
                        mask=cut(masks, row),
                        boxes=next(boxes),
                        exact=activations.decomposition.exact,
                        layer=activations.decomposition.layer,
                        logits=logits[i].clone(),
                        input_image=batch[i].input_image,
                        transform=self.transform,
                        pipeline=self.pipeline_name,
                        trace=early.steps(trace, i) + cut.steps(later, row),
                    )
                    found[i].append(exp)
        return found

    def part(self, state: State, members: list[int], batch: list[Ready], images: bool) -> State:
        """Return the state of the images of one geometry, ready for the steps on their pixels.

        Args:
            state: Of the whole batch, from `on_grid`.
            members: Which images, all of one geometry.
            batch: The whole batch.
            images: Whether to fill `State.images`.
        """
        changes: dict[str, Any] = {"resize": batch[members[0]].geometry.resize}
        if len(members) < len(batch):
            for name in ("features", "weights", "maps", "raw_maps", "labels"):
                value = getattr(state, name)
                changes[name] = value if value is None else value[members]
            changes["stages"] = state.stages and tuple(one[members] for one in state.stages)
        if images:
            shown = np.stack([np.asarray(display_image(batch[i].input_image, self.transform)) for i in members])
            pixels = torch.from_numpy(shown).permute(0, 3, 1, 2)
            changes["images"] = pixels.to(state.require("maps", self).device, torch.float32) / 255
        return state.replace(**changes)

    def name(self, index: int) -> str:
        """Return a class's name; its index as text where no names are known."""
        return str(index) if self.class_names is None else self.class_names[index]

    def __repr__(self) -> str:
        inner = type(unwrapped(self.model)).__name__
        return f"Explainer({inner} ({self.model.adapter.name}), {self.pipeline!r}, transform={self.transform!r})"


def explain(
    model: nn.Module,
    image: Any,
    *,
    target: Target | Sequence[Target | Sequence[Target]] | Tensor | None = None,
    top_k: int | None = None,
    pipeline: str | Pipeline | Step | Sequence[Step] = "cam",
    device: str | torch.device | None = None,
    batch_size: int = 32,
    transform: Any = None,
    class_names: Sequence[str] | None = None,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    trace: bool = False,
    boxes_from: BoxRegressor | None = None,
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
        activation: How logits become `score`: "softmax", or "sigmoid" for multi-label models.
        trace: Whether to keep the map after every step, for `Explanation.plot_trace`.
        boxes_from: A `BoxRegressor` that the boxes come from, see `Explainer`.

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
        trace=trace,
        boxes_from=boxes_from,
    )
    return explainer(image, target=target, top_k=top_k)


def _with_boxes(
    found: list[list[Explanation]], regressor: BoxRegressor, images: Sequence[Ready]
) -> list[list[Explanation]]:
    """Give every image's explanations the regressor's box instead of their masks'."""
    boxes = regressor.boxes_of([ready.input_image for ready in images])
    whole = [whole_pixels(box[None], ready.input_image.size) for box, ready in zip(boxes, images, strict=True)]
    return [[replace(one, boxes=box) for one in of_image] for of_image, box in zip(found, whole, strict=True)]
