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
    "camtools.evaluation.classes": "camtools.classes.matching",
    "camtools.evaluation.selection": "camtools.datasets.selection",
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

RENAMED = {
    "Picture": "InputImage",
    "Pictures": "InputImages",
    "read_picture": "read_image",
    "read_pictures": "read_images",
    "per_picture": "per_image",
}
"""What is called otherwise in the new place of its module."""


def warn(old: str, new: str) -> None:
    """Say where something went, at the line that asked for it under its old name."""
    warnings.warn(f"{old} is {new} now", DeprecationWarning, stacklevel=3)


class _MovedModules(MetaPathFinder, Loader):
    """Finds old module paths, after every other finder has failed: a module with the names of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        new = MODULES[module.__name__]
        warn(module.__name__, new)
        names = {name: value for name, value in vars(import_module(new)).items() if not name.startswith("__")}
        vars(module).update(names | {old: names[name] for old, name in RENAMED.items() if name in names})


def install() -> None:
    """Make the old module paths work; a second call changes nothing."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
