"""A classifier with another head: body, features, head, and what camtools needs to know of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camtools.errors import ModelError
from camtools.images.preprocess import Transform
from camtools.model.adapter import FeatureSpec
from camtools.model.decomposition import name_of
from camtools.model.layout import to_nchw
from camtools.model.outputs import replace_tensor, tensors_in


@runtime_checkable
class MapHead(Protocol):
    """A module that makes logits of F by itself: logits = map_pool(W · F + b), with W · F + b one map per class.

    Attributes:
        weight: W, (K, C).
        bias: b, (K,), or None.
        map_pool: From class maps, (B, K, h, w), to logits, (B, K).
    """

    @property
    def weight(self) -> Tensor:
        """W, (K, C)."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """The bias of the class maps, (K,), or None."""
        ...

    @property
    def map_pool(self) -> Callable[[Tensor], Tensor]:
        """From class maps, (B, K, h, w), to logits, (B, K)."""
        ...


@dataclass(frozen=True)
class Origin:
    """How a `HeadedModel` came about: what is saved, so that it can be built again.

    Attributes:
        spec: Where F lives in the body.
        classifier: Dotted name of the body's own classifier, which was taken out; None where F already is class maps.
        tail: What the body's rest is run on, its results being thrown away: the "first" image of the batch, or "all".
        source: The name that `camtools.load_model` builds the model by, or None.
        source_args: Keyword arguments that go with it.
        output_stride: What the body was set to, or None.
    """

    spec: FeatureSpec
    classifier: str | None
    tail: str = "first"
    source: str | None = None
    source_args: dict[str, Any] = field(default_factory=dict)
    output_stride: int | None = None


class Tap:
    """Holds F of the forward that is running; the body goes on with a copy of one image that no gradient follows."""

    def __init__(self, spec: FeatureSpec, tail: str) -> None:
        self.spec, self.tail = spec, tail
        self.value: Tensor | None = None

    def attach(self, body: nn.Module) -> RemovableHandle:
        """Put the hook on the body's layer, from now on."""
        layer = body.get_submodule(self.spec.layer)
        if self.spec.side == "input":
            return layer.register_forward_pre_hook(self.on_input, with_kwargs=True)
        return layer.register_forward_hook(self.on_output)

    def on_input(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Take F where it is the layer's input."""
        return self._take((args, kwargs))

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Take F where it is the layer's output."""
        return self._take(output)

    def _take(self, value: Any) -> Any:
        tensor = list(tensors_in(value))[self.spec.index]
        self.value = tensor
        rest = tensor.detach()
        return replace_tensor(value, tensor, (rest[:1] if self.tail == "first" else rest).clone())


class HeadedModel(nn.Module):
    """A classifier whose pooling, or pooling and classifier, was swapped; made by `camtools.heads.replace_head`.

    It is a plain module for training: every parameter takes part in the logits. What followed F in the body runs on one
    image and without parameters, since its results are not used. It tells camtools about itself (`feature_spec`,
    `preprocess`, `class_names`), so `camtools.explain`, `wrap` and `evaluate` take it as it is.

    Attributes:
        body: The model up to F, its classifier taken out.
        feature_map: The identity; its output is F, (B, C, h, w).
        head: The swapped module.
        drop: The dropout that the model had before its classifier; the identity before a `MapHead`.
        classifier: The linear classifier after a pooling; None after a `MapHead`, or where F already is class maps.
        preprocess: From an image to the model's input, or None.
        class_names: Names by class index, or None.
        outputs: What the outputs are, "classes", or "box" in a `BoxRegressor`.
        origin: How it came about.
    """

    classifier: nn.Linear | None

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        classifier: nn.Linear | None,
        origin: Origin,
        *,
        dropout: float = 0.0,
        preprocess: Transform | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.feature_map = nn.Identity()
        self.head = head
        self.drop: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = classifier
        self.origin = origin
        self.preprocess = preprocess
        self.class_names = class_names
        self.outputs = "classes"
        self._tap = Tap(origin.spec, origin.tail)
        self._handle = self._tap.attach(body)

    def features(self, x: Tensor) -> Tensor:
        """Return F, (B, C, h, w), of model inputs, (B, 3, H, W); what the head pools."""
        spec = self.origin.spec
        try:
            self.body(x)
            found = self._tap.value
        finally:
            self._tap.value = None
        if found is None:
            raise ModelError(f"layer {spec.layer!r} did not run, so it gave no features. Give the model that was built")
        f = to_nchw(found, spec.layout, (x.shape[-2], x.shape[-1]), spec.prefix_tokens)
        features: Tensor = self.feature_map(f if spec.activation is None else spec.activation(f))
        return features

    def logits_of(self, features: Tensor) -> Tensor:
        """Return logits, (B, K), of F, (B, C, h, w): the head alone, for losses that need F as well."""
        pooled: Tensor = self.drop(self.head(features))
        if self.classifier is None:
            return pooled
        logits: Tensor = self.classifier(pooled)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, K), of model inputs, (B, 3, H, W), normalised as the model expects."""
        return self.logits_of(self.features(x))

    def feature_spec(self) -> FeatureSpec:
        """Say where F lives and what makes logits of it; the "described" adapter asks."""
        if isinstance(self.head, MapHead):
            return FeatureSpec("feature_map", classifier="head", map_pool=self.head.map_pool)
        if self.classifier is None:
            return FeatureSpec("feature_map", pool="identity", map_pool=self.head)
        words = f"{name_of(self.head)} pooling + linear"
        return FeatureSpec("feature_map", classifier="classifier", pool=self.head, head=words)

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to one safetensors file, all or nothing; `load_headed` reads it.

        Args:
            path: The file; its folder is made, a file of that name is replaced.

        Raises:
            ModelError: The head or the features' place cannot be written down, or the file cannot be written.
        """
        from camtools.heads.saved import save_headed

        save_headed(self, path)

    def __deepcopy__(self, memo: dict[int, Any]) -> HeadedModel:
        """Copy without the hook, and attach the copy's own."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        self._handle.remove()
        try:
            state = {key: value for key, value in self.__dict__.items() if key not in ("_tap", "_handle")}
            made.__dict__.update(copy.deepcopy(state, memo))
        finally:
            self._handle = self._tap.attach(self.body)
        made._tap = Tap(made.origin.spec, made.origin.tail)
        made._handle = made._tap.attach(made.body)
        return made

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise ModelError(
            "torch.nn.DataParallel shares a model's hooks between threads, so it cannot run a HeadedModel on several "
            "GPUs. Use DistributedDataParallel (accelerate launch)"
        )
