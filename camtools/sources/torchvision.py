"""Classifiers of torchvision, "torchvision/NAME"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camtools.errors import ModelError, WeightsError
from camtools.preprocess import Preprocess
from camtools.sources.base import Built, Source, no_such_name, reachable, way_out

_WITH_AUX = ("googlenet", "inception_v3")
_AUX_KEYS = ("aux1.", "aux2.", "AuxLogits.")
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)")


class TorchvisionSource(Source):
    """A model of `torchvision.models.list_models(module=torchvision.models)`."""

    def __init__(self, spec: str, name: str, args: dict[str, Any]) -> None:
        """Look the name up.

        Args:
            spec: The full name.
            name: The name within torchvision.
            args: Keyword arguments for its constructor.

        Raises:
            ModelError: torchvision has no such model, or it is no image classifier.
        """
        from torchvision import models

        super().__init__(spec, args)
        if name not in self.known():
            if name in models.list_models():
                raise ModelError(f"{spec} is not an image classifier; camtools explains those only.")
            raise no_such_name(spec, name, self.known(), "torchvision.models.list_models()")
        self.name = name
        self.weights = models.get_model_weights(name)

    @staticmethod
    def known() -> list[str]:
        """Return the names of torchvision's image classifiers."""
        from torchvision import models

        return list(models.list_models(module=models))

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
        """Tell whether published weights go by this name, such as "IMAGENET1K_V1"."""
        return tag in self.weights.__members__

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Build it with the weights of a tag, or of torchvision's default tag, from its servers."""
        entry = self.weights[tag] if tag else self.weights.DEFAULT
        classes = len(entry.meta["categories"])
        if num_classes not in (None, classes):
            raise WeightsError(
                f"The published weights of {self.spec} are for {classes} classes; with num_classes={num_classes} "
                f"its classifier would stay random. {way_out(self.spec)}"
            )
        cached = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
        if not cached.exists() and not reachable(entry.url):
            raise WeightsError(
                f"The weights of {self.spec} cannot be downloaded: {entry.url} is out of reach. {way_out(self.spec)}"
            )
        try:
            entry.get_state_dict(progress=False, check_hash=True)
        except Exception as error:
            raise WeightsError(
                f"The weights of {self.spec} cannot be had: {type(error).__name__}: {error}. {way_out(self.spec)}"
            ) from error
        return self._built(self._make(None, weights=entry), entry)

    def convert(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor] | None:
        """Translate the keys of the first DenseNets ("norm.1" is "norm1" today), which are still the published ones."""
        if not self.name.startswith("densenet"):
            return None
        return {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}

    def _make(self, num_classes: int | None, **args: Any) -> nn.Module:
        from torchvision import models

        if num_classes is not None:
            args["num_classes"] = num_classes
        return self._construct(models.get_model, self.name, **(args | self.args))

    def _built(self, model: nn.Module, entry: Any = None) -> Built:
        entry = entry or self.weights.DEFAULT
        return Built(model, Preprocess.from_torchvision(entry.transforms()))
