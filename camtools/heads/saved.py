"""One file for a model with a swapped head: its weights as safetensors, and in the header how to build it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camtools.checkpoints import fit, read_checkpoint
from camtools.errors import ModelError, WeightsError
from camtools.files import staging, swap
from camtools.heads.dropout import ADL
from camtools.heads.headed import HeadedModel, MapHead, Origin
from camtools.heads.pooling import GAP, TAP, WGAP
from camtools.heads.wildcat import ExCAM, Wildcat
from camtools.images.preprocess import Preprocess, Transform, as_transform
from camtools.model.adapter import FeatureSpec
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.guard import call_eagerly, untouched
from camtools.model.layout import Layout
from camtools.model.output_stride import set_output_stride

KEY = "camtools.headed"
FORMAT = 1
PROBED = 64  # scores of the probe
PROBE_TOLERANCE = 0.05
_ACTIVATIONS = {"relu": torch.relu}


def save_headed(model: HeadedModel, path: str | Path) -> None:
    """Write a model and how to build it; see `HeadedModel.save`."""
    from safetensors.torch import save_file

    path = Path(path)
    config = configuration(model)
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    try:
        with staging(path.parent) as stage:
            save_file(tensors, stage / path.name, {KEY: json.dumps(config), "format": "pt"})
            swap(stage, path.parent, [path.name])
    except Exception as error:
        raise ModelError(
            f"{path} cannot be written: {str(error).partition(chr(10))[0]}. Nothing was left there; free some room or "
            "name another place"
        ) from error


def configuration(model: HeadedModel) -> dict[str, Any]:
    """Return how to build a model, as JSON's types.

    Raises:
        ModelError: The features' place has a function before the pooling that cannot be written down.
    """
    spec, origin = model.origin.spec, model.origin
    activation = next((name for name, function in _ACTIVATIONS.items() if function is spec.activation), None)
    if spec.activation is not None and activation is None:
        raise ModelError(
            f"the function {spec.activation!r} before the pooling cannot be written to a file: expected none, or "
            "torch.relu. Save model.state_dict() and build the model in your own code"
        )
    reference = next(iter(model.parameters()), torch.empty(0))
    classes = model.classifier.out_features if model.classifier is not None else None
    if isinstance(model.head, MapHead):
        classes = model.head.weight.shape[0]
    return {
        "format": FORMAT,
        "source": origin.source,
        "source_args": origin.source_args,
        "output_stride": origin.output_stride,
        "features": {
            "layer": spec.layer,
            "side": spec.side,
            "layout": str(spec.layout),
            "prefix_tokens": spec.prefix_tokens,
            "index": spec.index,
            "activation": activation,
        },
        "body_classifier": origin.classifier,
        "tail": origin.tail,
        "head": _head_config(model.head),
        "classifier": None
        if model.classifier is None
        else [model.classifier.in_features, model.classifier.out_features, model.classifier.bias is not None],
        "classes": classes,
        "dropout": model.drop.p if isinstance(model.drop, nn.Dropout) else 0.0,
        "dtype": str(reference.dtype).removeprefix("torch."),
        "class_names": model.class_names,
        "outputs": model.outputs,
        "preprocess": _preprocess_config(model.preprocess),
        "probe": _probe(model),
    }


def headed_config(path: str | Path) -> dict[str, Any] | None:
    """Return the configuration in a file's header, None where it is another kind of file or has none.

    Args:
        path: Any file, or none at all.

    Raises:
        WeightsError: It was written by a later camtools.
    """
    from safetensors import safe_open

    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except Exception:  # another kind of file: whoever reads it as weights says what is wrong with it
        return None
    if text is None:
        return None
    config: dict[str, Any] = json.loads(text)
    if config.get("format") != FORMAT:
        raise WeightsError(f"{path} has format {config.get('format')!r} of camtools' heads: expected {FORMAT}. Update "
                           "camtools")  # fmt: skip
    return config


def load_headed(
    path: str | Path, model: nn.Module | None = None, *, head: nn.Module | None = None, preprocess: Any = None
) -> HeadedModel:
    """Read what `HeadedModel.save` wrote.

    Args:
        path: The file.
        model: The classifier that the head was put into, with any weights, before the swap; left as it was. None
            builds it by the name in the file. Name one where the file has none, or to choose the code that runs.
        head: The head, where it is none of camtools' own; its weights come from the file.
        preprocess: The preprocessing, where it was a transform of your own.

    Returns:
        The model in eval mode, on the CPU, with the very weights that were saved.

    Raises:
        WeightsError: The file is no such file, is damaged, or does not fit the model.
        ModelError: The model, head or preprocessing is needed and was not given.
    """
    config = headed_config(path)
    state = read_checkpoint(path)  # says what is wrong with a file that is missing or damaged
    if config is None:
        raise WeightsError(
            f"{path} holds weights without a head's configuration: expected a file that HeadedModel.save wrote. Load "
            "plain weights with camtools.load_model(NAME, FILE)"
        )
    body = _built(config, path) if model is None else copy.deepcopy(model)
    built = _assembled(config, body, head, _preprocess(config, path, preprocess), path)
    fit(built, state, source=str(path), name=config["source"] or type(body).__name__)
    if not _agree(config["probe"], _probe(built)):
        raise WeightsError(
            f"the weights of {path} fit {config['source'] or type(body).__name__}, but its scores are not those that "
            "were saved, so it was built with other arguments. Pass the classifier that the head was put into "
            "(load_headed(path, model=...)), or give replace_head its source_args"
        )
    return built.eval()


def _probe(model: HeadedModel) -> list[float]:
    """Return the first scores of a fixed input, which tell whether a model was built again as it was."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with untouched(model), torch.no_grad():
        found = call_eagerly(model, CamModel(model).example().to(device, dtype))[0, :PROBED].float().tolist()
    return [float(value) for value in found]


