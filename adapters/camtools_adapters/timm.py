"""timm: where its models' features live (`TimmAdapter`), and models by the names of its registry (`TimmSource`).

The adapter reads what models say about themselves (pooling, prefix tokens, classifier), and observes the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm
from timm.data import infer_imagenet_subset, resolve_model_data_config  # type: ignore[attr-defined]
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from camtools.classes.names import imagenet_names, imagenet_synsets
from camtools.errors import ModelError, WeightsError
from camtools.images.preprocess import Preprocess
from camtools.model.adapter import FeatureSpec
from camtools.model.layout import Layout
from camtools.sources.base import Built, Source, no_such_name, way_out
from camtools_adapters.observe import observe

# Vision transformers that pool tokens in `forward_head` by the name in `global_pool`.
TRANSFORMERS = {"VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit"}
# The arguments that a weights file may name.
_FILE_ARGS = """act_layer aux_head class_token depth drop_path_rate drop_rate dynamic_img_size embed_dim global_pool
    img_size in_chans norm_layer num_classes num_heads output_stride pad_type patch_size pos_embed reg_tokens stem_type
    window_size"""


class TimmAdapter:
    """Knows timm's models, subclasses and new heads included."""

    name = "timm"
    priority = 50

    def matches(self, model: nn.Module) -> bool:
        """Return whether the model is, or derives from, one of timm's; its layers alone are none."""
        whole = callable(getattr(model, "get_classifier", None))
        return whole and any(base.__module__.startswith("timm.") for base in type(model).__mro__)

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
        config = dict(resolve_model_data_config(model))
        patches: Any = getattr(model, "patch_embed", None)
        if getattr(patches, "strict_img_size", False) and getattr(patches, "img_size", None):
            config["input_size"] = (config["input_size"][0], *patches.img_size)  # no other size can go in
        return config

    def class_names(self, model: nn.Module) -> Sequence[str] | None:
        """Return the names of the ImageNet subset that the number of classes tells, None where it tells none."""
        return timm_names(model)

    def source(self, model: nn.Module) -> tuple[str | None, dict[str, Any]]:
        """Return the name that builds a model, where its own metadata tells; it needs no arguments."""
        config = getattr(model, "pretrained_cfg", None)
        name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
        own = isinstance(name, str) and type(model).__module__.startswith("timm.")
        return f"timm/{name}" if own else None, {}

    def class_attention(self, model: nn.Module) -> tuple[FeatureSpec, tuple[str, ...]] | None:
        """Return where a ViT's patch tokens are after the last norm, and its attention layers; None without either."""
        if not isinstance(model, VisionTransformer) or model.cls_token is None or isinstance(model.norm, nn.Identity):
            return None
        layers = {f"blocks.{index}.attn": getattr(block, "attn", None) for index, block in enumerate(model.blocks)}
        if any(type(layer) is not Attention for layer in layers.values()):
            return None
        return FeatureSpec("norm", layout=Layout.NLC, prefix_tokens=model.num_prefix_tokens), tuple(layers)

    def strip(self, model: nn.Module) -> float:
        """Take out the functional dropout before the classifier, `model.drop_rate`, and return its probability."""
        rate = getattr(model, "drop_rate", None)
        if not isinstance(rate, float | int) or not 0 < rate < 1:
            return 0.0
        model.drop_rate = 0.0  # type: ignore[assignment]
        return float(rate)


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
    if pool not in ("avg", "avgmax", "max", "map"):
        return None
    head = "attention pooling + linear" if pool == "map" else f"{pool} pooling + norm + linear"
    return FeatureSpec("norm", layout=Layout.NLC, prefix_tokens=prefix, head=head)


def _pooled(model: nn.Module) -> FeatureSpec | None:
    """Read a convolutional head's pooling module."""
    if any(isinstance(m, nn.Conv2d) for m in getattr(model, "pre_logits", nn.Identity()).modules()):
        return None  # VGG: a 7 x 7 convolution flattens the grid before the pooling
    modules = dict(model.named_modules(remove_duplicate=False))
    for layer in ("head.global_pool", "global_pool"):
        if pool := getattr(modules.get(layer), "pool_type", ""):
            layout = getattr(getattr(model, "head", None), "input_fmt", None) or getattr(model, "output_fmt", "NCHW")
            return FeatureSpec(layer, "input", Layout(str(layout)), head=f"{pool} pooling + norm or hidden layers")
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


