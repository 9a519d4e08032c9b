"""Any classifier that no other adapter knows: found by observing one forward.

What such a model says about itself is read from the attributes that libraries use, or from the one model inside it that
another adapter knows: a module around a timm model (Lightning's, PEFT's, one's own) takes the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from camtools.images.preprocess import Preprocess, as_transform
from camtools.model.adapter import Adapter, FeatureSpec, installed_adapters
from camtools_adapters.observe import observe

# Attributes in which models keep the names of their classes, a list or a mapping from their numbers.
_NAMES = ("class_names", "id2label", "names", "classes", "categories", "label_names", "targets")


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
        """Return the model's attribute `preprocess` where it is a `camtools.Preprocess`, else the model's inside it.

        Where a layer before that model normalises, mean and std are left to it.
        """
        preprocess = getattr(model, "preprocess", None)
        if isinstance(preprocess, Preprocess):
            return preprocess
        configs = [adapter.data_config(module) for adapter, module in inside(model)]
        transforms = [None if config is None else as_transform(config) for config in configs]
        known = transforms[0] if transforms and all(one == transforms[0] for one in transforms) else None
        if isinstance(known, Preprocess) and _normalises(model):
            return replace(known, mean=(0.0,) * known.channels, std=(1.0,) * known.channels)
        return known

    def class_names(self, model: nn.Module) -> Sequence[str] | None:
        """Return the names in one of the attributes that libraries use, else those of the one model inside."""
        if hasattr(model, "class_names") and model.class_names is None:
            return None  # it says so
        if hasattr(model, "class_names") or (names := told_names(model)) is not None:
            return told_names(model)
        found = inside(model)
        return found[0][0].class_names(found[0][1]) if len(found) == 1 else names

    def activation(self, model: nn.Module) -> str | None:
        """Return the model's attribute `score_activation`, "softmax" or "sigmoid"; None where it has none."""
        told = getattr(model, "score_activation", None)
        return told if told in ("softmax", "sigmoid") else None


def told_names(model: Any) -> Sequence[str] | None:
    """Return the class names in a model's own attributes: a list or tuple, or a mapping from every class's number."""
    for attribute in _NAMES:
        names = getattr(model, attribute, None)
        if isinstance(names, Mapping) and set(names) == set(range(len(names))):
            names = [names[index] for index in range(len(names))]
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return names
    return None


def inside(model: nn.Module) -> list[tuple[Adapter, nn.Module]]:
    """Return the outermost modules inside a model that another adapter knows, with that adapter."""
    others = [adapter for adapter in installed_adapters() if adapter.priority > GenericAdapter.priority]
    found: list[tuple[Adapter, nn.Module]] = []
    for child in model.children():
        known = next((adapter for adapter in others if adapter.matches(child)), None)
        found += inside(child) if known is None else [(known, child)]
    return found


def _normalises(model: nn.Module) -> bool:
    """Whether a child of the model holds a mean and a std and nothing to learn: it normalises images."""
    return any(
        getattr(child, "mean", None) is not None and getattr(child, "std", None) is not None
        for child in model.children()
        if not any(True for _ in child.parameters())
    )
