"""Optimiser and learning rate: the classifier's is a multiple of the backbone's; both follow one schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from camtools.errors import InputError, ModelError
from camtools.heads.headed import HeadedModel
from camtools.model.cam_model import wrap
from camtools.training.config import TrainConfig


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters behind the feature map.

    Args:
        model: A model with a replaced head, or any whose classifier is one linear layer.

    Raises:
        ModelError: It has no such layer.
    """
    if isinstance(model, HeadedModel):
        parts = (model.neck, model.head, model.classifier)
        return [parameter for part in parts if part is not None for parameter in part.parameters()]
    weight = wrap(model).class_weights
    owner = next((m for m in model.modules() if any(p is weight for p in m._parameters.values())), None)
    if owner is None:
        raise ModelError(
            f"{type(model).__name__} has no linear classifier whose learning rate could be raised: expected one, or a "
            "recipe that says which parameters are fast (Recipe.fast_parameters)"
        )
    return list(owner.parameters(recurse=False))


def build_optimizer(model: nn.Module, fast: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser, with a group of parameters per rate, the backbone's first.

    The first of `fast_layers` that fits a parameter's name decides; the classifier's rate is `head_lr_factor` times the
    backbone's otherwise. Each group's "base" is the rate that `rate_factor` is a multiple of.

    Args:
        model: What is trained; parameters that need no gradient are left out.
        fast: Those of the classifier.
        config: Settings.

    Raises:
        InputError: Nothing is left to train, or an expression of `fast_layers` fits no name.
    """
    known, factors = {id(parameter) for parameter in fast}, config.layer_factors()
    for expression, _ in factors:
        if not any(expression.search(name) for name, _ in model.named_parameters()):
            some = ", ".join(name for name, _ in list(model.named_parameters())[:3])
            raise InputError(f"fast_layers: {expression.pattern!r} is in no parameter's name, such as {some}")
    rates: dict[float, list[nn.Parameter]] = {1.0: []}  # the backbone's group comes first
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = config.head_lr_factor if id(parameter) in known else 1.0
            factor = next((factor for expression, factor in factors if expression.search(name)), own)
            rates.setdefault(factor, []).append(parameter)
    groups = [
        {"params": parameters, "lr": config.lr * factor, "base": config.lr * factor}
        for factor, parameters in rates.items()
        if parameters
    ]
    if not groups:
        raise InputError(f"{type(model).__name__} has no parameter that needs a gradient: expected some. Unfreeze them")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
    )


def rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Return what the learning rates are multiplied with at a step.

    Args:
        step: From 0.
        steps: In an epoch.
        config: Settings.
    """
    epoch = step / steps
    if epoch < config.warmup:
        return (step + 1) / (math.ceil(config.warmup * steps) + 1)
    if config.schedule == "cosine":
        span = max(config.epochs - config.warmup, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - config.warmup) / span)))
    return config.step_gamma ** (step // steps // config.step_epochs) if config.schedule == "step" else 1.0
