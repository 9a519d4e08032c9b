"""transformers: what its image classifiers say of themselves (`TransformersAdapter`), and them by name (`HubSource`).

The library is imported only where one of its models is at hand or asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from camtools.errors import ModelError, WeightsError
from camtools.images.preprocess import Preprocess, Transform, as_transform
from camtools.model.adapter import FeatureSpec
from camtools.sources.base import Built, Source, reachable, way_out
from camtools_adapters.observe import observe

# Families without a map, and why.
_WITHOUT = {
    "siglip2": "takes patches that its processor has cut out, (B, patches, values), and no images (B, C, H, W). Wrap "
    "it in a module that cuts images into patches",
    "perceiver": "reads the whole image into latents, which have no place in it, before it classifies",
}


class TransformersAdapter:
    """Knows the models of transformers that have logits; features are found by observing one forward."""

    name = "transformers"
    priority = 50

    def matches(self, model: nn.Module) -> bool:
        """Return whether the model is, or derives from, a model of transformers with a configuration."""
        return any(
            base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.")
            for base in type(model).__mro__
        )

    def locate(self, model: nn.Module, example: Tensor) -> FeatureSpec:
        """Return where F lives, by observing `example`.

        Raises:
            ModelError: The model is no image classifier, or has no map.
        """
        kind = type(model).__name__
        if "Classification" not in kind and getattr(model, "main_input_name", "") == "pixel_values":
            heads = getattr(model.config, "architectures", None) or ["AutoModelForImageClassification"]
            raise ModelError(
                f"{kind} has no classifier: expected a model with logits, such as {heads[0]}. Load it by "
                "AutoModelForImageClassification.from_pretrained(...)"
            )
        if getattr(model, "main_input_name", "pixel_values") == "input_ids":
            raise ModelError(
                f"{kind} takes input_ids and no images (B, C, H, W), so that nothing in it has a place "
                "in an image. camtools explains classifiers of pixels"
            )
        config: Any = model.config
        if (why := _WITHOUT.get(str(config.model_type))) is not None:
            raise ModelError(f"{kind} {why}")
        return observe(model, example)

    def data_config(self, model: nn.Module) -> Transform | None:
        """Return what the image processor beside the model's own files does, where these are on this machine.

        Else what its family's processor does by default, at the configuration's image size, marked as a guess.
        """
        config: Any = model.config
        if str(getattr(config, "model_type", "")) == "timm_wrapper":
            return as_transform(dict(config.pretrained_cfg)) if getattr(config, "pretrained_cfg", None) else None
        own = _processor(str(getattr(config, "_name_or_path", "") or ""))
        vision = getattr(config, "vision_config", None) or config
        return own or _default(str(config.model_type), _side(getattr(vision, "image_size", None)))

    def class_names(self, model: nn.Module) -> Sequence[str] | None:
        """Return the configuration's `id2label`, unless it holds transformers' placeholders (LABEL_0)."""
        labels: Any = getattr(model.config, "id2label", None)
        if not isinstance(labels, Mapping) or set(labels) != set(range(len(labels))) or not labels:
            return None
        names = [str(labels[index]) for index in range(len(labels))]
        return None if names == [f"LABEL_{index}" for index in range(len(names))] else names

    def activation(self, model: nn.Module) -> str | None:
        """Return "sigmoid" where the configuration says that classes are independent; None where it does not tell."""
        multi = getattr(model.config, "problem_type", None) == "multi_label_classification"
        return "sigmoid" if multi else None


@lru_cache(maxsize=16)
def _processor(place: str) -> Transform | None:
    """Return the image processor of a folder, or of a model in the hub's cache; None where there is none here."""
    if not place:
        return None
    from transformers import AutoImageProcessor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = AutoImageProcessor.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        return as_transform(loaded)
    except Exception:  # whatever it raises for a model without a processor, or one that is not here
        return None


