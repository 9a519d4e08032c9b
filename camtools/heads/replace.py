"""Putting a head into a classifier that people already have."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from camtools.errors import CamtoolsError, ModelError
from camtools.heads.headed import HeadedModel, MapHead, Origin, Tap
from camtools.images.preprocess import Transform, as_transform
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
    parts = _parts(model, output_stride, source, source_args)
    own = parts.weight.shape[0]
    count = own if classes is None else classes
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ModelError(f"classes is {count!r}: expected a whole number, 1 or more. Leave it out to keep {own}")
    made = _made(head, parts.channels, count)
    is_map_head = isinstance(made, MapHead)
    classifier = None
    if not is_map_head and not (parts.origin.classifier is None and count == own and keep_classifier):
        classifier = nn.Linear(
            parts.channels, count, bias=parts.bias is not None or not keep_classifier or count != own
        )
        classifier = classifier.to(parts.weight.device, parts.weight.dtype)
        if keep_classifier and count == own:
            with torch.no_grad():
                classifier.weight.copy_(parts.weight)
                if parts.bias is not None:
                    classifier.bias.copy_(parts.bias)
    if class_names is None and count == own:
        class_names = parts.class_names
    if class_names is not None and len(class_names) != count:
        raise ModelError(f"class_names has {len(class_names)} names: expected {count}, one a class. Correct them")
    headed = HeadedModel(
        parts.body,
        made.to(parts.weight.device, parts.weight.dtype),
        classifier,
        parts.origin,
        dropout=0.0 if is_map_head or classifier is None else parts.dropout,
        preprocess=parts.preprocess if preprocess is None else as_transform(preprocess),
        class_names=None if class_names is None else tuple(class_names),
    )
    _check(headed, parts.example, count, f"{name_of(made)}")
    return headed.train(model.training)


@dataclass(frozen=True)
class Parts:
    """What a classifier is made of: a copy of its body, and its linear classifier."""

    body: nn.Module
    origin: Origin
    weight: Tensor
    bias: Tensor | None
    channels: int
    dropout: float
    preprocess: Transform | None
    class_names: tuple[str, ...] | None
    example: Tensor


def _parts(
    model: nn.Module, output_stride: int | None, source: str | None, source_args: Mapping[str, Any] | None
) -> Parts:
    """Copy a classifier and take it apart."""
    given = model if isinstance(model, CamModel) else None
    inner = copy.deepcopy(unwrapped(model))
    cam_model = CamModel(inner, given._given if given else None, given.adapter if given else None)
    if output_stride is not None:
        inner = set_output_stride(cam_model, output_stride)
        cam_model = CamModel(inner, given._given if given else None, given.adapter if given else None)
    found, example = cam_model.decomposition, cam_model.example()
    name, spec = type(inner).__name__, cam_model._spec
    assert spec is not None
    if not found.exact:
        raise ModelError(
            f"the head of {name} is linearised ({found.head}): it has layers between pooling and classifier, so there "
            "is no pooling to swap. Take a model whose head is pooling + linear, such as torchvision/mobilenet_v2 or "
            "resnet50 (`camtools models PATTERN` says which are exact)"
        )
    config = cam_model.adapter.data_config(inner)
    names = cam_model.adapter.class_names(inner)
    weight, bias = cam_model.class_weights.detach(), None
    known: dict[str, Any] = {
        "preprocess": None if config is None else as_transform(config),
        "class_names": None if names is None else tuple(names),
        "example": example,
        "weight": weight,
        "channels": found.channels,
    }
    if isinstance(inner, HeadedModel):
        own = inner.classifier if inner.classifier is not None else inner.head
        bias = getattr(own, "bias", None)
        inner._handle.remove()
        origin = replace(inner.origin, output_stride=output_stride or inner.origin.output_stride)
        if source is not None:
            origin = replace(origin, source=source, source_args=dict(source_args or {}))
        dropout = inner.drop.p if isinstance(inner.drop, nn.Dropout) else 0.0
        return Parts(body=inner.body, origin=origin, bias=bias, dropout=dropout, **known)
    classifier = None if spec.pool == "identity" else spec.classifier
    if classifier is not None:
        bias = getattr(inner.get_submodule(classifier), "bias", None)
    args = dict(source_args or {})
    if (source or "").startswith("torchvision/") and hasattr(inner, "transform_input"):
        args.setdefault("transform_input", bool(inner.transform_input))  # published Inceptions have it, others not
    origin = Origin(
        replace(spec, classifier=None, pool=None, map_pool=None, head=""),
        classifier,
        source=source or _timm_source(inner),
        source_args=args,
        output_stride=output_stride,
    )
    origin, dropout = strip(inner, origin, example)
    return Parts(body=inner, origin=origin, bias=bias, dropout=dropout, **known)


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
    _drop_auxiliary_heads(body)
    dropout = _dropout(body, origin, example)
    if origin.classifier is not None:
        parent, _, child = origin.classifier.rpartition(".")
        setattr(body.get_submodule(parent), child, nn.Identity())
    pair = torch.cat([example, example])
    problem: Exception | None = None
    for tail in ("first", "all"):
        handle = Tap(origin.spec, tail).attach(body)
        try:
            with untouched(body), torch.no_grad():
                body(pair)
            return replace(origin, tail=tail), dropout
        except Exception as error:
            problem = error
        finally:
            handle.remove()
    raise ModelError(
        f"{type(body).__name__} does not run without its classifier ({type(problem).__name__}: {problem}). Write the "
        "forward so that the classifier's output is returned as it is"
    ) from problem


def _drop_auxiliary_heads(body: nn.Module) -> None:
    """Take out the second classifiers of torchvision's GoogLeNet and Inception, which no loss here would reach."""
    if getattr(body, "aux_logits", False) is True:
        body.aux_logits = False  # type: ignore[assignment]
    for name in ("aux1", "aux2", "AuxLogits"):
        if isinstance(getattr(body, name, None), nn.Module):
            setattr(body, name, None)


