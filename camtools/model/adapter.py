"""What an adapter is, and how adapters are found.

An adapter answers one question about a model: which tensor F enters the classifier's pooling, in which layout, and
what turns it into logits. camtools itself knows no model library: adapters are found through the entry point group
`camtools.adapters`, its own four (described, timm, torchvision, generic) like anybody else's, and tried in order of
priority.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from camtools.errors import ModelError
from camtools.model.layout import Layout
from camtools.plugins import described, load_plugin, owner, plugins

GROUP = "camtools.adapters"

Activation = Callable[[Tensor], Tensor]
Pooling = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureSpec:
    """Where F lives in a model and what comes after it.

    Attributes:
        layer: Dotted name of a module, as in `model.named_modules()`.
        side: Whether F is the module's "input" or its "output".
        layout: What the axes of that tensor mean.
        prefix_tokens: Class and register tokens before the positions, for token layouts.
        index: Which of several tensors, counted through nested tuples, lists and dicts in order.
        activation: Function between that tensor and the pooling that is no module, such as `torch.relu` in DenseNet.
        classifier: Dotted name of the Linear or 1 x 1 convolution that pooled features enter directly, if there is
            one. camtools checks it against the logits; a claim that fails costs nothing but the exact form.
        pool: "avg", "max" or "avgmax" (their mean); None tries them all; or the pooling itself, a function or module
            from F, (B, C, h, w), to (B, C). "identity" says that F already is one map per class, whose average is the
            logit.
        head: In words, what lies between F and the logits.
        map_pool: For heads that pool after the classifier: from class maps W · F + b, (B, K, h, w), to logits, (B, K).
            `pool` is left out then, or "identity".
    """

    layer: str
    side: Literal["input", "output"] = "output"
    layout: Layout = Layout.NCHW
    prefix_tokens: int = 0
    index: int = 0
    activation: Activation | None = None
    classifier: str | None = None
    pool: Literal["avg", "max", "avgmax", "identity"] | Pooling | None = None
    head: str = ""
    map_pool: Pooling | None = None


@runtime_checkable
class Adapter(Protocol):
    """How camtools learns about a family of models.

    Attributes:
        name: Short name, shown to users.
        priority: Higher is asked first. timm and torchvision have 50, generic has 0.
    """

    name: str
    priority: int

    def matches(self, model: nn.Module) -> bool:
        """Tell whether this adapter knows the model. Must be cheap and must not run it."""
        ...

    def locate(self, model: nn.Module, example: Tensor) -> FeatureSpec:
        """Return where F lives.

        Args:
            model: The model, in eval mode; whatever the adapter does to it while looking is undone.
            example: One input the model accepts, (1, C, H, W), on the model's device.

        Raises:
            ModelError: The model has no map; the message says why.
        """
        ...

    def data_config(self, model: nn.Module) -> Any:
        """Return the model's own preprocessing, or None where the model does not tell.

        Anything `camtools.images.preprocess.as_transform` takes: a timm data config, torchvision weights' transform,
        a `Preprocess`, or a callable from a PIL image to a tensor.
        """
        ...

    def class_names(self, model: nn.Module) -> Sequence[str] | None:
        """Return the names of the classes in order, or None where the model does not tell."""
        ...


@cache
def installed_adapters() -> tuple[Adapter, ...]:
    """Return all adapters found through entry points, highest priority first, ties by name.

    Raises:
        ModelError: An adapter cannot be imported or is not an adapter; names the distribution to fix or remove.
    """
    adapters: list[Adapter] = []
    for point in plugins(GROUP):
        kind = load_plugin(point)
        try:
            adapter = kind()
        except Exception as error:
            raise ModelError(
                f"{described(point)} cannot be loaded: {error}. Fix or uninstall {owner(point)}"
            ) from error
        if not isinstance(adapter, Adapter):
            raise ModelError(
                f"{described(point)} lacks {', '.join(_missing(adapter))}; see camtools.model.Adapter for what it must "
                f"have. Fix or uninstall {owner(point)}"
            )
        adapters.append(adapter)
    return tuple(sorted(adapters, key=lambda adapter: (-adapter.priority, adapter.name)))


def find_adapter(model: nn.Module) -> Adapter:
    """Return the first installed adapter that knows the model.

    Raises:
        ModelError: No adapter knows it; happens only where the generic adapter is not installed.
    """
    adapters = installed_adapters()
    for adapter in adapters:
        if adapter.matches(model):
            return adapter
    raise ModelError(
        f"no adapter knows {type(model).__name__}; installed: {', '.join(a.name for a in adapters) or 'none'}. "
        "Reinstall camtools (pip install camtools) so that its own adapters are found"
    )


def _missing(adapter: object) -> list[str]:
    return [
        a for a in ("name", "priority", "matches", "locate", "data_config", "class_names") if not hasattr(adapter, a)
    ]
