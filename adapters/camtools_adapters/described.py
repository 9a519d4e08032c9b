"""Models that describe themselves: any module with a method `feature_spec`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from camtools.errors import ModelError
from camtools.model.adapter import FeatureSpec
from camtools_adapters.generic import GenericAdapter


class DescribedAdapter(GenericAdapter):
    """Knows every module that has a method `feature_spec()`, whatever its library; asked before all others."""

    name = "described"
    priority = 100

    def matches(self, model: nn.Module) -> bool:
        """Return whether the model has the method."""
        return callable(getattr(model, "feature_spec", None))

    def locate(self, model: nn.Module, example: Tensor) -> FeatureSpec:
        """Return what the model's own `feature_spec()` says; `example` is not needed.

        Raises:
            ModelError: It returns something else than a `FeatureSpec`.
        """
        describe: Any = model.feature_spec
        spec = describe()
        if not isinstance(spec, FeatureSpec):
            raise ModelError(
                f"{type(model).__name__}.feature_spec() returned {spec!r}: expected a camtools.model.FeatureSpec. "
                'Return one, such as FeatureSpec("features", classifier="classifier"), or rename the method'
            )
        return spec

    def data_config(self, model: nn.Module) -> Any:
        """Return the model's attribute `preprocess`: whatever `as_transform` takes, or None."""
        return getattr(model, "preprocess", None)