class TimmSource(Source):
    """A model of timm's registry, or of the Hugging Face hub ("timm/hf-hub:OWNER/NAME")."""

    file_args = frozenset(_FILE_ARGS.split())

    def __init__(self, spec: str, name: str, args: dict[str, Any], size: tuple[int, int] | None = None) -> None:
        """Look the name up.

        Args:
            spec: The full name.
            name: The name within timm, with or without a tag for its published weights.
            args: Keyword arguments for `timm.create_model`.
            size: The input's (height, width); models built for one fixed size are told.

        Raises:
            ModelError: timm knows no such model, or no such tag.
        """
        super().__init__(spec, args)
        self.name = name
        if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
            self.cfg = None
            return
        stem, _, tag = name.partition(".")
        if not timm.is_model(stem):
            raise no_such_name(spec, stem, self.known(), "timm.list_models()")
        tags = [n.partition(".")[2] for n in timm.list_models(f"{stem}.*", pretrained=True)]
        if tag and tag not in tags:
            raise ModelError(f"timm/{stem} has no weights tagged {tag!r}, but {', '.join(tags) or 'none at all'}.")
        self.cfg = timm.models.get_pretrained_cfg(name)
        if size is not None and self.cfg is not None and self.cfg.fixed_input_size:
            self.args.setdefault("img_size", size)

    @staticmethod
    def known() -> list[str]:
        """Return the names of all of timm's models."""
        return list(timm.list_models())

    def empty(self, num_classes: int | None = None) -> Built:
        """Build it with random weights."""
        return self._built(self._construct(timm.create_model, self.name, num_classes=num_classes, **self.args))

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Build it with the weights of its tag, or of timm's default tag, from the Hugging Face hub."""
        if (cfg := self.cfg) is not None:
            if not cfg.has_weights:
                raise WeightsError(f"timm publishes no weights for {self.spec}. {way_out(self.spec)}")
            self._check_published(cfg.num_classes, num_classes, self._hub_url())
        try:
            model = timm.create_model(self.name, pretrained=True, **self.args)
        except TypeError as error:
            raise ModelError(f"{self.spec} cannot be built: {error}") from error
        except Exception as error:
            raise self._unavailable(error) from error
        return self._built(model)

    def convert(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor] | None:
        """Translate a checkpoint in the keys of a model's original authors, where timm has a filter for it."""
        translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if translate is None:
            return None
        try:
            return dict(translate(dict(state), model))
        except Exception:  # the filter expects another edition still; the plain misfit says more than its KeyError
            return None

    def _hub_url(self) -> str | None:
        """Return the Hugging Face hub's address where the weights come from there and its cache lacks them."""
        cfg = self.cfg
        if cfg is None or not cfg.hf_hub_id:
            return None  # another kind of source: let timm find out
        from huggingface_hub import try_to_load_from_cache

        files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        repo, _, revision = cfg.hf_hub_id.partition("@")
        if any(isinstance(try_to_load_from_cache(repo, f, revision=revision or None), str) for f in files):
            return None
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co")

    @staticmethod
    def _built(model: nn.Module) -> Built:
        return Built(model, Preprocess.from_timm(resolve_model_data_config(model)), timm_names(model))


def timm_names(model: Any) -> tuple[str, ...] | None:
    """Return the class names of a timm model: those in its own metadata, else those of the ImageNet subset of its size.

    Args:
        model: A timm model with `num_classes` and `pretrained_cfg`.
    """
    num_classes = getattr(model, "num_classes", None)
    own = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if own and len(own) == num_classes:
        return tuple(str(name) for name in own)
    if num_classes == 0:
        return None
    if num_classes == 1000:
        return imagenet_names()
    subset = infer_imagenet_subset(model)
    return tuple(text.split(",")[0] for text in imagenet_synsets(subset)[1]) if subset else None
