"""Putting a head into a classifier that people already have."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from camtools.checks import whole
from camtools.errors import CamtoolsError, ModelError
from camtools.heads.headed import FeatureHook, HeadedModel, Origin
from camtools.heads.pooling import MapHead
from camtools.images.preprocess import as_transform
from camtools.model.adapter import find_adapter
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.decomposition import name_of
from camtools.model.guard import untouched
from camtools.model.output_stride import set_output_stride
from camtools.sources.base import LoadedModel

Head = nn.Module | Callable[[int, int], nn.Module]


def replace_head(
    model: nn.Module | LoadedModel,
    head: Head,
    *,
    classes: int | None = None,
    keep_classifier: bool = True,
    output_stride: int | None = None,
    class_names: Sequence[str] | None = None,
    preprocess: Any = None,
    source: str | None = None,
    source_args: Mapping[str, Any] | None = None,
) -> HeadedModel:
    """Return a copy of a classifier with another head.

    Args:
        model: A classifier whose logits are W · pool(F) + b; left as it was. A `LoadedModel` brings its name,
            preprocessing and class names with it. A `HeadedModel` gets its head swapped again.
        head: A pooling from F, (B, C, h, w), to (B, C) (`TAP()`, any module of yours), before the model's own dropout
            and classifier; or a `MapHead` that makes logits itself, in place of pooling and classifier. A class or
            function of (channels, classes) is called with the model's: `camtools.heads.Wildcat`,
            `functools.partial(ExCAM, M=4)`.
        classes: K; None keeps the model's. Another number gets a fresh classifier.
        keep_classifier: Whether a pooling keeps the model's own W and b where K stays the same.
        output_stride: 8, 16 or 32: pixels per cell of F, see `set_output_stride`; None leaves the model's.
        class_names: Names by index; None keeps the model's own where K stays the same.
        preprocess: From an image to the model's input, as `camtools.images.as_transform` takes it; None keeps the
            model's own.
        source: The name that `camtools.load_model` builds this model by ("torchvision/mobilenet_v2"), so that a saved
            file loads by itself. Known for timm's models and for a `LoadedModel`.
        source_args: Keyword arguments of its constructor that go with it.

    Returns:
        The model with its head, in the mode that the model was in, on its device.

    Raises:
        ModelError: The classifier is linearised (layers between pooling and classifier), so there is no pooling to
            swap; the head gives another shape; or the output stride cannot be had.

    Example:
        >>> tap = camtools.heads.replace_head(torchvision.models.mobilenet_v2(), camtools.heads.TAP(theta=0.1))
        >>> tap(x).shape  # x: (2, 3, 224, 224)
        torch.Size([2, 1000])
    """
    if isinstance(model, LoadedModel):
        if not isinstance(model.model, HeadedModel):  # which knows its own
            source, source_args = source or model.spec, source_args or model.model_args
        class_names = model.class_names if class_names is None and classes is None else class_names
        preprocess = model.preprocess if preprocess is None else preprocess
        model = model.model
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is a {type(model).__name__}: expected a torch.nn.Module or what load_model returns")
    inner = copy.deepcopy(unwrapped(model))
    cam_model = model.rewrap(inner) if isinstance(model, CamModel) else CamModel(inner)
    if output_stride is not None:
        cam_model = cam_model.rewrap(set_output_stride(cam_model, output_stride))
    inner, example, adapter = unwrapped(cam_model), cam_model.example(), cam_model.adapter
    decomposition = cam_model.decomposition
    if not decomposition.exact:
        raise ModelError(
            f"the head of {type(inner).__name__} is linearised ({decomposition.head}): it has layers between pooling "
            "and classifier, so there is no pooling to swap. Take a model whose head is pooling + linear, such as "
            "torchvision/mobilenet_v2 or resnet50 (`camtools models PATTERN` says which are exact)"
        )
    weight, channels = cam_model.class_weights.detach(), decomposition.channels
    own = weight.shape[0]
    count = own if classes is None else whole("classes", classes, error=ModelError)
    if class_names is None and count == own:
        told = adapter.class_names(inner)
        class_names = told if told is not None and len(told) == count else None
    if class_names is not None and len(class_names) != count:
        raise ModelError(f"class_names has {len(class_names)} names: expected {count}, one per class. Correct them")
    if preprocess is None:
        preprocess = cam_model.preprocess
    made = _made(head, channels, count)
    spec = cam_model.spec
    linear = None if spec.classifier is None or spec.pool == "identity" else inner.get_submodule(spec.classifier)
    bias = getattr(linear, "bias", None)
    body, origin, dropout = _body(cam_model, source, source_args, output_stride)
    fresh = count != own or not keep_classifier
    classifier = None
    if not isinstance(made, MapHead) and (fresh or origin.classifier is not None):
        classifier = nn.Linear(channels, count, bias=fresh or bias is not None).to(weight.device, weight.dtype)
        if not fresh:
            with torch.no_grad():
                classifier.weight.copy_(weight)
                if bias is not None:
                    classifier.bias.copy_(bias)
    headed = HeadedModel(
        body,
        made.to(weight.device, weight.dtype),
        classifier,
        origin,
        dropout=0.0 if classifier is None else dropout,
        preprocess=None if preprocess is None else as_transform(preprocess),
        class_names=None if class_names is None else tuple(class_names),
    )
    _check(headed, example, count, name_of(made))
    return headed.train(model.training)


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


def _body(
    cam_model: CamModel, source: str | None, source_args: Mapping[str, Any] | None, output_stride: int | None
) -> tuple[nn.Module, Origin, float]:
    """Take the head off a copied model, and say how the body came about and which dropout the head had."""
    inner, spec = unwrapped(cam_model), cam_model.spec
    args = dict(source_args or {})
    if isinstance(inner, HeadedModel):
        origin = replace(inner.origin, output_stride=output_stride or inner.origin.output_stride)
        if source is not None:
            origin = replace(origin, source=source, source_args=args)
        return inner.release(), origin, inner.drop.p if isinstance(inner.drop, nn.Dropout) else 0.0
    adapter = find_adapter(inner)
    if isinstance(adapter, BodyAdapter):
        known, always = adapter.source(inner)
        source = source or known
        if source is not None and source.partition("/")[0] == adapter.name:
            args = always | args
    origin = Origin(
        replace(spec, classifier=None, pool=None, map_pool=None, head=""),
        None if spec.pool == "identity" else spec.classifier,
        source=source,
        source_args=args,
        output_stride=output_stride,
    )
    origin, dropout = strip(inner, origin, cam_model.example())
    return inner, origin, dropout


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


def _made(head: Any, channels: int, classes: int) -> nn.Module:
    """Return the head, built for the model where it is a class or function; a module is copied."""
    if isinstance(head, nn.Module):
        made: Any = copy.deepcopy(head)
    elif callable(head):
        try:
            made = head(channels, classes)
        except CamtoolsError:
            raise
        except TypeError as error:
            raise ModelError(
                f"{getattr(head, '__name__', head)!r} cannot be called with ({channels}, {classes}), channels and "
                f"classes: {error}. Pass a module, such as camtools.heads.TAP()"
            ) from error
    else:
        made = head
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"head is {made!r}: expected a module, such as camtools.heads.TAP(), or a class that makes one"
        )
    if isinstance(made, MapHead) and tuple(made.weight.shape) != (classes, channels):
        raise ModelError(
            f"the head's weight is {tuple(made.weight.shape)}: expected {(classes, channels)}, classes and channels of "
            "the model. Pass the class itself, camtools.heads.Wildcat or functools.partial(Wildcat, M=4), to have it "
            "built to fit"
        )
    return made


def _check(headed: HeadedModel, example: Tensor, classes: int, name: str) -> None:
    """Run the result once, and compare what the head gives with what it has to."""
    with untouched(headed), torch.no_grad():
        features = headed.features(torch.cat([example, example.flip(3)]))
        pooled = headed.head(features)
        want = (2, classes if headed.classifier is None else features.shape[1])
        if not isinstance(pooled, Tensor) or tuple(pooled.shape) != want:
            got = f"shape {tuple(pooled.shape)}" if isinstance(pooled, Tensor) else f"a {type(pooled).__name__}"
            raise ModelError(
                f"{name} gave {got} for features of shape {tuple(features.shape)}: expected {want}. A pooling returns "
                "(batch, channels); a head that makes logits itself needs weight, bias and map_pool (camtools.heads."
                "MapHead)"
            )
        headed.logits_of(features)
