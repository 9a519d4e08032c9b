"""Any classifier that no other adapter knows: found by observing one forward."""

from __future__ import annotations

from torch import Tensor, nn

from camtools.adapter import FeatureSpec
from camtools_adapters.observe import observe


class GenericAdapter:
    """Knows every `nn.Module` and none by name: watches one forward to find the features."""

    name = "generic"
    priority = 0

    def matches(self, model: nn.Module) -> bool:
        """Tell that any module will do."""
        return True

    def locate(self, model: nn.Module, example: Tensor) -> FeatureSpec:
        """Return where F lives, by one forward and a few backward passes over `example`; see `observe`."""
        return observe(model, example)

    def data_config(self, model: nn.Module) -> None:
        """Return None: a bare module does not tell its preprocessing."""
        return None

    def class_names(self, model: nn.Module) -> None:
        """Return None: a bare module does not tell its classes."""
        return None
