"""One forward, every pipeline's maps: what explaining, segmenting, evaluating and fitting a context bank all call.

forward = engine.forward(inputs)            # logits and features, from one run of the model
states = engine.maps(forward, targets)      # a state per pipeline, maps on the feature grid

`camtools.pipeline.pixels` takes them from there to the images' pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from camtools.checks import one_of, whole
from camtools.classes.names import checked_names
from camtools.errors import CamtoolsError, ModelError
from camtools.images.batches import Batch, Failed, is_ready_batch, read_batches, ready_batches
from camtools.images.enlarged import enlarged
from camtools.images.preprocess import Preprocess, Transform, as_transform, with_display
from camtools.images.read import Least
from camtools.model.activations import Activations
from camtools.model.cam_model import COMPLAINTS, CamModel, unwrapped, wrap
from camtools.model.device import Precision, autocast_to, on_device, to_model
from camtools.model.guard import untouched
from camtools.model.inputs import assumed_transform
from camtools.model.outputs import Activation, Output, probabilities
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.pixels import plain
from camtools.pipeline.trace import TraceStep
from camtools.steps.base import State

GUESSED = (
    "{0} does not say how images are made ready for it: its preprocessing is a guess, {1}. If it is right, say so, "
    "which silences this; else give the model's own: transform=camtools.{2}"
)
ONE_OUTPUT = (
    "{0} has one output, taken for the logit of class 1 against class 0. If that is right, say so, which silences "
    "this: activation='sigmoid', or class_names of two. If it is a number such as an age: activation='none'"
)
NONE_LARGER: Mapping[float, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Forward:
    """What the model made of a batch.

    Attributes:
        activations: From the inputs at the model's own size.
        larger: From inputs of other sizes, by their scale; only of those that the model can be run on.
    """

    activations: Activations
    larger: Mapping[float, Activations]

    @property
    def logits(self) -> Tensor:
        """The class scores, (B, K)."""
        return self.activations.logits


class Engine:
    """A classifier, prepared to run batches through pipelines. The model is left exactly as it was.

    Args:
        model: Any classifier, or a `CamModel`.
        pipelines: P of them; all get their maps from the same forward.
        device: Where to run; a model that lives elsewhere is copied there, never moved. None stays with the model.
        transform: The model's preprocessing; None asks the model, and takes ImageNet's where that does not tell.
        class_names: Names of the classes in order; None asks the model.
        activation: How logits become scores: "softmax"; "sigmoid" for multi-label models and single logits; "none"
            for numbers that are no logits. None goes by the model: "sigmoid" where it ends in one, or has one output.
        batch_size: Images per forward.
        output: Which of the model's outputs holds the class scores; see `camtools.wrap`.
        forward_args: What forward takes after the images; see `camtools.wrap`.
        forward_kwargs: Likewise, by name.
        display: Which channels are drawn, one or three; None draws the first three.
        precision: "float32": the model as it is. "bf16": its forward under bfloat16 autocast; maps stay float32.
            "auto": bf16 where the device computes in it.

    Raises:
        ModelError: No module, or no adapter knows it.
        InputError: The device, the transform or another argument cannot be used.
        TargetError: `class_names` is not a list of names.
    """

    def __init__(
        self,
        model: nn.Module,
        pipelines: Sequence[Pipeline],
        *,
        device: str | torch.device | None = None,
        transform: Any = None,
        class_names: Sequence[str] | None = None,
        activation: Activation | None = None,
        batch_size: int = 32,
        output: Output = None,
        forward_args: Sequence[Any] = (),
        forward_kwargs: Mapping[str, Any] | None = None,
        display: Any = None,
        precision: Precision = "float32",
    ) -> None:
        self.precision: Precision = one_of("precision", precision, get_args(Precision))
        self.activation: Activation | None = activation
        if activation is not None:
            one_of("activation", activation, get_args(Activation))
        self.batch_size = whole("batch_size", batch_size, most=1 << 16)
        call: Any = {"output": output, "forward_args": forward_args, "forward_kwargs": forward_kwargs}
        self.model: CamModel = wrap(on_device(model, device), **call)
        self.pipelines = tuple(pipeline.fitted(unwrapped(self.model)) for pipeline in pipelines)
        own = self.model.preprocess if transform is None else as_transform(transform)
        self.transform: Transform = assumed_transform() if own is None else own
        if display is not None:
            self.transform = with_display(self.transform, display)
        if activation is None and callable(told := getattr(self.model.adapter, "activation", None)):
            self.activation = told(unwrapped(self.model))
        self._named = class_names is not None
        names = self.model.adapter.class_names(unwrapped(self.model)) if class_names is None else class_names
        self.class_names = checked_names(names) if self._named else names
        self._warned = False
        # How many levels of the pyramid the pipelines look at, and at how many of these they want gradients, by the
        # scale of the input that they want.
        self._levels: dict[float, tuple[int, int]] = {}
        for scale in sorted({pipeline.scale for pipeline in self.pipelines}):
            same = [pipeline for pipeline in self.pipelines if pipeline.scale == scale]
            self._levels[scale] = max(p.needs_pyramid for p in same), max(p.needs_gradients for p in same)
        self._taken: dict[tuple[int, ...], bool] = {}
        self._channels_last = True
        self.whole_images = any(pipeline.needs_image for pipeline in self.pipelines)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales other than 1 at which pipelines want inputs."""
        return tuple(scale for scale in self._levels if scale != 1)

    def batches(self, images: Any, targets: list[Any], single: bool, failed: Failed | None = None) -> Iterator[Batch]:
        """Yield one image or many as batches for the model, read ahead.

        Args:
            images: What `camtools.explain` takes.
            targets: One per image, passed through.
            single: Whether `images` is one image.
            failed: See `read_batches`.

        Raises:
            InputError: An image cannot be used; batches of those before it have been yielded by then.
        """
        if is_ready_batch(images, self.transform):
            return ready_batches(images, targets, self.batch_size, self.transform)
        numbered = [(None, images)] if single else enumerate(images)
        return read_batches(numbered, targets, self.transform, self.batch_size, self.least, failed=failed)

    @property
    def least(self) -> Least | None:
        """How many pixels of an image serve for all inputs, see `read_image`; None where all of them are looked at."""
        if self.whole_images or not isinstance(self.transform, Preprocess):
            return None
        return partial(self.transform.least, scale=max(self._levels))

    def run(self, batch: Batch) -> Forward:
        """Run the model on a batch, and on its enlarged inputs where pipelines want maps from these.

        Raises:
            ModelError: See `forward`.
        """
        assumed = self.transform.assumed if isinstance(self.transform, Preprocess) else ""
        if assumed and any(ready.input_image.image is not None for ready in batch.images):
            self._warn(GUESSED.format(self.about, assumed, self.transform))
        inputs = to_model(batch.tensor, unwrapped(self.model))
        images = [ready.input_image for ready in batch.images]
        larger = {scale: enlarged(images, inputs, self.transform, scale) for scale in self.scales}
        return self.forward(inputs, larger, [ready.name for ready in batch.images])

    def forward(
        self, inputs: Tensor, larger: Mapping[float, Tensor] = NONE_LARGER, names: Sequence[str] | None = None
    ) -> Forward:
        """Run the model once, and once more for each larger input.

        Args:
            inputs: (B, C, h, w), at the model's own size, normalised as it expects; on any device.
            larger: The same images at other sizes, by scale; those that the model can't be run on are left out.
            names: What errors call the images, B; None for their numbers.

        Raises:
            ModelError: The model cannot be explained, its scores are not numbers, or the device runs out of memory.
            InputError: The model does not take inputs of this shape.
        """
        try:
            return self._forward(inputs, larger, names)
        except CamtoolsError:
            raise
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"the device ran out of memory with {len(inputs)} images per forward: give a smaller batch_size"
            ) from error
        except COMPLAINTS as error:  # the model's own
            usual = "Give it such inputs, or a transform that makes them"
            raise self.model.misfit(inputs, error) or self.model.refusal(inputs, error, usual) from error

    def _forward(self, inputs: Tensor, larger: Mapping[float, Tensor], names: Sequence[str] | None) -> Forward:
        inner = unwrapped(self.model)
        with torch.inference_mode(False), torch.no_grad():
            taken = {scale: to_model(x, inner) for scale, x in larger.items() if self._takes(x)}
            own = [counts for scale, counts in self._levels.items() if scale not in taken]
            levels, gradients = (max(column, default=0) for column in zip(*own, strict=True)) if own else (0, 0)
            with untouched(inner):
                activations = self.settled(self._activations(to_model(inputs, inner), levels, gradients))
                _check_scores(activations.logits, names)
                others = {s: self.settled(self._activations(x, *self._levels[s])) for s, x in taken.items()}
        return Forward(activations, others)

    def _activations(self, inputs: Tensor, levels: int, gradients: int) -> Activations:
        """Run the model on inputs in the layout that is fastest: channels last, where the model takes that."""
        with autocast_to(self.precision, inputs.device):
            if self._channels_last:
                try:
                    dense = inputs.contiguous(memory_format=torch.channels_last)
                    return self.model.activations(dense, levels, gradients)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:  # its own code wants memory in one piece (`view`); what else is wrong shows below
                    pass
            activations = self.model.activations(inputs.contiguous(), levels, gradients)
            self._channels_last = False
            return activations

    def settled(self, found: Activations) -> Activations:
        """Make two classes of one logit, and settle what is known of scores and names once the classes are counted."""
        one = found.logits.shape[1] == 1 and self.activation != "none"
        if one:
            if self.activation is None and found.activation != "sigmoid" and not self._named:
                self._warn(ONE_OUTPUT.format(self.about))
            found = found.two_classes()
            if self.class_names is not None and len(self.class_names) == 1:
                self.class_names = [f"not {self.class_names[0]}", self.class_names[0]]
        if self.activation is None or (one and self.activation == "softmax"):
            self.activation = found.activation
        if not self._named and self.class_names is not None and len(self.class_names) != found.logits.shape[1]:
            self.class_names = None  # of a part of the model, whose classes the model does not return
        return found

    def maps(self, forward: Forward, targets: Tensor, trace: list[TraceStep] | None = None) -> list[State]:
        """Run every pipeline's steps on the feature grid.

        Args:
            forward: What `forward` or `run` returned.
            targets: The classes to map, (B, K') int64.
            trace: A list to which the maps after every step are appended, see `Pipeline.trace`.

        Returns:
            For each pipeline the state before the resize: float32, with the targets as `labels`.

        Raises:
            PipelineError: A step cannot work on this model's features.
        """
        starts: dict[float, State] = {}
        states = []
        back = any(pipeline.needs_gradients for pipeline in self.pipelines)
        with untouched(unwrapped(self.model)) if back else nullcontext():
            for pipeline in self.pipelines:
                scale = pipeline.scale if pipeline.scale in forward.larger else 1.0
                if scale not in starts:
                    starts[scale] = _start(forward.larger.get(scale, forward.activations), targets)
                with plain(starts[scale].require("features", self).device):
                    states.append(pipeline.features(starts[scale], trace))
        return states

    def scores(self, forward: Forward) -> Tensor:
        """Return the scores of all classes, (B, K) float32 in [0, 1]."""
        return probabilities(forward.logits, self.activation or "softmax")

    def _warn(self, words: str) -> None:
        """Warn once of what is guessed about the model."""
        if not self._warned:
            self._warned = True
            warnings.warn(words, stacklevel=2)

    def name(self, index: int) -> str:
        """Return a class's name; its index as text where no names are known."""
        return str(index) if self.class_names is None else self.class_names[index]

    def __repr__(self) -> str:
        return f"Engine({self.about}, {', '.join(map(repr, self.pipelines))}, transform={self.transform!r})"

    @property
    def about(self) -> str:
        """The model's class and the adapter that knows it, for messages."""
        return self.model.about

    def _takes(self, larger: Tensor) -> bool:
        """Whether the model can be run on inputs of this shape, tried once each; warns where it can't."""
        shape = tuple(larger.shape[1:])
        if shape not in self._taken:
            self._taken[shape] = _runs_on(self.model, shape)
            if not self._taken[shape]:
                warnings.warn(
                    f"{type(unwrapped(self.model)).__name__} can't be run on {shape[1]} x {shape[2]} pixels, so the "
                    "step Enlarge does nothing: maps are made from the model's own input size. Leave Enlarge out to "
                    "silence this.",
                    stacklevel=2,
                )
        return self._taken[shape]


def _start(source: Activations, targets: Tensor) -> State:
    """Return where pipelines start, in float32 from here on."""
    with torch.inference_mode(False), torch.no_grad():
        weights = source.weights(targets).detach().float()
        features, back = source.features.detach().float(), source.backward
        return State(features, weights, labels=targets, pyramid=source.pyramid, backward=back)


def _runs_on(model: CamModel, shape: tuple[int, ...]) -> bool:
    inner = unwrapped(model)
    # Noise, as adapters look for features with it, and all is alike in a black image.
    inputs = to_model(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)), inner)
    try:
        with torch.no_grad(), untouched(inner):
            model.activations(inputs)
    except (torch.OutOfMemoryError, KeyboardInterrupt):
        raise
    except (CamtoolsError, RuntimeError, AssertionError, ValueError, TypeError, IndexError):
        return False
    return True


def _check_scores(logits: Tensor, names: Sequence[str] | None) -> None:
    """Raise where scores are not numbers."""
    bad = (~torch.isfinite(logits)).any(1).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(names[i] if names else f"image {i}" for i in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ModelError(
            f"the model returned NaN or infinite class scores for {shown}{more}. Check its weights; in float16 try "
            "bfloat16 or float32"
        )
