"""The classifier plus its last features, class weights and maps: `CamModel`, made by `wrap`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from camtools.classes.targets import Targets
from camtools.errors import CamtoolsError, InputError, ModelError
from camtools.images.preprocess import Preprocess, Transform
from camtools.images.read import check_dense
from camtools.model.activations import Activations
from camtools.model.adapter import Adapter, FeatureSpec, find_adapter
from camtools.model.backward import Backward
from camtools.model.call import AsClassifier, Call
from camtools.model.capture import Blank, Capture
from camtools.model.decomposition import Decomposition, classifier_weights, linear_head, shares
from camtools.model.guard import call_eagerly, lock_of, untouched
from camtools.model.inputs import TWO_D, accepted, is_two_d, own_transform
from camtools.model.layout import to_nchw
from camtools.model.outputs import AmbiguousOutputError, Output, Reading
from camtools.model.pyramid import LevelSpec, Observer, PyramidCapture

T = TypeVar("T")

# What does the same in train and eval mode: a fresh head on a model in eval mode leaves the check as sharp as it is.
_STEADY = frozenset({nn.Linear, nn.Conv2d, nn.Identity, nn.Flatten, nn.Sequential})

# What models raise for inputs that they do not take.
COMPLAINTS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, KeyError)


@dataclass(frozen=True)
class _Located:
    """What is known of a model once an input has gone through.

    Attributes:
        spec: Where the features live.
        decomposition: How the logits come from them; its `exact` says which kind of weights there are.
        size: (height, width) of the input that this was found on, where it is smaller than the model's own; else None.
        levels: The earlier stages, coarse to fine; None before a step has asked for them.
        first: The first image that went through, until the share of its logits that maps hold is worked out.
    """

    spec: FeatureSpec
    decomposition: Decomposition
    size: tuple[int, int] | None = None
    levels: tuple[LevelSpec, ...] | None = None
    first: Tensor | None = None


class CamModel(nn.Module):
    """A classifier with its last features, class weights and class maps within reach, all differentiable.

    Calling it is calling the wrapped model; its `state_dict` has the wrapped model's own keys. Everything else runs
    one forward of the wrapped model in whatever mode it is in.

    Args:
        model: A classifier. DataParallel, DistributedDataParallel and torch.compile wrappers are seen through: maps
            come from the eager module inside, plain calls go through the wrapper.
        spec: Where the features live; None asks the adapter.
        adapter: Who knows; None asks the installed ones.
        output: Which of its outputs holds the class scores; see `wrap`.
        forward_args: What forward takes after the images; see `wrap`.
        forward_kwargs: Likewise, by name.

    Raises:
        ModelError: `model` is not a module, shows nothing of its inside, or no adapter knows it.
        InputError: `output`, `forward_args` or `forward_kwargs` is none.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: FeatureSpec | None = None,
        adapter: Adapter | None = None,
        *,
        output: Output = None,
        forward_args: Sequence[Any] = (),
        forward_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.call = Call(output, forward_args, {} if forward_kwargs is None else forward_kwargs)
        self.model = accepted(model)
        self.adapter = adapter or find_adapter(unwrapped(self.model))
        self._given = spec
        self._located: _Located | None = None
        self._reading: Reading | None = None
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the wrapped model's own output, unchanged."""
        if torch.compiler.is_compiling():
            return self.model(*args, **kwargs)
        with lock_of(unwrapped(self.model)):
            return self.model(*args, **kwargs)

    def features(self, x: Tensor) -> Tensor:
        """Return F, the tensor that enters the classifier's pooling.

        Args:
            x: Model inputs, (B, 3, H, W), normalised as the model expects.

        Returns:
            (B, C, h, w), on the autograd graph where gradients are enabled.

        Raises:
            ModelError: The model has no map, or returns no class scores.
        """
        return self.activations(x).features

    def maps(self, x: Tensor, targets: Targets = None) -> Tensor:
        """Return class maps from one forward.

        Args:
            x: Model inputs, (B, 3, H, W), normalised as the model expects.
            targets: One class index for all images, one per image (B,), several per image (B, K'), or None for
                all K classes.

        Returns:
            M_k = sum_c W[k, c] F_c (Zhou et al. 2016, eq. 2), signed and without bias, (B, K', h, w); on the autograd
            graph where gradients are enabled.

        Raises:
            ModelError: The model has no map, or returns no class scores.
            TargetError: A class index out of range, or a list of the wrong length.
        """
        return self.activations(x).maps(targets)

    @property
    def class_weights(self) -> Tensor:
        """The classifier's own weights, (K, C): the parameter itself, so gradients reach it.

        Raises:
            ModelError: The head is linearised, so its weights depend on the image.
        """
        claim = self._claim(self.decomposition)
        if claim is None and self.decomposition.exact:  # the head is another since
            claim = self._claim(self._locate_example())
        if claim is None:
            raise ModelError(
                f"{self.decomposition!r} has no fixed class weights: they depend on the image. "
                "Use activations(x).weights(targets) or maps(x, targets)"
            )
        return claim[0]

    @property
    def decomposition(self) -> Decomposition:
        """How the logits come from the features; found on a random example if no image went through yet."""
        located = self._location()
        if located.first is not None:
            share = self._share(unwrapped(self.model), located.spec, located.first)
            found = replace(located.decomposition, share=share)
            self._located = located = replace(located, decomposition=found, first=None)
        return located.decomposition

    @property
    def spec(self) -> FeatureSpec:
        """Where the features live; found on a random example if no image went through yet."""
        return self._location().spec

    @property
    def pyramid(self) -> tuple[LevelSpec, ...]:
        """The network's earlier stages, coarse to fine; found on a random example if none was asked for yet."""
        levels = self._location().levels
        return self._levels(unwrapped(self.model), self.example()) if levels is None else levels

    def rewrap(self, model: nn.Module) -> CamModel:
        """Return another module wrapped as this one is: by the same adapter, with the spec that the caller gave."""
        call: Any = {"output": self.call.output, "forward_args": self.call.args, "forward_kwargs": self.call.kwargs}
        return CamModel(model, self._given, self.adapter, **call)

    def locate(self, x: Tensor) -> Decomposition:
        """Find the features and check the head on one input, in eval mode; the model is left as it was.

        Args:
            x: One model input, (1, 3, H, W).

        Raises:
            ModelError: The model has no map, or returns no class scores.
            InputError: The model does not take this input.
        """
        model = unwrapped(self.model)
        with self._in_words(x), untouched(model), torch.no_grad():
            self._located = None
            self._run(model, x[:1], check=True)
            return self.decomposition

    @property
    def preprocess(self) -> Transform | None:
        """The model's own preprocessing, with as many channels as its first layer takes; None where none is known."""
        return own_transform(unwrapped(self.model), self.adapter)

    def example(self) -> Tensor:
        """Return a random input of the size the model was built for, (1, C, H, W), the same at every call."""
        known = self.preprocess
        size = (3, 224, 224)
        if isinstance(known, Preprocess):
            size = (known.channels, *(known.input_size or (224, 224)))
        reference = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        noise = torch.randn((1, *size), generator=torch.Generator().manual_seed(0))
        return noise.to(reference.device, reference.dtype)

    def activations(self, x: Tensor, pyramid: int = 0, gradients: int = 0) -> Activations:
        """Run one forward and return logits, features and class weights together.

        Args:
            x: Model inputs, (B, 3, H, W), normalised as the model expects.
            pyramid: How many of the network's earlier, finer stages to return as well, the coarsest first; fewer where
                it has fewer. They are found on one image, by watching a forward. In a network that has one grid from
                end to end they are outputs of blocks at 3/4, 1/2 and 1/4 of the depth.
            gradients: At how many of these `Activations.backward` has to give gradients; 0 for none, at most `pyramid`.

        Raises:
            InputError: `x` is no batch of dense tensors.
            ModelError: The model has no map, or returns no class scores.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"the input is of type {type(x).__name__}: expected a tensor (B, C, H, W)")
        check_dense(x, "the input")
        if x.dim() != 4 or x.is_complex():
            raise InputError(
                f"the input is {tuple(x.shape)} {x.dtype}: expected (B, C, H, W); one image is image[None]. {TWO_D}"
            )
        model = unwrapped(self.model)
        self.call.check(len(x))
        with lock_of(model), self._in_words(x):
            return self._activations(model, x, pyramid, gradients)

    @contextmanager
    def _in_words(self, x: Tensor) -> Iterator[None]:
        """Say in words what the model complains of."""
        try:
            yield
        except CamtoolsError:
            raise
        except COMPLAINTS as error:
            if (known := self.misfit(x, error)) is None:
                raise
            raise known from error

    def misfit(self, x: Tensor, error: Exception) -> InputError | None:
        """Say in words why the model raised an error of its own for an input; None where that is not known.

        Args:
            x: (B, C, H, W).
            error: What it raised.
        """
        takes, model = self.example().shape[1:], unwrapped(self.model)
        if not is_two_d(model):
            return InputError(f"{self.about} takes no 2-D images. {TWO_D}")
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if dtypes and x.dtype not in dtypes and not torch.is_autocast_enabled(x.device.type):
            way_out = f"Its weights are {', '.join(map(str, dtypes))}, the input {x.dtype}: give it x.to(...) of theirs"
        elif isinstance(error, TypeError) and "required" in str(error) and "positional" in str(error):
            way_out = "What its forward takes beside the images goes into forward_args=(...) or forward_kwargs={...}"
        elif x.shape[1] != takes[0]:
            way_out = "Give it such inputs, or a transform that makes them"
        elif isinstance(error, TypeError | IndexError | KeyError):
            way_out = (
                "If its forward takes images in another form (by keyword, in a dictionary or list), put it into a "
                'module whose forward(x) takes them as (B, C, H, W): return self.model({"image": x}), say'
            )
        else:
            return None
        return self.refusal(x, error, way_out)

    def refusal(self, x: Tensor, error: Exception, way_out: str) -> InputError:
        """Return the error for an input that the model does not take."""
        takes = "x".join(map(str, self.example().shape[1:]))
        return InputError(
            f"{self.about} can't be run on inputs of {'x'.join(map(str, x.shape[1:]))} "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}): expected what it takes, by its "
            f"configuration {takes} (channels, height, width). {way_out}"
        )

    @property
    def about(self) -> str:
        """The model's class and the adapter that knows it, for messages."""
        return f"{type(unwrapped(self.model)).__name__} ({self.adapter.name})"

    def _activations(self, model: nn.Module, x: Tensor, pyramid: int, gradients: int) -> Activations:
        training = any(module.training for module in model.modules() if type(module) not in _STEADY)
        known = self._located.decomposition if self._located else None
        if training and (known is None or (known.exact and self._claim(known) is None)):
            self.locate(x)  # here dropout and batch statistics would blur the check
        return self._run(model, x, check=not training, pyramid=pyramid, gradients=gradients)

    def _run(self, model: nn.Module, x: Tensor, *, check: bool, pyramid: int = 0, gradients: int = 0) -> Activations:
        if self._located and self._located.size and min(x.shape[-2:]) > min(self._located.size):
            self._located = None  # so small an input may have hidden where the features are: look again
        levels = self._levels(model, x)[:pyramid] if pyramid else ()
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad):  # leaving inference mode turns gradients on
            if x.is_inference():
                x = x.clone()
            elif not x.requires_grad:
                x = x.detach()  # an object of our own: where F is the input itself, it becomes a leaf
            before = self._located
            spec, size = (before.spec, before.size) if before else self._found(model, x)
            exact = before is not None and before.decomposition.exact
            unchecked = before.decomposition if before and not check else None
            with PyramidCapture(model, levels, gradients) as capture:
                activations = self._forward(model, spec, x, unchecked, cut=not exact)
                if exact and not activations.decomposition.exact:  # the head was changed, or looked so at one size
                    spec, size = self._found(model, x)
                    activations = self._forward(model, spec, x, unchecked, cut=True)
            if before is None and not activations.decomposition.exact:
                self._check_used(model, spec, x, activations)
            found, first = activations.decomposition, None
            if before is not None and not exact and not found.exact:
                found, first = replace(found, share=before.decomposition.share), before.first
            elif found.share is None:
                first = x[:1].detach().clone()
            self._located = _Located(spec, found, size, before.levels if before else None, first)
            stages = capture.stages((x.shape[2], x.shape[3]))
            finer, back = (
                tuple(stage.tensor for stage in stages),
                replace(activations.backward, stages=stages[:gradients]),
            )
            return replace(activations, decomposition=found, pyramid=finer, backward=back)

    def _found(self, model: nn.Module, x: Tensor) -> tuple[FeatureSpec, tuple[int, int] | None]:
        """Ask the adapter where the features are, and say at what size it looked where that was a small one.

        On an input of a few pixels every layer has one position and looks like the last, so that the model's own
        size is looked at first where the input is smaller.
        """
        if self._given:
            return self._given, None

        def locate(probe: Tensor) -> FeatureSpec:
            with AsClassifier(model, self.call, self._reading) as plain:
                spec = self.adapter.locate(model, probe)
            self._reading = plain.reading
            return spec

        spec, probe = self._looked(x, locate)
        return spec, (x.shape[2], x.shape[3]) if self._is_small(probe) else None

    def _levels(self, model: nn.Module, x: Tensor) -> tuple[LevelSpec, ...]:
        """The network's stages before F, coarse to fine, found by watching one image's forward in eval mode."""

        def watch(probe: Tensor) -> tuple[LevelSpec, ...]:
            with untouched(model), torch.no_grad(), Observer(model, (probe.shape[2], probe.shape[3])) as observer:
                found = self._run(model, probe, check=False).decomposition
            return observer.pyramid(found.grid, found.layer, found.side)

        if self._located is None or self._located.levels is None:
            levels, _ = self._looked(x, watch)
            located = self._location()
            first = None if located.first is None else x[:1].detach().clone()  # not the probe that was looked at
            self._located = replace(located, levels=levels, first=first)
        assert self._located.levels is not None
        return self._located.levels

    def _looked(self, x: Tensor, look: Callable[[Tensor], T]) -> tuple[T, Tensor]:
        """Look at an input of the model's own size where `x` is smaller, or where that fails at `x`; return which."""
        if self._is_small(x) and x.shape[1] == self.example().shape[1]:
            try:
                probe = self.example().to(x)
                return look(probe), probe
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a model raises on a size that it does not take
                pass
        return look(x[:1].detach()), x

    def _is_small(self, x: Tensor) -> bool:
        return min(x.shape[-2:]) < min(self.example().shape[-2:])

    def _claim(self, decomposition: Decomposition) -> tuple[Tensor, Tensor | None] | None:
        """The classifier's weight and bias as they are now; None where the head is not pooling + linear."""
        if self._located is None or not decomposition.exact:
            return None
        reference = next(self.model.parameters(), torch.empty(0)).new_empty(1, decomposition.channels, 1, 1)
        return classifier_weights(unwrapped(self.model), self._located.spec, reference)

    def _location(self) -> _Located:
        if self._located is None:
            self._locate_example()
        assert self._located is not None
        return self._located

    def _locate_example(self) -> Decomposition:
        example = self.example()
        try:
            return self.locate(example)
        except ModelError:
            raise
        except InputError as error:
            raise ModelError(str(error)) from error
        except Exception as error:
            raise ModelError(
                f"{type(unwrapped(self.model)).__name__} cannot be run on a random input of shape "
                f"{tuple(example.shape)}: {error}. Show it one of its own inputs first: locate(x)"
            ) from error

    def traced(self, x: Tensor, pyramid: int = 0) -> Activations:
        """Return what `activations` does, in one forward without locks or checks, for exporters to trace.

        Features, and the pyramid where it is asked for, have been located by then, and the model is in eval mode.
        """
        located, model = self._location(), unwrapped(self.model)
        levels = (located.levels or ())[:pyramid]
        with PyramidCapture(model, levels) as capture:
            found = self._forward(model, located.spec, x, located.decomposition, cut=not located.decomposition.exact)
        stages = capture.stages((x.shape[2], x.shape[3]))
        return replace(found, pyramid=tuple(stage.tensor.float() for stage in stages))

    def _forward(
        self, model: nn.Module, spec: FeatureSpec, x: Tensor, unchecked: Decomposition | None, *, cut: bool
    ) -> Activations:
        """Run the model; the decomposition is checked anew, or taken over where one is passed in."""
        capture = Capture(model, spec, cut=cut)
        try:
            with capture:
                logits = self._logits(model, x)
        except AmbiguousOutputError:  # more is known where autograd tells which output was made of which
            with untouched(model), torch.enable_grad():
                self._logits(model, x[:1].detach().clone().requires_grad_())
            with capture:
                logits = self._logits(model, x)
        size = (x.shape[-2], x.shape[-1])
        with torch.enable_grad():  # stays on the graph, where there is one
            last = to_nchw(capture.features, spec.layout, size, spec.prefix_tokens)
            features = last if spec.activation is None else spec.activation(last)
        if unchecked is None:
            decomposition = self._decompose(model, spec, features.detach(), logits.detach())
        else:
            decomposition = replace(unchecked, grid=(features.shape[2], features.shape[3]))
        claim = classifier_weights(model, spec, features) if decomposition.exact else None
        weight = claim and (claim[0].clone() if claim[0].is_inference() else claim[0])
        backward = Backward(features if decomposition.exact else last, ())
        captured, scores = capture.features, logits
        if not torch.is_grad_enabled():  # the head's graph, if there is one, is ours and not the caller's
            features, logits = features.detach(), logits.detach()
        if decomposition.exact:  # and is not needed
            captured, scores = features, logits
        told = self._reading.activation if self._reading is not None else "softmax"
        return Activations(
            logits, features, decomposition, backward, captured, scores, spec, weight, size, activation=told
        )

    def _logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """Call the model and return its logits; where they are in its output is found out by the first call."""
        with AsClassifier(model, self.call, self._reading) as plain:
            logits: Tensor = call_eagerly(model, x)
        self._reading = plain.reading
        return logits

    def _check_used(self, model: nn.Module, spec: FeatureSpec, x: Tensor, activations: Activations) -> None:
        """Raise where the logits come from the image, but not by way of the captured tensor."""
        if activations.depends_on_features():
            return
        with untouched(model), torch.enable_grad():
            image = x[:1].detach().clone().requires_grad_()
            logits = self._logits(model, image.clone())
            from_image = logits.requires_grad and torch.autograd.grad(logits.sum(), image, allow_unused=True)[0]
        if isinstance(from_image, Tensor):
            raise ModelError(
                f"the logits of {type(model).__name__} do not come from the {spec.side} of layer {spec.layer!r} as the "
                "layer hands it on: nothing after it uses that tensor, or the layer itself used it (pooled it, say) "
                "before. Name a layer inside it, or a later one"
            )

    def _share(self, model: nn.Module, spec: FeatureSpec, x: Tensor) -> tuple[float, ...] | None:
        """Return how much of each logit of an image, (1, C, H, W), goes by way of F; see `shares`."""
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(20161211)).to(x)  # nobody else's
        reads = AsClassifier(model, self.call, self._reading, tapped=True)
        try:
            with torch.inference_mode(False), torch.no_grad(), untouched(model), reads as plain:
                logits = call_eagerly(model, x.clone())[0]
                bias = plain.bias(logits)
                with Blank(model, spec):
                    without, other = (call_eagerly(model, image)[0] for image in (x.clone(), noise))
        except (ModelError, *COMPLAINTS):  # of one that does not run on noise, say
            return None
        return shares(logits, without, other, bias)

    def _decompose(self, model: nn.Module, spec: FeatureSpec, features: Tensor, logits: Tensor) -> Decomposition:
        head = linear_head(model, spec, features, logits)
        exact = head is not None and head.is_exact(features.dtype, logits.dtype)
        words = spec.head or "layers that are not pooling + linear"
        if exact and head is not None:
            words = f"{head.pool} pooling + Linear({head.weight.shape[1]}, {head.weight.shape[0]})"
            if head.pools_maps:
                words = f"Linear({head.weight.shape[1]}, {head.weight.shape[0]}) at every position + {head.pool}"
        if exact and head is not None and spec.pool == "identity":
            words = f"{head.pool} pooling of {logits.shape[1]} class maps"
        return Decomposition(
            exact=exact,
            residual=None if head is None else head.residual,
            layer=spec.layer,
            side=spec.side,
            layout=spec.layout,
            head=words,
            adapter=self.adapter.name,
            channels=features.shape[1],
            grid=(features.shape[2], features.shape[3]),
            # What adapters find is all that the scores come from, but for tokens before the positions.
            share=None if not exact and (spec.prefix_tokens or self._given) else (1.0,) * logits.shape[1],
        )


