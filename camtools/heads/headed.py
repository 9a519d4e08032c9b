"""A classifier with another head: body, features, head, and what camtools needs to know of it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camtools.checkpoints import write_tensors
from camtools.checks import as_path
from camtools.errors import InputError, ModelError
from camtools.heads.acol import ACoL
from camtools.heads.bas import BAS
from camtools.heads.decoder import MapDecoder
from camtools.heads.layers import HiddenLayer
from camtools.heads.pooling import GAP, TAP, WGAP, MapHead
from camtools.heads.spg import SPG
from camtools.heads.tscam import TSCAM, ClassAttention
from camtools.heads.twin import Twin
from camtools.heads.wildcat import ExCAM, Wildcat
from camtools.images.preprocess import Preprocess, Transform
from camtools.model.adapter import FeatureSpec
from camtools.model.cam_model import CamModel
from camtools.model.decomposition import name_of
from camtools.model.guard import call_eagerly, lock_of, untouched
from camtools.model.layout import to_nchw
from camtools.model.outputs import replace_tensor, tensors_in

KEY = "camtools.headed"  # in the header of a saved file
FORMAT = 1
PROBED = 64  # scores of the probe
ACTIVATIONS = {"relu": torch.relu}
OWN_HEADS: dict[str, Any] = {
    kind.__name__: kind for kind in (GAP, TAP, WGAP, Wildcat, ExCAM, BAS, ACoL, SPG, TSCAM, HiddenLayer)
}


@dataclass(frozen=True)
class Origin:
    """How a `HeadedModel` came about: what is saved, so that it can be built again.

    Attributes:
        spec: Where F lives in the body.
        classifier: Dotted name of the body's own classifier, which was taken out; None where F already is class maps.
        tail: What the body's rest is run on, its results being thrown away: the "first" image of the batch, or "all".
        source: The name that `camtools.load_model` builds the model by, or None.
        source_args: Keyword arguments that go with it.
        output_stride: What the body was set to, or None.
        dilate: Whether kernels were dilated for it.
        cut: Whether all that ran behind F was taken out.
        attention: Dotted names of the attention layers whose class token's attention is one more channel of F.
    """

    spec: FeatureSpec
    classifier: str | None
    tail: str = "first"
    source: str | None = None
    source_args: dict[str, Any] = field(default_factory=dict)
    output_stride: int | None = None
    dilate: bool = True
    cut: bool = False
    attention: tuple[str, ...] = ()


class FeatureHook:
    """Holds F of the forward that is running; the body goes on with a copy of one image that no gradient follows."""

    def __init__(self, spec: FeatureSpec, tail: str) -> None:
        self.spec, self.tail = spec, tail
        self.value: Tensor | None = None

    def attach(self, body: nn.Module) -> RemovableHandle:
        """Put the hook on the body's layer, from now on."""
        layer = body.get_submodule(self.spec.layer)
        if self.spec.side == "input":
            return layer.register_forward_pre_hook(self.on_input, with_kwargs=True)
        return layer.register_forward_hook(self.on_output)

    def on_input(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Take F where it is the layer's input."""
        return self._take((args, kwargs))

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Take F where it is the layer's output."""
        return self._take(output)

    def _take(self, value: Any) -> Any:
        tensor = list(tensors_in(value))[self.spec.index]
        self.value = tensor
        rest = tensor.detach()
        return replace_tensor(value, tensor, (rest[:1] if self.tail == "first" else rest).clone())


class HeadedModel(nn.Module):
    """A classifier whose pooling, or pooling and classifier, was swapped; made by `camtools.heads.replace_head`.

    It is a plain module for training: every parameter takes part in the logits. What followed F in the body runs on one
    image and without parameters, since its results are not used. It tells camtools about itself (`feature_spec`,
    `preprocess`, `class_names`), so `camtools.explain`, `wrap` and `evaluate` take it as it is.

    Attributes:
        body: The model up to F, its classifier taken out; or a `Twin` of two.
        neck: A fresh convolution and ReLU on the body's features, or the identity.
        feature_map: The identity; its output is F, (B, C, h, w).
        head: The swapped module.
        drop: The dropout that the model had before its classifier; the identity before a `MapHead`.
        classifier: The linear classifier after a pooling; None after a `MapHead`, or where F already is class maps.
        preprocess: From an image to the model's input, or None.
        class_names: Names by class index, or None.
        decoder: A `MapDecoder` of F and the body's earlier stages, which has no part in the logits; or None.
        outputs: What the outputs are, "classes", or "box" or "box xywh" in a `BoxRegressor`.
        origin: How it came about.
    """

    classifier: nn.Linear | None
    decoder: MapDecoder | None

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        classifier: nn.Linear | None,
        origin: Origin,
        *,
        dropout: float = 0.0,
        preprocess: Transform | None = None,
        class_names: tuple[str, ...] | None = None,
        neck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.neck = nn.Identity() if neck is None else neck
        self.feature_map = nn.Identity()
        self.head = head
        self.drop: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = classifier
        self.decoder = None
        self.origin = origin
        self.preprocess = preprocess
        self.class_names = class_names
        self.outputs = "classes"
        self._hook = FeatureHook(origin.spec, origin.tail)
        self._attention = ClassAttention()
        self._handles = [self._hook.attach(body), *self._attention.attach(body, origin.attention)]

    def features(self, x: Tensor) -> Tensor:
        """Return F, (B, C, h, w), of model inputs, (B, 3, H, W); what the head pools. Threads take turns."""
        spec = self.origin.spec
        with nullcontext() if torch.compiler.is_compiling() else lock_of(self):  # the hooks hold one forward's
            self._attention.rows = None  # gradient checkpointing runs the blocks again, after a forward
            try:
                self.body(x)
                captured = self._hook.value
            finally:
                self._hook.value = None
            if captured is None:
                raise ModelError(
                    f"layer {spec.layer!r} did not run, so it gave no features. Give the model that was built"
                )
            if self.origin.attention:
                captured = self._attention.joined(captured)
        f = to_nchw(captured, spec.layout, (x.shape[-2], x.shape[-1]), spec.prefix_tokens)
        features: Tensor = self.feature_map(self.neck(f if spec.activation is None else spec.activation(f)))
        return features

    def logits_of(self, features: Tensor) -> Tensor:
        """Return logits, (B, K), of F, (B, C, h, w): the head alone, for losses that need F as well."""
        logits: Tensor = self.drop(self.head(features))
        if self.classifier is not None:
            logits = self.classifier(logits)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, K), of model inputs, (B, 3, H, W), normalised as the model expects."""
        return self.logits_of(self.features(x))

    def feature_spec(self) -> FeatureSpec:
        """Say where F lives and what makes logits of it; the "described" adapter asks."""
        if isinstance(self.head, MapHead):
            return FeatureSpec("feature_map", classifier="head", map_pool=self.head.map_pool)
        if getattr(self.head, "makes_logits", False):
            return FeatureSpec("feature_map", head=name_of(self.head))
        if self.classifier is None:
            return FeatureSpec("feature_map", pool="identity", map_pool=self.head)
        words = f"{name_of(self.head)} pooling + linear"
        return FeatureSpec("feature_map", classifier="classifier", pool=self.head, head=words)

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to one safetensors file, all or nothing; `load_headed` reads it.

        Args:
            path: The file; its folder is made, a file of that name is replaced.

        Raises:
            ModelError: The head or the features' place cannot be written down, or the file cannot be written.
        """
        header = {KEY: json.dumps(configuration(self)), "format": "pt"}
        # Clones, since two names may stand for one tensor.
        tensors = {key: value.detach().cpu().clone() for key, value in self.state_dict().items()}
        try:
            write_tensors(as_path("path", path, error=ModelError), tensors, header)
        except InputError as error:
            raise ModelError(str(error)) from error

    def release(self) -> nn.Module:
        """Return the body without the hooks, which leaves this model without features."""
        for handle in self._handles:
            handle.remove()
        return self.body

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise ModelError(
            "torch.nn.DataParallel shares a model's hooks between threads, so it cannot run a HeadedModel on several "
            "GPUs. Use DistributedDataParallel (accelerate launch)"
        )


