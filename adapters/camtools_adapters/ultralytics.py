"""ultralytics: what its classifiers say of themselves (`UltralyticsAdapter`), and their files (`UltralyticsSource`).

The library is imported only where a file of its is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camtools.errors import ModelError, WeightsError
from camtools.images.preprocess import Preprocess, Transform, as_transform
from camtools.model.adapter import FeatureSpec
from camtools.sources.base import Built, Source
from camtools_adapters.observe import observe


class UltralyticsAdapter:
    """Knows ultralytics' models; of their outputs, (probabilities, logits) in evaluation, the logits count."""

    name = "ultralytics"
    priority = 50

    def matches(self, model: nn.Module) -> bool:
        """Return whether the model is, or derives from, a whole network of ultralytics; its layers alone are none."""
        return any(
            base.__name__ == "BaseModel" and base.__module__ == "ultralytics.nn.tasks" for base in type(model).__mro__
        )

    def locate(self, model: nn.Module, example: Tensor) -> FeatureSpec:
        """Return where F lives: what enters the head's pooling.

        Raises:
            ModelError: The model is no classifier.
        """
        layers: Any = model.model
        head = layers[-1]
        if type(head).__name__ != "Classify":
            raise ModelError(
                f"{type(model).__name__} is no classifier (its last layer is {type(head).__name__}): expected a "
                "ClassificationModel, such as YOLO('yolo11n-cls.pt').model"
            )
        name = f"model.{len(layers) - 1}"
        known = isinstance(getattr(head, "pool", None), nn.AdaptiveAvgPool2d) and hasattr(head, "linear")
        return FeatureSpec(f"{name}.pool", "input", classifier=f"{name}.linear") if known else observe(model, example)

    def data_config(self, model: nn.Module) -> Transform:
        """Return the model's own `transforms`, or what ultralytics does where it has none: squares of `imgsz`."""
        own = getattr(model, "transforms", None)
        if own is not None:
            return _of_compose(own) or as_transform(own)
        told = getattr(model, "args", None)
        size = told.get("imgsz") if isinstance(told, Mapping) else getattr(told, "imgsz", None)
        side = size if isinstance(size, int) else 224
        return Preprocess((side, side), side, mean=(0.0,) * 3, std=(1.0,) * 3)

    def class_names(self, model: nn.Module) -> Sequence[str] | None:
        """Return the model's `names`, unless they are numbers."""
        names: Any = getattr(model, "names", None)
        listed = list(names.values()) if isinstance(names, Mapping) else list(names or ())
        return None if not listed or listed == [str(index) for index in range(len(listed))] else listed


def _of_compose(transforms: Any) -> Preprocess | None:
    """Return what torchvision's resize, centre crop and normalisation do; None where there is anything else."""
    steps = {type(step).__name__: step for step in getattr(transforms, "transforms", ())}
    if list(steps) != ["Resize", "CenterCrop", "ToTensor", "Normalize"]:
        return None
    resize, crop, _, normalise = steps.values()
    size = resize.size if isinstance(resize.size, int) else tuple(resize.size)
    mean, std = (tuple(round(float(value), 6) for value in values) for values in (normalise.mean, normalise.std))
    return Preprocess(tuple(crop.size), size, resize.interpolation.value, mean, std, len(mean))


class UltralyticsSource(Source):
    """`ultralytics:FILE`: a classifier that ultralytics saved (.pt), or one of its configurations (NAME-cls.yaml).

    Files are read with `weights_only=True` and ultralytics' list of known classes, so that they run no code.
    """

    by_colon = True

    def __init__(self, spec: str, name: str, args: dict[str, Any], size: tuple[int, int] | None = None) -> None:
        """Take the name.

        Args:
            spec: The full name.
            name: A file of weights, or the name of a configuration.
            args: None are known.
            size: Not looked at: the network takes any.

        Raises:
            ModelError: ultralytics is not installed, or arguments are given.
        """
        super().__init__(spec, args)
        try:
            import ultralytics  # noqa: F401
        except ImportError as error:
            raise ModelError(
                f"{spec} is a model of ultralytics, which is not installed: pip install 'camtools[ultralytics]'"
            ) from error
        if args:
            raise ModelError(f"{spec} takes no arguments, but {sorted(args)} were given. Leave them out")
        self.name = name

    def empty(self, num_classes: int | None = None) -> Built:
        """Build it with random weights, from its configuration."""
        from ultralytics.nn.tasks import ClassificationModel

        if not self.name.endswith((".yaml", ".yml")):
            raise WeightsError(f"{self.spec} is a file of weights: expected a configuration, such as yolo11n-cls.yaml")
        return Built(self._construct(ClassificationModel, self.name, nc=num_classes, verbose=False))

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Read the file, from which nothing but tensors and ultralytics' own layers is taken.

        Raises:
            WeightsError: There is no such file, it holds something else, or it is for another number of classes.
        """
        from ultralytics.nn.tasks import torch_safe_load

        place = Path(self.name).expanduser()
        if not place.is_file():
            raise WeightsError(f"{self.spec} cannot be loaded: there is no file {place}. Nothing is downloaded")
        before = torch.serialization.get_safe_globals()
        try:
            saved, _ = torch_safe_load(place, safe_only=True)
            model = saved.get("ema") or saved["model"]
        except Exception as error:  # whatever it meets in somebody's file
            said = str(error).strip().partition(chr(10))[0]
            raise WeightsError(f"{self.spec} cannot be loaded: {type(error).__name__}: {said}") from error
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)
        if type(model).__name__ != "ClassificationModel":
            raise WeightsError(f"{self.spec} holds a {type(model).__name__}: expected a ClassificationModel")
        self._check_published(len(model.names), num_classes, None)
        return Built(model.float().eval())