@lru_cache(maxsize=64)
def _default(family: str, side: tuple[int, int] | None) -> Preprocess | None:
    """Return what a family's processor does by default, for inputs of (height, width)."""
    import transformers
    from transformers.models.auto import image_processing_auto

    listed = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"].get(family, ())
    for name in listed.values() if isinstance(listed, Mapping) else listed:
        try:
            processor = getattr(transformers, str(name))()
            if side is not None:
                for attribute in ("size", "crop_size"):
                    known = dict(getattr(processor, attribute, None) or {})
                    if set(known) == {"height", "width"}:
                        setattr(processor, attribute, {"height": side[0], "width": side[1]})
                    elif set(known) == {"shortest_edge"} and not getattr(processor, "crop_size", None):
                        setattr(processor, attribute, {"shortest_edge": side[0]})
            known_as = as_transform(processor)
        except Exception:  # one that needs a package more, or arguments
            continue
        if isinstance(known_as, Preprocess):
            return replace(known_as, assumed=f"{name}'s defaults")
    usual = Preprocess.imagenet(side or (224, 224))
    return replace(usual, assumed="ImageNet's usual")


def _side(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None


class HubSource(Source):
    """`hf:FOLDER` or `hf:OWNER/NAME`: an image classifier that transformers saved, from a folder or the hub.

    Weights are read from safetensors only, and no code that comes with a model is ever run.
    """

    by_colon = True
    file_args = frozenset({"num_labels", "image_size", "num_channels"})

    def __init__(self, spec: str, name: str, args: dict[str, Any], size: tuple[int, int] | None = None) -> None:
        """Take the name.

        Args:
            spec: The full name.
            name: A folder, or OWNER/NAME on the hub, with or without "@REVISION".
            args: Changes of the model's configuration.
            size: Not looked at: the configuration says what a model takes.

        Raises:
            ModelError: transformers is not installed.
        """
        super().__init__(spec, args)
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise ModelError(
                f"{spec} is a model of transformers, which is not installed: pip install 'camtools[hf]'"
            ) from error
        self.folder = Path(name).expanduser() if Path(name).expanduser().is_dir() else None
        self.name, _, revision = (str(self.folder), "", "") if self.folder else name.partition("@")
        self.revision = revision or None
        if self.folder is None and name.startswith((".", "/", "~")):
            raise ModelError(f"There is no folder {name}: {spec} names a folder that save_pretrained wrote.")

    def empty(self, num_classes: int | None = None) -> Built:
        """Build it with random weights, from its configuration."""
        from transformers import AutoConfig, AutoModelForImageClassification

        changes = self.args if num_classes is None else {**self.args, "num_labels": num_classes}
        config = self._loaded(AutoConfig.from_pretrained, **changes)
        return Built(self._construct(AutoModelForImageClassification.from_config, config, trust_remote_code=False))

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Build it with its own weights.

        Raises:
            WeightsError: They are not here and cannot be downloaded, are no safetensors, or need code of their own.
        """
        from transformers import AutoModelForImageClassification

        model, told = self._loaded(
            AutoModelForImageClassification.from_pretrained,
            use_safetensors=True,
            output_loading_info=True,
            **self.args,
        )
        missing = sorted(told["missing_keys"])
        if missing:
            raise WeightsError(
                f"{self.spec} has no weights for {len(missing)} tensors of {type(model).__name__}, such as "
                f"{missing[0]}: expected those of an image classifier. {way_out(self.spec)}"
            )
        self._check_published(int(model.config.num_labels), num_classes, None)
        return Built(model)

    def _loaded(self, load: Any, **options: Any) -> Any:
        """Call one of transformers' loaders; what it raises becomes an error in words."""
        from huggingface_hub import constants

        here = self.folder is not None or constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT)
        try:
            return load(
                self.name, revision=self.revision or "main", trust_remote_code=False, local_files_only=here, **options
            )
        except Exception as error:
            said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
            if "trust_remote_code" in str(error) or "custom code" in str(error):
                why = "it comes with code of its own, which camtools never runs"
            elif "safetensors" in str(error):
                why = f"it has no safetensors weights, and others are not opened ({said})"
            elif self.folder is None and here:
                offline = (
                    "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} is out of reach"
                )
                why = f"{offline}, and it is not in the cache {constants.HF_HUB_CACHE} ({said})"
            else:
                why = said
            raise WeightsError(
                f"{self.spec} cannot be loaded: {why}. Give a folder with config.json and model.safetensors, hf:FOLDER"
            ) from error