def wrap(
    model: nn.Module,
    *,
    spec: FeatureSpec | None = None,
    adapter: Adapter | None = None,
    output: Output = None,
    forward_args: Sequence[Any] = (),
    forward_kwargs: Mapping[str, Any] | None = None,
) -> CamModel:
    """Return the classifier with its last features, class weights and class maps within reach.

    Args:
        model: Any classifier; one that is wrapped already is returned as it is.
        spec: Where the features live, for layers of your own choice (`FeatureSpec("layer3")`); None asks the adapter.
        adapter: Who knows; None asks the installed ones, by priority.
        output: Which of the model's outputs holds the class scores: a position in a tuple or list, a key or attribute,
            or a function from what the model returns to scores (B, K). None finds out. Where they are probabilities,
            what they were made of counts.
        forward_args: What forward takes after the images; a tensor has one row for all images, or a row per image.
        forward_kwargs: Likewise, by name.

    Raises:
        ModelError: `model` is not a module, shows nothing of its inside, or no adapter knows it.
        InputError: `output`, `forward_args` or `forward_kwargs` is none.

    Example:
        >>> cam_model = camtools.wrap(torchvision.models.resnet50())
        >>> cam_model.maps(x, targets=[3, 7]).shape  # x: (2, 3, 224, 224)
        torch.Size([2, 1, 7, 7])
    """
    told = (spec, adapter, output, forward_kwargs)
    if isinstance(model, CamModel) and not forward_args and all(one is None for one in told):
        return model
    return CamModel(model, spec, adapter, output=output, forward_args=forward_args, forward_kwargs=forward_kwargs)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel, torch.compile and CamModel wrappers."""
    inner: object
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    elif isinstance(model, CamModel):
        inner = model.model
    else:
        inner = getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _drop_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """Give `state_dict` the wrapped model's own keys."""
    inner = f"{prefix}model."
    values = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(inner)}
    state_dict.update({prefix + key.removeprefix(inner): value for key, value in values.items()})


def _add_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Take the wrapped model's own keys when loading."""
    values = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    state_dict.update({f"{prefix}model.{key.removeprefix(prefix)}": value for key, value in values.items()})
