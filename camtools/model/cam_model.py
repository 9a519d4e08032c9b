"""The classifier plus its last features, class weights and maps: `CamModel`, made by `wrap`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from camtools.classes.targets import Targets
from camtools.errors import InputError, ModelError
from camtools.images.preprocess import Preprocess
from camtools.images.read import check_dense
from camtools.model.activations import Activations
from camtools.model.adapter import Adapter, FeatureSpec, find_adapter
from camtools.model.backward import Backward
from camtools.model.capture import Capture
from camtools.model.decomposition import Decomposition, classifier_weights, linear_head
from camtools.model.guard import call_eagerly, lock_of, untouched
from camtools.model.layout import to_nchw
from camtools.model.outputs import class_scores
from camtools.model.pyramid import LevelSpec, Observer, PyramidCapture

T = TypeVar("T")

# What does the same in train and eval mode: a fresh head on a model in eval mode leaves the check as sharp as it is.
_STEADY = frozenset({nn.Linear, nn.Conv2d, nn.Identity, nn.Flatten, nn.Sequential})


@dataclass(frozen=True)
class _Located:
    """What is known of a model once an input has gone through.

    Attributes:
        spec: Where the features live.
        decomposition: How the logits come from them; its `exact` says which kind of weights there are.
        size: (height, width) of the input that this was found on, where it is smaller than the model's own; else None.
        levels: The earlier stages, coarse to fine; None before a step has asked for them.
    """

    spec: FeatureSpec
    decomposition: Decomposition
    size: tuple[int, int] | None = None
    levels: tuple[LevelSpec, ...] | None = None


class CamModel(nn.Module):
    """A classifier with its last features, class weights and class maps within reach, all differentiable.

    Calling it is calling the wrapped model; its `state_dict` has the wrapped model's own keys. Everything else runs
    one forward of the wrapped model in whatever mode it is in.

    Args:
        model: A classifier. DataParallel, DistributedDataParallel and torch.compile wrappers are seen through: maps
            come from the eager module inside, plain calls go through the wrapper.
        spec: Where the features live; None asks the adapter.
        adapter: Who knows; None asks the installed ones.

    Raises:
        ModelError: `model` is not a module, or no adapter knows it.
    """

    def __init__(self, model: nn.Module, spec: FeatureSpec | None = None, adapter: Adapter | None = None) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self.adapter = adapter or find_adapter(unwrapped(model))
        self._given = spec
        self._located: _Located | None = None
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
        return self._location().decomposition

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
        return CamModel(model, self._given, self.adapter)

    def locate(self, x: Tensor) -> Decomposition:
        """Find the features and check the head on one input, in eval mode; the model is left as it was.

        Args:
            x: One model input, (1, 3, H, W).

        Raises:
            ModelError: The model has no map, or returns no class scores.
        """
        model = unwrapped(self.model)
        with untouched(model), torch.no_grad():
            self._located = None
            return self._run(model, x[:1], check=True).decomposition

    def example(self) -> Tensor:
        """Return a random input of the size the model was built for, (1, C, H, W), the same at every call."""
        config = self.adapter.data_config(unwrapped(self.model))
        size = config.get("input_size", (3, 224, 224)) if isinstance(config, dict) else None
        if isinstance(config, Preprocess):
            size = (config.channels, *(config.input_size or (224, 224)))
        if size is None:
            crop = getattr(config, "crop_size", [224])
            size = (3, crop[0], crop[-1])
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
                f"the input is {tuple(x.shape)} {x.dtype}: expected (B, C, H, W); one image is image[None]"
            )
        model = unwrapped(self.model)
        with lock_of(model):
            return self._activations(model, x, pyramid, gradients)

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
            self._located = _Located(spec, activations.decomposition, size, before.levels if before else None)
            stages = capture.stages((x.shape[2], x.shape[3]))
            backward = replace(activations.backward, stages=stages[:gradients])
            return replace(activations, pyramid=tuple(stage.tensor for stage in stages), backward=backward)

    def _found(self, model: nn.Module, x: Tensor) -> tuple[FeatureSpec, tuple[int, int] | None]:
        """Ask the adapter where the features are, and say at what size it looked where that was a small one.

        On an input of a few pixels every layer has one position and looks like the last, so that the model's own
        size is looked at first where the input is smaller.
        """
        if self._given:
            return self._given, None
        spec, probe = self._looked(x, lambda probe: self.adapter.locate(model, probe))
        return spec, (x.shape[2], x.shape[3]) if self._is_small(probe) else None

    def _levels(self, model: nn.Module, x: Tensor) -> tuple[LevelSpec, ...]:
        """The network's stages before F, coarse to fine, found by watching one image's forward in eval mode."""

        def watch(probe: Tensor) -> tuple[LevelSpec, ...]:
            with untouched(model), torch.no_grad(), Observer(model, (probe.shape[2], probe.shape[3])) as observer:
                grid = self._run(model, probe, check=False).decomposition.grid
            return observer.pyramid(grid)

        if self._located is None or self._located.levels is None:
            levels, _ = self._looked(x, watch)
            self._located = replace(self._location(), levels=levels)
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
        except Exception as error:
            raise ModelError(
                f"{type(unwrapped(self.model)).__name__} cannot be run on a random input of shape "
                f"{tuple(example.shape)}: {error}. Show it one of its own inputs first: locate(x)"
            ) from error

    def _forward(
        self, model: nn.Module, spec: FeatureSpec, x: Tensor, unchecked: Decomposition | None, *, cut: bool
    ) -> Activations:
        """Run the model; the decomposition is checked anew, or taken over where one is passed in."""
        capture = Capture(model, spec, cut=cut)
        with capture:
            logits = class_scores(call_eagerly(model, x), x.shape[0])
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
        return Activations(logits, features, decomposition, backward, captured, scores, spec, weight, size)

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
        )


def wrap(model: nn.Module, *, spec: FeatureSpec | None = None, adapter: Adapter | None = None) -> CamModel:
    """Return the classifier with its last features, class weights and class maps within reach.

    Args:
        model: Any classifier; one that is wrapped already is returned as it is.
        spec: Where the features live, for layers of your own choice (`FeatureSpec("layer3")`); None asks the adapter.
        adapter: Who knows; None asks the installed ones, by priority.

    Raises:
        ModelError: `model` is not a module, or no adapter knows it.

    Example:
        >>> cam_model = camtools.wrap(torchvision.models.resnet50())
        >>> cam_model.maps(x, targets=[3, 7]).shape  # x: (2, 3, 224, 224)
        torch.Size([2, 1, 7, 7])
    """
    if isinstance(model, CamModel) and spec is None and adapter is None:
        return model
    return CamModel(model, spec, adapter)


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