def _agree(saved: list[float], now: list[float]) -> bool:
    """Compare two probes as loosely as other devices and reduced precision ask for; NaN agrees with anything."""
    scale = max(map(abs, saved))
    return all(not abs(a - b) > PROBE_TOLERANCE * max(scale, 1e-6) for a, b in zip(saved, now, strict=True))


def _built(config: Mapping[str, Any], path: str | Path) -> nn.Module:
    """Build the body's architecture by its name."""
    from camtools.sources import FunctionSource, find_source

    name = config["source"]
    way_out = f"Build it yourself and pass it: load_headed({str(path)!r}, model=...)"
    if name is None:
        raise ModelError(f"{path} does not say which model the head was put into. {way_out}")
    source = find_source(name, dict(config["source_args"]))
    if isinstance(source, FunctionSource):
        raise ModelError(
            f"{path} names {name}, a function of somebody's own, which a weights file is not allowed to run. {way_out}"
        )
    return source.empty().model


def _assembled(
    config: Mapping[str, Any], body: nn.Module, head: nn.Module | None, preprocess: Transform | None, path: str | Path
) -> HeadedModel:
    """Put a model of the saved form together, with whatever weights."""
    from camtools.heads.replace import strip

    body = unwrapped(body)
    features = config["features"]
    spec = FeatureSpec(
        features["layer"],
        features["side"],
        Layout(features["layout"]),
        features["prefix_tokens"],
        features["index"],
        _ACTIVATIONS.get(features["activation"]),
    )
    made = _head(config, head, path)
    try:
        if config["output_stride"] is not None:
            body = set_output_stride(body, config["output_stride"])
        origin = Origin(
            spec,
            config["body_classifier"],
            source=config["source"],
            source_args=config["source_args"],
            output_stride=config["output_stride"],
        )
        origin, _ = strip(body, origin, CamModel(body).example())
    except (AttributeError, ModelError) as error:
        raise WeightsError(
            f"{path} does not fit {type(body).__name__}: {error}. Pass the classifier that the head was put into"
        ) from error
    linear = config["classifier"]
    classifier = None if linear is None else nn.Linear(linear[0], linear[1], bias=linear[2])
    names = config["class_names"]
    built = HeadedModel(
        body,
        made,
        classifier,
        origin,
        dropout=config["dropout"],
        preprocess=preprocess,
        class_names=None if names is None else tuple(names),
    )
    built.outputs = config.get("outputs", "classes")
    return built.to(dtype=getattr(torch, config["dtype"]))


def _head_config(head: Any) -> dict[str, Any]:
    """Say which head it is; one of somebody's own has its name alone."""
    kind = type(head)
    args: dict[str, Any] = {}
    if kind is TAP:
        args = {"theta": head.theta, "relative": head.relative}
    elif kind is WGAP:
        args = {"divide": head.divide}
    elif kind is Wildcat or kind is ExCAM:
        pool = head.map_pool
        args = {"channels": head.channels, "classes": head.classes, "M": head.M}
        args |= {"k_max": pool.k_max, "k_min": pool.k_min, "alpha": pool.alpha, "halve": pool.halve}
        drop: Any = head.dropout
        if kind is ExCAM:
            args |= {"delta": drop.start, "learnable": drop.logit is not None}
        elif isinstance(drop, ADL):
            args["adl"] = {"drop_rate": drop.drop_rate, "gamma": drop.gamma, "per_map": drop.per_map}
    elif kind is not GAP:
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "own": True}
    return {"class": kind.__name__, "args": args}


def _head(config: Mapping[str, Any], given: nn.Module | None, path: str | Path) -> nn.Module:
    told = config["head"]
    if given is not None:
        return copy.deepcopy(given)
    if told.get("own"):
        raise ModelError(
            f"{path} has a head of its own class, {told['class']}, which camtools does not import by itself. Pass it: "
            f"load_headed({str(path)!r}, head=...)"
        )
    known: dict[str, Any] = {kind.__name__: kind for kind in (GAP, TAP, WGAP, Wildcat, ExCAM)}
    args = dict(told["args"])
    if "adl" in args:
        args["adl"] = ADL(**args["adl"])
    made: nn.Module = known[told["class"]](**args)
    return made


def _preprocess_config(transform: Transform | None) -> dict[str, Any] | str | None:
    if transform is None:
        return None
    return dataclasses.asdict(transform) if isinstance(transform, Preprocess) else "own"


def _preprocess(config: Mapping[str, Any], path: str | Path, given: Any) -> Transform | None:
    told = config["preprocess"]
    if given is not None:
        return as_transform(given)
    if told == "own":
        raise ModelError(
            f"{path} was saved with a transform of somebody's own, which it cannot hold. Pass it: "
            f"load_headed({str(path)!r}, preprocess=...)"
        )
    if told is None:
        return None
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return Preprocess(**options)
