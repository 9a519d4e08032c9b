"""What is left of a classifier whose head goes: the body up to F, without what only the head used."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from camtools.errors import ModelError
from camtools.heads.headed import FeatureHook, Origin
from camtools.model.adapter import FeatureSpec, find_adapter
from camtools.model.guard import untouched


@runtime_checkable
class BodyAdapter(Protocol):
    """What an adapter may also do, for the models whose heads are swapped; without it, models are taken as they are."""

    def source(self, model: nn.Module) -> tuple[str | None, dict[str, Any]]:
        """Return the name that `camtools.load_model` builds the model by, None where it does not tell, and arguments.

        The arguments are those that belong to any name of the adapter's library.
        """

    def strip(self, model: nn.Module) -> float:
        """Take out, in place, what serves training alone: auxiliary classifiers, and dropout that is no module.

        Returns:
            The probability of that dropout; 0 for none.
        """


@runtime_checkable
class AttentionAdapter(Protocol):
    """What an adapter may also do, for vision transformers whose class token's attention is read."""

    def class_attention(self, model: nn.Module) -> tuple[FeatureSpec, tuple[str, ...]] | None:
        """Return where the patch tokens are after the last norm, and the names of all attention layers.

        The class token is the first. Each layer makes softmax(q · k / sqrt(d)) of what its `q_norm` and `k_norm`
        return. None for any other model.
        """


def strip(body: nn.Module, origin: Origin, example: Tensor) -> tuple[Origin, float]:
    """Take a model's classifier and all that only it used out, in place.

    Args:
        body: The whole model.
        origin: Where F and the classifier are.
        example: One input.

    Returns:
        The origin with the tail that works, and the probability of the dropout before the classifier.

    Raises:
        ModelError: There are trained layers between F and the classifier, or the rest cannot run without it.
    """
    adapter = find_adapter(body)
    functional = adapter.strip(body) if isinstance(adapter, BodyAdapter) else 0.0
    dropout = _take_dropout(body, origin, example)
    if origin.classifier is not None:
        body.set_submodule(origin.classifier, nn.Identity())
    pair = torch.cat([example, example])
    problem: Exception | None = None
    for tail in ("first", "all"):
        try:
            with FeatureHook(origin.spec, tail).attach(body), untouched(body), torch.no_grad():
                body(pair)
            return replace(origin, tail=tail), functional if dropout is None else dropout
        except Exception as error:
            problem = error
    raise ModelError(
        f"{type(body).__name__} does not run without its classifier ({type(problem).__name__}: {problem}). Write the "
        "forward so that the classifier's output is returned as it is"
    ) from problem


def _take_dropout(body: nn.Module, origin: Origin, example: Tensor) -> float | None:
    """Take the dropout modules between F and the classifier out of the body; found by running it.

    Returns:
        Their probability together; None where there are none.

    Raises:
        ModelError: Layers with parameters or statistics of their own run between F and the classifier.
    """
    tail: list[tuple[str, nn.Module]] = []  # what runs once F is there
    hook = FeatureHook(origin.spec, "all")

    def note(name: str, module: nn.Module) -> Any:
        return lambda *_: tail.append((name, module)) if hook.value is not None else None

    with ExitStack() as hooks:
        hooks.enter_context(hook.attach(body))
        for name, module in body.named_modules():
            if name not in (origin.classifier, origin.spec.layer) and not any(True for _ in module.children()):
                hooks.enter_context(module.register_forward_pre_hook(note(name, module)))
        with untouched(body), torch.no_grad():
            body(example)
    trained = [name for name, module in tail if [*module.parameters(), *module.buffers()]]
    if trained and origin.classifier is not None:
        raise ModelError(
            f"{type(body).__name__} has trained layers between the features and the classifier ({', '.join(trained)}), "
            "which a swapped head would leave out. Take a model whose head is pooling + linear"
        )
    dropouts = [(name, module.p) for name, module in tail if isinstance(module, nn.modules.dropout._DropoutNd)]
    for name, _ in dropouts:
        body.set_submodule(name, nn.Identity())
    rates = [rate for _, rate in dropouts]
    if len(rates) == 1:
        return float(rates[0])
    return 1 - math.prod(1 - rate for rate in rates) if rates else None
