"""torchvision.models: one line a family says where its features and its classifier live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn

from camtools.adapter import FeatureSpec
from camtools.layout import Layout
from camtools.names import imagenet_names
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
        """Tell whether the model is, or derives from, a torchvision classifier."""
        return any(base.__module__.startswith("torchvision.models.") for base in type(model).__mro__)

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
        if classifier is None or classifier[1].weight.shape[0] != 1000:
            return None
        return imagenet_names()


def _with_classifier(model: nn.Module, spec: FeatureSpec, head: str) -> FeatureSpec:
    """Claim the last linear layer of the head, whatever a user made of it (a Linear, a Sequential with dropout)."""
    found = _last_classifier(model.get_submodule(head)) if spec.pool != "identity" else None
    if found is None:
        return spec
    return replace(spec, classifier=f"{head}.{found[0]}" if found[0] else head)


def _last_classifier(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d] | None:
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return found[-1] if found else None


def _parameters_with_1000_classes(model: nn.Module) -> int:
    """Number of parameters the model would have with 1,000 classes."""
    total = sum(p.numel() for p in model.parameters())
    found = _last_classifier(model)
    if found is None:
        return total
    weight, bias = found[1].weight, found[1].bias
    per_class = weight[0].numel() + (bias is not None)
    return total + (1000 - weight.shape[0]) * per_class


@cache
def _released() -> dict[int, Any]:
    """Weights of every torchvision classifier, by number of parameters; of several for one model the default ones."""
    kinds = [tv.get_model_weights(name) for name in tv.list_models(module=tv)]
    released = {w.meta["num_params"]: w for kind in kinds for w in reversed(kind)}
    return released | {kind.DEFAULT.meta["num_params"]: kind.DEFAULT for kind in kinds}
