"""timm: what the models say about themselves (pooling, prefix tokens, classifier), and observation for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from timm.data import resolve_data_config  # type: ignore[attr-defined]
from torch import Tensor, nn

from camtools.adapter import FeatureSpec
from camtools.errors import ModelError
from camtools.layout import Layout
from camtools.names import timm_names
from camtools_adapters.observe import observe

# Vision transformers that pool tokens in `forward_head` by the name in `global_pool`.
TRANSFORMERS = {"VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit"}


class TimmAdapter:
    """Knows timm's models, subclasses and new heads included."""

    name = "timm"
    priority = 50

    def matches(self, model: nn.Module) -> bool:
        """Tell whether the model is, or derives from, one of timm's."""
        return any(base.__module__.startswith("timm.") for base in type(model).__mro__)

    def locate(self, model: nn.Module, example: Tensor) -> FeatureSpec:
        """Return where F lives: from metadata where the model has it, else by observing `example`."""
        classifier = _classifier(model)
        if getattr(model, "num_classes", None) == 0 and classifier is None:
            raise ModelError(
                f"{type(model).__name__} has num_classes=0, so it returns pooled features and no class scores. Build "
                "it with num_classes > 0, or give it a head: model.reset_classifier(num_classes)"
            )
        spec = _named(model) or _transformer(model) or _pooled(model)
        return replace(spec, classifier=classifier) if spec else observe(model, example)

    def data_config(self, model: nn.Module) -> dict[str, Any]:
        """Return timm's own data config: input_size, interpolation, mean, std, crop_pct, crop_mode."""
        return dict(resolve_data_config({}, model=model))

    def class_names(self, model: nn.Module) -> Sequence[str] | None:
        """Return the names of the ImageNet subset that the number of classes tells, None where it tells none."""
        return timm_names(model)


def _named(model: nn.Module) -> FeatureSpec | None:
    """Give the families with several branches, and the encoders that are too large to observe quickly."""
    match type(model).__name__:
        case "CrossVit":  # the second branch's class token attends to the first, finer branch's patches
            layer = f"blocks.{_last(model, 'blocks')}.fusion.1"
            if isinstance(model.get_submodule(layer), nn.Sequential):
                layer = f"{layer}.{_last(model, layer)}"
            layer = f"{layer}.norm1"
            return FeatureSpec(layer, "output", Layout.NLC, 1, head="cross attention + class tokens + 2 linear layers")
        case "CoaT" if getattr(model, "parallel_blocks", None) is not None:  # three scales; the last one's tokens
            layer = f"parallel_blocks.{_last(model, 'parallel_blocks')}.norm14"
            return FeatureSpec(layer, "output", Layout.NLC, 1, head="parallel attention + 3 class tokens + linear")
        case "EfficientViM" | "EfficientViMDistilled":  # the other heads read hidden states, which are no positions
            return FeatureSpec(f"norm.{_last(model, 'norm')}", head="avg pooling + linear, summed with 3 state heads")
        case "DeepseekVitClassifier" | "Qwen3VitClassifier" if getattr(model, "global_pool", "") == "avg":
            return FeatureSpec("encoder", layout=Layout.NHWC, head="avg pooling + norm or hidden layers")
        case "Gemma4VitClassifier" if getattr(model, "global_pool", "") == "avg":
            return FeatureSpec("encoder", layout=Layout.NLC, head="avg pooling + norm or hidden layers")
    return None


def _transformer(model: nn.Module) -> FeatureSpec | None:
    """Read a vision transformer's pooling."""
    pool = getattr(model, "global_pool", None)
    if type(model).__name__ not in TRANSFORMERS or not isinstance(pool, str):
        return None
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    if pool == "token":  # after the last attention nothing but the class token counts
        layer = f"blocks.{_last(model, 'blocks')}.attn"
        return FeatureSpec(layer, "input", Layout.NLC, prefix, head="last attention + class token + linear")
    if pool in ("avg", "avgmax", "max"):
        return FeatureSpec("norm", layout=Layout.NLC, prefix_tokens=prefix, head=f"{pool} pooling + norm + linear")
    if pool == "map":
        return FeatureSpec("norm", layout=Layout.NLC, prefix_tokens=prefix, head="attention pooling + linear")
    return None


def _pooled(model: nn.Module) -> FeatureSpec | None:
    """Read a convolutional head's pooling module."""
    if any(isinstance(m, nn.Conv2d) for m in getattr(model, "pre_logits", nn.Identity()).modules()):
        return None  # VGG: a 7 x 7 convolution flattens the grid before the pooling
    for layer in ("head.global_pool", "global_pool"):
        try:
            pool = model.get_submodule(layer)
        except AttributeError:
            continue
        if getattr(pool, "pool_type", ""):
            layout = getattr(getattr(model, "head", None), "input_fmt", None) or getattr(model, "output_fmt", "NCHW")
            return FeatureSpec(
                layer, "input", Layout(str(layout)), head=f"{pool.pool_type} pooling + norm or hidden layers"
            )
    return None


def _last(model: nn.Module, name: str) -> int:
    return len(model.get_submodule(name)) - 1  # type: ignore[arg-type]


def _classifier(model: nn.Module) -> str | None:
    """Dotted name of the classifier's linear layer, found by identity; None where there are several heads or none."""
    get = getattr(model, "get_classifier", None)
    head = get() if get is not None else None
    if not isinstance(head, nn.Module):
        return None
    linear = [m for m in head.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return next((name for name, module in model.named_modules() if linear and module is linear[-1]), None)
