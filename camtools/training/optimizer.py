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
        return [*model.head.parameters(), *(() if model.classifier is None else model.classifier.parameters())]
    weight = wrap(model).class_weights
    owner = next((m for m in model.modules() if any(p is weight for p in m._parameters.values())), None)
    if owner is None:
        raise ModelError(
            f"{type(model).__name__} has no linear classifier whose learning rate could be raised: expected one, or a "
            "recipe that says which parameters are fast (Recipe.fast_parameters)"
        )
    return list(owner.parameters(recurse=False))


def build_optimizer(model: nn.Module, fast: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser, with the backbone's parameters first and the classifier's second.

    Each group's "base" is the rate that `rate_factor` is a multiple of.

    Args:
        model: What is trained; parameters that need no gradient are left out.
        fast: Those of the classifier.
        config: Settings.

    Raises:
        InputError: Nothing is left to train.
    """
    known = {id(parameter) for parameter in fast}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rates = [
        ([parameter for parameter in trained if id(parameter) not in known], config.lr),
        ([parameter for parameter in trained if id(parameter) in known], config.lr * config.head_lr_factor),
    ]
    groups = [{"params": parameters, "lr": rate, "base": rate} for parameters, rate in rates if parameters]
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
