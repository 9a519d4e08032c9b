"""Any classifier that no other adapter knows: found by observing one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from camtools.images.preprocess import Preprocess
from camtools.model.adapter import FeatureSpec
from camtools_adapters.observe import observe


class GenericAdapter:
    """Knows every `nn.Module` and none by name: watches one forward to find the features."""

    name = "generic"
    priority = 0

    def matches(self, model: nn.Module) -> bool:
        """Return True: any module will do."""
        return True

    def locate(self, model: nn.Module, example: Tensor) -> FeatureSpec:
        """Return where F lives, by one forward and a few backward passes over `example`; see `observe`."""
        return observe(model, example)

    def data_config(self, model: nn.Module) -> Any:
        """Return the model's attribute `preprocess` where it is a `camtools.Preprocess`; else it does not tell."""
        preprocess = getattr(model, "preprocess", None)
        return preprocess if isinstance(preprocess, Preprocess) else None

    def class_names(self, model: nn.Module) -> Sequence[str] | None:
        """Return the model's attribute `class_names` where it is a list or tuple of names; else it does not tell."""
        names = getattr(model, "class_names", None)
        return names if isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names) else None
