"""Where things of the earlier, flat layout went: old names and module paths still work, with a warning in words."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NAMES = {
    "Adapter": "camtools.model",
    "BoxRegressor": "camtools.heads",
    "Decomposition": "camtools.model",
    "FeatureSpec": "camtools.model",
    "Geometry": "camtools.images",
    "HeadedModel": "camtools.heads",
    "Layout": "camtools.model",
    "LoadedModel": "camtools.sources",
    "Recipe": "camtools.training",
    "TraceStep": "camtools.pipeline",
    "calibrated": "camtools.evaluation",
    "load_headed": "camtools.heads",
    "replace_head": "camtools.heads",
    "set_output_stride": "camtools.model",
}
"""Names that `camtools` itself had, and the package that has them now."""

MODULES = {
    "camtools.activations": "camtools.model.activations",
    "camtools.adapter": "camtools.model.adapter",
    "camtools.box_regressor": "camtools.heads.box_regressor",
    "camtools.capture": "camtools.model.capture",
    "camtools.coco": "camtools.boxes",
    "camtools.crf": "camtools.steps.dense_crf",
    "camtools.decomposition": "camtools.model.decomposition",
    "camtools.geometry": "camtools.images.geometry",
    "camtools.guard": "camtools.model.guard",
    "camtools.inputs": "camtools.images.read",
    "camtools.layout": "camtools.model.layout",
    "camtools.legend": "camtools.drawing.legend",
    "camtools.logits": "camtools.model.outputs",
    "camtools.names": "camtools.classes.names",
    "camtools.output_stride": "camtools.model.output_stride",
    "camtools.overlay": "camtools.drawing.overlay",
    "camtools.palette": "camtools.drawing.colours",
    "camtools.percentile": "camtools.steps.percentile",
    "camtools.preprocess": "camtools.images.preprocess",
    "camtools.presets": "camtools.pipeline.presets",
    "camtools.stages": "camtools.model.pyramid",
    "camtools.targets": "camtools.classes.targets",
    "camtools.trace": "camtools.pipeline.trace",
}
"""Modules that a user could have imported, and those that hold their names now."""


class _MovedModules(MetaPathFinder, Loader):
    """Finds old module paths, after every other finder has failed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = MODULES[module.__name__]
        warnings.warn(f"{module.__name__} is {new} now", DeprecationWarning, stacklevel=2)
        module.__getattr__ = import_module(new).__getattribute__  # type: ignore[method-assign]


def install() -> None:
    """Make the old module paths work; a second call changes nothing."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