def fresh_neck(channels: int, width: int, dilation: int = 1) -> nn.Sequential:
    """Return the fresh layers that RCAM's and MinMaxCAM's VGG have before the pooling: 3 x 3 convolution and ReLU.

    Source: Bae et al., ECCV 2020; wsolevaluation (He initialisation).

    Args:
        channels: Of the body's features.
        width: Of its own output.
        dilation: Where the output stride was changed after it was put in.
    """
    conv = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.ReLU())


def configuration(model: HeadedModel) -> dict[str, Any]:
    """Return how to build a model, as JSON's types.

    Raises:
        ModelError: The features' place has a function before the pooling that cannot be written down.
    """
    origin, linear = model.origin, model.classifier
    classes = linear.out_features if linear is not None else None
    if getattr(model.head, "makes_logits", False):
        classes = getattr(model.head, "classes", None)
    if isinstance(model.head, MapHead):
        classes = model.head.weight.shape[0]
    head: Any = model.head
    kind, preprocess = type(head), model.preprocess
    if OWN_HEADS.get(kind.__name__) is kind:
        how = {"class": kind.__name__, "args": head.arguments()}
    else:  # the name alone
        how = {"class": f"{kind.__module__}.{kind.__qualname__}", "own": True}
    return {
        "format": FORMAT,
        "source": origin.source,
        "source_args": origin.source_args,
        "output_stride": origin.output_stride,
        "dilate": origin.dilate,
        "cut": origin.cut,
        "attention": origin.attention,
        **_features(model),
        "twin": _features(model.body.first) if isinstance(model.body, Twin) else None,
        "head": how,
        "classifier": None if linear is None else [linear.in_features, linear.out_features, linear.bias is not None],
        "classes": classes,
        "decoder": None if model.decoder is None else model.decoder.arguments(),
        "dropout": model.drop.p if isinstance(model.drop, nn.Dropout) else 0.0,
        "dtype": str(next(iter(model.parameters()), torch.empty(0)).dtype).removeprefix("torch."),
        "class_names": model.class_names,
        "outputs": model.outputs,
        "preprocess": asdict(preprocess) if isinstance(preprocess, Preprocess) else preprocess and "own",
        "probe": probe(model),
    }


def _features(model: HeadedModel) -> dict[str, Any]:
    """Return where the features are in the body, and what stands between them and the head."""
    spec, origin = model.origin.spec, model.origin
    activation = next((name for name, function in ACTIVATIONS.items() if function is spec.activation), None)
    if spec.activation is not None and activation is None:
        raise ModelError(
            f"the function {spec.activation!r} before the pooling cannot be written to a file: expected none, or "
            "torch.relu. Save model.state_dict() and build the model in your own code"
        )
    first: Any = None if isinstance(model.neck, nn.Identity) else model.neck[0]  # type: ignore[index]
    place = {name: getattr(spec, name) for name in ("layer", "side", "prefix_tokens", "index")}
    return {
        "neck": None if first is None else [first.in_channels, first.out_channels, first.dilation[0]],
        "features": place | {"layout": str(spec.layout), "activation": activation},
        "body_classifier": origin.classifier,
        "tail": origin.tail,
    }


def probe(model: HeadedModel) -> list[float]:
    """Return the first scores of a fixed input, which tell whether a model was built again as it was."""
    with untouched(model), torch.no_grad():
        scores: Tensor = call_eagerly(model, CamModel(model).example())[0, :PROBED]
    return scores.float().tolist()
