"""Putting a head into a classifier that people already have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from camtools.checks import whole
from camtools.errors import CamtoolsError, ModelError
from camtools.heads.body import AttentionAdapter, BodyAdapter, strip
from camtools.heads.cut import cut_spec, take_out_after
from camtools.heads.headed import HeadedModel, Origin, fresh_neck
from camtools.heads.pooling import MapHead
from camtools.images.preprocess import as_transform
from camtools.model.adapter import FeatureSpec, find_adapter
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.decomposition import name_of
from camtools.model.guard import untouched
from camtools.model.output_stride import set_output_stride
from camtools.sources.base import LoadedModel

FRESH_CHANNELS = 1024  # of the fresh convolution in RCAM's, MinMaxCAM's and wsolevaluation's VGG16
Head = nn.Module | Callable[[int, int], nn.Module]


def replace_head(
    model: nn.Module | LoadedModel,
    head: Head,
    *,
    classes: int | None = None,
    keep_classifier: bool = True,
    output_stride: int | None = None,
    dilate: bool = True,
    cut_after: str | None = None,
    conv: int | None = None,
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
            and classifier; or a `MapHead` that makes logits itself, in place of pooling and classifier, or a module
            that says so by `makes_logits = True`, whose maps then are linearised. A class or
            function of (channels, classes) is called with the model's: `camtools.heads.Wildcat`,
            `functools.partial(ExCAM, M=4)`. `camtools.heads.TSCAM` wants a vision transformer of timm's.
        classes: K; None keeps the model's. Another number gets a fresh classifier.
        keep_classifier: Whether a pooling keeps the model's own W and b where K stays the same.
        output_stride: 8, 16 or 32: pixels per cell of F, see `set_output_stride`; None leaves the model's.
        dilate: Whether kernels are dilated for it. False drops strides alone, for models that are trained afterwards.
        cut_after: Name of a layer behind which the network ends ("layer3", "features.14"), as in
            `model.named_modules()`: F is its output, and the classifier is fresh. None keeps the whole network.
        conv: Channels of a fresh 3 x 3 convolution and ReLU between the network and the head, before a fresh
            classifier (1,024 in RCAM's, MinMaxCAM's and wsolevaluation's VGG16); 0 or None for none, but None puts
            1,024 into a model whose own classifier cannot be kept, since its head is linearised (VGG16).
        class_names: Names by index; None keeps the model's own where K stays the same.
        preprocess: From an image to the model's input, as `camtools.images.as_transform` takes it; None keeps the
            model's own.
        source: The name that `camtools.load_model` builds this model by ("torchvision/mobilenet_v2"), so that a saved
            file loads by itself. Known for timm's models and for a `LoadedModel`.
        source_args: Keyword arguments of its constructor that go with it.

    Returns:
        The model with its head, in the mode that the model was in, on its device.

    Raises:
        ModelError: The head gives another shape; the output stride cannot be had, or there is no layer `cut_after`.

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
        cam_model = cam_model.rewrap(set_output_stride(cam_model, output_stride, dilate=dilate))
    inner, example, adapter = unwrapped(cam_model), cam_model.example(), cam_model.adapter
    with untouched(inner), torch.no_grad():
        own = cam_model.activations(example).logits.shape[1]
    place = _place(cam_model, example, cut_after, conv, getattr(getattr(head, "func", head), "reads_attention", False))
    count = own if classes is None else whole("classes", classes, error=ModelError)
    if class_names is None and count == own:
        told = adapter.class_names(inner)
        class_names = told if told is not None and len(told) == count else None
    if class_names is not None and len(class_names) != count:
        raise ModelError(f"class_names has {len(class_names)} names: expected {count}, one per class. Correct them")
    if preprocess is None:
        preprocess = cam_model.preprocess
    fresh = count != own or not keep_classifier or place.ends
    spec = place.spec
    linear = None if spec.classifier is None or spec.pool == "identity" else inner.get_submodule(spec.classifier)
    bias = getattr(linear, "bias", None)
    weight = None if place.ends else cam_model.class_weights.detach()
    stride: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride, "dilate": dilate}
    body, origin, dropout = _body(cam_model, place, source, source_args, stride)
    made = _made(head, place.channels, count)
    classifier = None
    logits = isinstance(made, MapHead) or getattr(made, "makes_logits", False)
    if not logits and (fresh or origin.cut or origin.classifier is not None):
        classifier = nn.Linear(place.channels, count, bias=fresh or bias is not None).to(example)
        if weight is not None and not fresh:
            with torch.no_grad():
                classifier.weight.copy_(weight)
                if bias is not None:
                    classifier.bias.copy_(bias)
    headed = HeadedModel(
        body,
        made.to(example),
        classifier,
        origin,
        dropout=0.0 if classifier is None else dropout,
        preprocess=None if preprocess is None else as_transform(preprocess),
        class_names=None if class_names is None else tuple(class_names),
        neck=place.neck,
    )
    _check(headed, example, count, name_of(made))
    return headed.train(model.training)


@dataclass(frozen=True)
class _Place:
    """Where in a network the new head goes.

    Attributes:
        spec: The features that the body ends with.
        channels: Of what the head gets.
        ends: Whether what runs behind the features is left out, the classifier with it.
        neck: What stands between the features and the head, or None.
        attention: Names of the attention layers whose class token's attention is one more channel.
    """

    spec: FeatureSpec
    channels: int
    ends: bool
    neck: nn.Module | None
    attention: tuple[str, ...] = ()


def _place(cam_model: CamModel, example: Tensor, cut_after: str | None, conv: int | None, attention: bool) -> _Place:
    """Say where the head goes; see `replace_head` for `cut_after` and `conv`."""
    inner, decomposition = unwrapped(cam_model), cam_model.decomposition
    spec, channels, neck = cam_model.spec, decomposition.channels, None
    if isinstance(inner, HeadedModel):
        neck, channels = inner.neck, channels - bool(inner.origin.attention)
    if attention:
        if cut_after is not None or conv:
            raise ModelError(
                f"cut_after={cut_after!r}, conv={conv!r}: this head reads the tokens after a transformer's last norm, "
                "by its own convolution, expected neither. Leave them out"
            )
        spec, layers = _class_attention(inner)
        return _Place(spec, channels, True, None, layers)
    if isinstance(inner, HeadedModel) and cut_after is not None:
        raise ModelError(
            f"cut_after={cut_after!r}: the model has another head already. Cut the model that it was put into"
        )
    if cut_after is not None:
        spec, channels = cut_spec(inner, cut_after, example)
    elif conv is None and not decomposition.exact:
        conv = FRESH_CHANNELS
    if conv:
        before: Any = neck[0].in_channels if isinstance(neck, nn.Sequential) else channels
        neck = fresh_neck(before, whole("conv", conv, error=ModelError)).to(example)
        channels = conv
    return _Place(spec, channels, bool(conv) or cut_after is not None or not decomposition.exact, neck)


def _class_attention(inner: nn.Module) -> tuple[FeatureSpec, tuple[str, ...]]:
    """Return where a vision transformer's patch tokens are, and which layers' attention goes with them."""
    if isinstance(inner, HeadedModel) and inner.origin.attention:
        return inner.origin.spec, inner.origin.attention
    adapter = find_adapter(inner)
    found = adapter.class_attention(inner) if isinstance(adapter, AttentionAdapter) else None
    if found is None:
        raise ModelError(
            f"{type(inner).__name__}: this head reads a class token's attention and the patch tokens after the last "
            "norm, expected a VisionTransformer of timm's, such as deit_small_patch16_224, with a class token and "
            "global_pool='token', and no other head yet. Take such a model, or another head or recipe"
        )
    return found


def _body(
    cam_model: CamModel,
    place: _Place,
    source: str | None,
    source_args: Mapping[str, Any] | None,
    stride: dict[str, Any],
) -> tuple[nn.Module, Origin, float]:
    """Take the head off a copied model, and say how the body came about and which dropout the head had."""
    inner, spec = unwrapped(cam_model), place.spec
    args = dict(source_args or {})
    if isinstance(inner, HeadedModel):
        origin = replace(inner.origin, attention=place.attention, **stride)
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
        None if place.ends or spec.pool == "identity" else spec.classifier,
        source=source,
        source_args=args,
        cut=place.ends,
        attention=place.attention,
        **stride,
    )
    if place.ends:
        take_out_after(inner, origin.spec, cam_model.example())
    origin, dropout = strip(inner, origin, cam_model.example())
    return inner, origin, dropout


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
