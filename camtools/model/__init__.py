"""The classifier as camtools sees it: where its features are, how the logits come from them, its earlier stages."""

from camtools.model.activations import Activations
from camtools.model.adapter import Adapter, FeatureSpec, find_adapter, installed_adapters
from camtools.model.cam_model import CamModel, wrap
from camtools.model.decomposition import Decomposition
from camtools.model.layout import Layout
from camtools.model.output_stride import set_output_stride

__all__ = [
    "Activations",
    "Adapter",
    "CamModel",
    "Decomposition",
    "FeatureSpec",
    "Layout",
    "find_adapter",
    "installed_adapters",
    "set_output_stride",
    "wrap",
]
