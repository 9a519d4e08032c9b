"""torchvision.models: where features and classifiers live, and models by name with their published weights.

`TorchvisionAdapter` has a line per family; `TorchvisionSource` builds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn

from camtools.classes.names import default_names
from camtools.errors import ModelError
from camtools.images.preprocess import Preprocess
from camtools.model.adapter import FeatureSpec
from camtools.model.layout import Layout
from camtools.sources.base import Built, Source, no_such_name
from camtools_adapters.observe import observe

# Class -> (where F lives, the module that holds the classifier). Heads that are more than pooling + linear
# (ConvNeXt, MobileNetV3, VGG, AlexNet) are found out when camtools checks the claim.
FAMILIES: dict[type[nn.Module], tuple[FeatureSpec, str]] = {
    tv.AlexNet: (FeatureSpec("features", head="avg pooling to 6 x 6 + 3 linear layers"), "classifier"),
    tv.ConvNeXt: (FeatureSpec("features", head="avg pooling + LayerNorm + linear"), "classifier"),
    tv.DenseNet: (FeatureSpec("features", activation=torch.relu), "classifier"),
    tv.EfficientNet: (FeatureSpec("features"), "classifier"),
    tv.GoogLeNet: (FeatureSpec("inception5b"), "fc"),
    tv.Inception3: (FeatureSpec("Mixed_7c"), "fc"),
    tv.MaxVit: (FeatureSpec("classifier.0", "input", head="avg pooling + LayerNorm + 2 linear layers"), "classifier"),
    tv.MNASNet: (FeatureSpec("layers"), "classifier"),
    tv.MobileNetV2: (FeatureSpec("features"), "classifier"),
    tv.MobileNetV3: (FeatureSpec("features", head="avg pooling + 2 linear layers"), "classifier"),
    tv.RegNet: (FeatureSpec("trunk_output"), "fc"),
    tv.ResNet: (FeatureSpec("layer4"), "fc"),
    tv.ShuffleNetV2: (FeatureSpec("conv5"), "fc"),
    # 1 x 1 convolution, ReLU, pooling: what enters the pooling already is one map per class.
    tv.SqueezeNet: (FeatureSpec("classifier.3", "input", pool="identity"), "classifier"),
    tv.SwinTransformer: (FeatureSpec("permute"), "head"),
    tv.VGG: (FeatureSpec("features", head="avg pooling to 7 x 7 + 3 linear layers"), "classifier"),
}


class TorchvisionAdapter:
    """Knows the classifiers of `torchvision.models`, subclasses and new heads included."""

    name = "torchvision"
    priority = 50

    def matches(self, model: nn.Module) -> bool:
        """Return whether the model is, or derives from, a torchvision classifier; its layers alone are none."""
        return any(
            base.__module__.startswith("torchvision.models.") and "num_classes" in signature(base).parameters
            for base in type(model).__mro__
        )

    def locate(self, model: nn.Module, example: Tensor) -> FeatureSpec:
        """Return where F lives; families that are not in the table (quantised ones, newer ones) are observed."""
        if isinstance(model, tv.VisionTransformer):
            last = list(dict(model.encoder.layers.named_children()))[-1]
            layer = f"encoder.layers.{last}.ln_1"
            return FeatureSpec(layer, layout=Layout.NLC, prefix_tokens=1, head="last attention + class token + linear")
        for family, (spec, head) in FAMILIES.items():
            if isinstance(model, family):
                return _with_classifier(model, spec, head)
        return observe(model, example)

    def data_config(self, model: nn.Module) -> Any:
        """Return the transform that the model's best released weights were evaluated with.

        A model does not carry its name, so it is told by its number of parameters.
        """
        if isinstance(model, (tv.GoogLeNet, tv.Inception3)):  # whose auxiliary heads may be there or not
            google = isinstance(model, tv.GoogLeNet)
            return (tv.GoogLeNet_Weights if google else tv.Inception_V3_Weights).DEFAULT.transforms()
        weights = _released().get(_parameters_with_1000_classes(model), tv.ResNet50_Weights.DEFAULT)
        return weights.transforms()

    def class_names(self, model: nn.Module) -> Sequence[str] | None:
        """Return the ImageNet-1k names for models with 1,000 classes."""
        classifier = _last_classifier(model)
        return default_names(classifier and classifier[1].weight.shape[0])

    def source(self, model: nn.Module) -> tuple[str | None, dict[str, Any]]:
        """Return no name, which models do not carry, and whether an Inception normalises its input, as published."""
        transforms = getattr(model, "transform_input", None)
        return None, {} if transforms is None else {"transform_input": bool(transforms)}

    def strip(self, model: nn.Module) -> float:
        """Take out the second classifiers of GoogLeNet and Inception, which no loss would reach."""
        if getattr(model, "aux_logits", False):
            model.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if isinstance(getattr(model, name, None), nn.Module):
                setattr(model, name, None)
        return 0.0


def _with_classifier(model: nn.Module, spec: FeatureSpec, head: str) -> FeatureSpec:
    """Claim the last linear layer of the head, whatever a user made of it (a Linear, a Sequential with dropout)."""
    last = _last_classifier(model.get_submodule(head)) if spec.pool != "identity" else None
    return spec if last is None else replace(spec, classifier=f"{head}.{last[0]}" if last[0] else head)


def _last_classifier(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d] | None:
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return layers[-1] if layers else None


def _parameters_with_1000_classes(model: nn.Module) -> int:
    """Number of parameters the model would have with 1,000 classes."""
    total = sum(p.numel() for p in model.parameters())
    last = _last_classifier(model)
    if last is None:
        return total
    weight, bias = last[1].weight, last[1].bias
    per_class = weight[0].numel() + (bias is not None)
    return total + (1000 - weight.shape[0]) * per_class


@cache
def _released() -> dict[int, Any]:
    """Weights of every torchvision classifier, by number of parameters; of several for one model the default ones."""
    kinds = [tv.get_model_weights(name) for name in tv.list_models(module=tv)]
    released = {w.meta["num_params"]: w for kind in kinds for w in reversed(kind)}
    return released | {kind.DEFAULT.meta["num_params"]: kind.DEFAULT for kind in kinds}


_WITH_AUX = ("googlenet", "inception_v3")
_AUX_KEYS = ("aux1.", "aux2.", "AuxLogits.")
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)")
# The arguments that a weights file may name.
_FILE_ARGS = """attention_dropout aux_logits dropout groups image_size init_weights num_classes stochastic_depth_prob
    replace_stride_with_dilation transform_input width_mult width_per_group zero_init_residual"""


class TorchvisionSource(Source):
    """A model of `torchvision.models.list_models(module=torchvision.models)`."""

    file_args = frozenset(_FILE_ARGS.split())

    def __init__(self, spec: str, name: str, args: dict[str, Any], size: tuple[int, int] | None = None) -> None:
        """Look the name up.

        Args:
            spec: The full name.
            name: The name within torchvision.
            args: Keyword arguments for its constructor.
            size: Not looked at: no model of torchvision has to be told its input's size.

        Raises:
            ModelError: torchvision has no such model, or it is no image classifier.
        """
        super().__init__(spec, args)
        if name not in self.known():
            if name in tv.list_models():
                raise ModelError(f"{spec} is not an image classifier; camtools explains those only.")
            raise no_such_name(spec, name, self.known(), "torchvision.models.list_models()")
        self.name = name
        self.weights = tv.get_model_weights(name)

    @staticmethod
    def known() -> list[str]:
        """Return the names of torchvision's image classifiers."""
        return list(tv.list_models(module=tv))

    def empty(self, num_classes: int | None = None) -> Built:
        """Build it with random weights."""
        args = {"init_weights": False} if self.name in _WITH_AUX else {}
        return self._built(self._make(num_classes, **args))

    def for_checkpoint(self, num_classes: int | None, state: Mapping[str, Tensor], path: Path) -> Built:
        """Build it empty: with auxiliary heads where the file has them, and as published where it bears that name."""
        entry = next((w for w in self.weights if w.url.rpartition("/")[2] == path.name), self.weights.DEFAULT)
        args: dict[str, Any] = {}
        if self.name in _WITH_AUX:
            published = entry.url.rpartition("/")[2] == path.name
            aux = any(_AUX_KEYS[0] in key or key.startswith(_AUX_KEYS) for key in state)
            args = {"init_weights": False, "aux_logits": aux, "transform_input": published}
        return self._built(self._make(num_classes, **args), entry)

    def has_published(self, tag: str) -> bool:
        """Return whether published weights go by this name, such as "IMAGENET1K_V1"."""
        return tag in self.weights.__members__

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Build it with the weights of a tag, or of torchvision's default tag, from its servers."""
        entry = self.weights[tag] if tag else self.weights.DEFAULT
        classes = len(entry.meta["categories"])
        cached = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
        self._check_published(classes, num_classes, None if cached.exists() else entry.url)
        try:
            entry.get_state_dict(progress=False, check_hash=True)
        except Exception as error:
            raise self._unavailable(error) from error
        return self._built(self._make(None, weights=entry), entry)

    def convert(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor] | None:
        """Translate the keys of the first DenseNets ("norm.1" is "norm1" today), which are still the published ones."""
        if not self.name.startswith("densenet"):
            return None
        return {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}

    def _make(self, num_classes: int | None, **args: Any) -> nn.Module:
        if num_classes is not None:
            args["num_classes"] = num_classes
        return self._construct(tv.get_model, self.name, **(args | self.args))

    def _built(self, model: nn.Module, entry: Any = None) -> Built:
        entry = entry or self.weights.DEFAULT
        return Built(model, Preprocess.from_torchvision(entry.transforms()))
