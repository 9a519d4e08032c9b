"""What a fine-tune starts from: the caller's model and preprocessing, and how its classes go with the data's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camtools.classes.matching import match_classes
from camtools.datasets.selection import Selection
from camtools.errors import InputError, TargetError
from camtools.images.adjusted import adjust
from camtools.images.preprocess import Preprocess, as_transform
from camtools.loading import load_model
from camtools.model.cam_model import unwrapped, wrap
from camtools.model.guard import untouched
from camtools.sources.base import LoadedModel
from camtools.training.data import TrainingSet
from camtools.training.recipe import Recipe


def starting_model(
    model: nn.Module | LoadedModel | str, weights: str | Path | None, transform: Any, names: Sequence[str] | None
) -> LoadedModel:
    """Return the caller's model with its preprocessing and class names, as far as they are known.

    Args:
        model: A classifier, what `load_model` returned, or a name for it.
        weights: Checkpoint, for a model by name.
        transform: The caller's preprocessing; None asks the model.
        names: Of the model's classes; None asks the model.

    Raises:
        InputError: `weights` are given with a model that has its own.
    """
    if isinstance(model, str):
        loaded = load_model(model, weights, class_names=names)
    elif weights is not None:
        raise InputError("weights go with a model's name: expected a module with its weights loaded, or a name")
    elif isinstance(model, LoadedModel):
        loaded = model
    else:
        wrapped = wrap(model)
        inner = unwrapped(wrapped)
        own, preprocess = wrapped.adapter.class_names(inner), wrapped.preprocess if transform is None else None
        loaded = LoadedModel(inner, preprocess, None if own is None else tuple(own), "")
    names = loaded.class_names if names is None else tuple(names)
    return replace(loaded, preprocess=loaded.preprocess if transform is None else transform, class_names=names)


def training_preprocess(transform: Any, recipe: Recipe) -> Preprocess:
    """Return the preprocessing of the trained model, with the recipe's input size.

    Args:
        transform: The start model's; None for ImageNet's.
        recipe: Says the size.

    Raises:
        InputError: It is a transform whose mean and std nobody knows.
    """
    preprocess = Preprocess.imagenet() if transform is None else as_transform(transform)
    if not isinstance(preprocess, Preprocess):
        raise InputError(
            f"training needs the model's mean, std and input size, which {preprocess!r} does not tell: pass "
            "transform=Preprocess.imagenet(size, mean=..., std=...)"
        )
    size = recipe.config.input_size
    changed = adjust(preprocess, size=None if size is None else (size, size))
    assert isinstance(changed, Preprocess)
    return changed


def labels_are_shares(recipe: Recipe, data: TrainingSet) -> bool:
    """Return whether labels are (B, K) shares of classes, rather than one index per image.

    Raises:
        InputError: Images have several classes, and the recipe takes one.
    """
    several = next((i for i, labels in enumerate(data.labels) if len(labels) > 1), None)
    if recipe.multilabel is False and several is not None:
        raise InputError(
            f"{recipe.name} learns one class per image, but {data.name(several)} has {len(data.labels[several])}: "
            "expected single-label data, or a multi-label recipe such as wildcat or excam"
        )
    return several is not None if recipe.multilabel is None else recipe.multilabel


@dataclass(frozen=True)
class ClassFit:
    """How the data's classes and the trained model's go together.

    Attributes:
        index: The trained model's index for each of the data's classes.
        names: Of the trained model's classes.
        fresh: How many classes a fresh classifier has; None where the model's own fits.
        summary: Both in words, for people.
    """

    index: tuple[int, ...]
    names: tuple[str, ...]
    fresh: int | None
    summary: str


def class_count(model: nn.Module) -> int:
    """Return how many classes a classifier has; run on a random input in eval mode, left as it was.

    Raises:
        ModelError: It has no map, or returns no class scores.
    """
    cam_model = wrap(model)
    with untouched(unwrapped(model)), torch.no_grad():
        return cam_model.activations(cam_model.example()).logits.shape[1]


def fit_classes(data: Selection, count: int, names: Sequence[str] | None) -> ClassFit:
    """Keep the model's classifier where each of its classes is one of the data's; else take the data's classes.

    Args:
        data: The training data.
        count: How many classes the model has.
        names: Their names; None where unknown.
    """
    classes = tuple(data.classes)
    same = range(len(classes))
    try:
        match = match_classes(classes, list(same), count, names)
    except TargetError:
        match = None
    if match is None or sorted(match.index) != list(range(count)):
        summary = f"the model has {count} classes, the data {len(classes)}"
        if count == len(classes):
            summary = f"the model's {count} classes have other names than the data's"
        summary += ": a fresh linear classifier takes the old one's place"
        return ClassFit(tuple(same), classes, len(classes), summary)
    own = [classes[label] for label in sorted(same, key=match.index.__getitem__)]
    summary = f"the model's own classifier is kept: {count} classes matched {match.how}"
    return ClassFit(match.index, tuple(own if names is None else names), None, summary)