def _dropout(body: nn.Module, origin: Origin, example: Tensor) -> float:
    """Find the dropout between F and the classifier, and take it out of the body.

    Modules are found by running them; timm's functional dropout by the model's `drop_rate`.

    Raises:
        ModelError: Layers with parameters or statistics of their own run between F and the classifier.
    """
    ran: list[tuple[str, nn.Module]] = []
    tap = Tap(origin.spec, "all")

    def note(name: str, module: nn.Module) -> Any:
        return lambda *_: ran.append((name, module)) if tap.value is not None else None

    handles = [tap.attach(body)]
    try:
        handles += [
            module.register_forward_pre_hook(note(name, module))
            for name, module in body.named_modules()
            if not any(True for _ in module.children())
        ]
        with untouched(body), torch.no_grad():
            body(example)
    finally:
        for handle in handles:
            handle.remove()
    tail = [(n, m) for n, m in ran if n not in (origin.classifier, origin.spec.layer)]
    state = [n for n, m in tail if any(True for _ in m.parameters()) or any(True for _ in m.buffers())]
    if state and origin.classifier is not None:
        raise ModelError(
            f"{type(body).__name__} has trained layers between the features and the classifier ({', '.join(state)}), "
            "which a swapped head would leave out. Take a model whose head is pooling + linear"
        )
    rates = [m.p for _, m in tail if isinstance(m, nn.modules.dropout._DropoutNd)]
    for name, module in tail:
        if isinstance(module, nn.modules.dropout._DropoutNd):
            parent, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent), child, nn.Identity())
    rate = getattr(body, "drop_rate", None)
    if not rates and isinstance(rate, float | int) and 0 < rate < 1:
        body.drop_rate = 0.0  # type: ignore[assignment]
        rates = [float(rate)]
    return 1 - math.prod(1 - rate for rate in rates) if len(rates) != 1 else float(rates[0])


def _timm_source(model: nn.Module) -> str | None:
    """The name that builds a timm model, where its own metadata tells."""
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
    return f"timm/{name}" if isinstance(name, str) and type(model).__module__.startswith("timm.") else None


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
