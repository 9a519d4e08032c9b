"""Reading a model with a swapped head from the file that `HeadedModel.save` wrote."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camtools.checkpoints import fit, read_checkpoint
from camtools.checks import as_path
from camtools.errors import CamtoolsError, ModelError, WeightsError
from camtools.files import parse_json
from camtools.heads.body import strip
from camtools.heads.cut import take_out_after
from camtools.heads.decoder import MapDecoder
from camtools.heads.dropout import ADL
from camtools.heads.headed import ACTIVATIONS, FORMAT, KEY, OWN_HEADS, HeadedModel, Origin, fresh_neck, probe
from camtools.heads.twin import Twin
from camtools.images.preprocess import Preprocess, Transform, as_transform
from camtools.model.adapter import FeatureSpec
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.layout import Layout
from camtools.model.output_stride import set_output_stride
from camtools.sources import find_source

PROBE_TOLERANCE = 0.05
_NAME = re.compile(r"lite0|scenes|[a-z_]+/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")  # no scheme, no path, no module:function
_WORD = re.compile(r"[A-Za-z0-9_]{0,64}")
_LARGEST = 1 << 12  # sizes beyond it have to be those of a tensor in the file


def headed_config(path: str | Path) -> dict[str, Any] | None:
    """Return the configuration in a file's header, None where it is another kind of file or has none.

    Args:
        path: Any file, or none at all.

    Raises:
        WeightsError: It was written by a later camtools.
    """
    from safetensors import safe_open

    if not as_path("path", path, error=WeightsError).is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except Exception:  # another kind of file: whoever reads it as weights says what is wrong with it
        return None
    if text is None:
        return None
    try:
        config = parse_json(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise WeightsError(
            f"the configuration in {path} is damaged: expected JSON that HeadedModel.save wrote. Save the model again"
        )
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
    try:
        _check_sizes(config, {size for tensor in state.values() for size in tensor.shape})
        body = _body(config, path) if model is None else copy.deepcopy(model)
        built = _assembled(config, body, _head(config, head, path), _preprocess(config, path, preprocess), path)
        name = config["source"] or type(body).__name__
        fit(built, state, source=str(path), name=name)
        agree = _agree(config["probe"], probe(built))
    except CamtoolsError:
        raise
    except Exception as error:  # a header that is no longer what `save` wrote can fail anywhere
        raise WeightsError(
            f"the configuration in {path} is damaged ({type(error).__name__}: {error}): expected one that "
            "HeadedModel.save wrote. Save the model again"
        ) from error
    if not agree:
        raise WeightsError(
            f"the weights of {path} fit {name}, but its scores are not those that were saved, so it was built with "
            "other arguments. Pass the classifier that the head was put into "
            "(load_headed(path, model=...)), or give replace_head its source_args"
        )
    return built.eval()


def _check_sizes(told: Any, sizes: set[int]) -> None:
    """Raise where a configuration asks for a layer too large to be in the file."""
    if isinstance(told, Mapping | list):
        for value in told.values() if isinstance(told, Mapping) else told:
            _check_sizes(value, sizes)
    elif isinstance(told, int) and abs(told) > _LARGEST and told not in sizes:
        raise ValueError(f"it has the size {told}, which no tensor in the file has")


def _is_plain(value: Any) -> bool:
    """Whether an argument is a number, a flag, None, a single word, or a list of such."""
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, bool | int | float)


def _agree(saved: list[float], now: list[float]) -> bool:
    """Compare two probes as loosely as other devices and reduced precision ask for; NaN agrees with anything."""
    scale = max(map(abs, saved))
    return all(not abs(a - b) > PROBE_TOLERANCE * max(scale, 1e-6) for a, b in zip(saved, now, strict=True))


def _body(config: Mapping[str, Any], path: str | Path) -> nn.Module:
    """Build the body's architecture by its name."""
    name = config["source"]
    way_out = f"Build it yourself and pass it: load_headed({str(path)!r}, model=...)"
    if name is None:
        raise ModelError(f"{path} does not say which model the head was put into. {way_out}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ModelError(
            f"{path} names {name!r}, a place or a function of somebody's own, which a weights file is not allowed "
            f"to run or open: expected LIBRARY/NAME of an installed library. {way_out}"
        )
    source, args = find_source(name), dict(config["source_args"])
    foreign = sorted(key for key, value in args.items() if key not in source.file_args or not _is_plain(value))
    if foreign:
        raise ModelError(
            f"{path} wants {name} built with {', '.join(foreign)}, which a weights file may not set: expected none but "
            f"{', '.join(sorted(source.file_args)) or 'no arguments'}, with numbers, flags or single words. {way_out}"
        )
    count = args.pop("num_classes", None)
    return find_source(name, args).empty(count).model


def _assembled(
    config: Mapping[str, Any], body: nn.Module, head: nn.Module, preprocess: Transform | None, path: str | Path
) -> HeadedModel:
    """Put a model of the saved form together, with whatever weights."""
    body, twin = unwrapped(body), config.get("twin")
    try:
        if config["output_stride"] is not None:
            body = set_output_stride(body, config["output_stride"], dilate=config.get("dilate", True))
        origin = _origin(config, twin or config)
        if origin.cut:
            take_out_after(body, origin.spec, CamModel(body).example())
        origin, _ = strip(body, origin, CamModel(body).example())
    except (AttributeError, ModelError) as error:
        raise WeightsError(
            f"{path} does not fit {type(body).__name__}: {error}. Pass the classifier that the head was put into"
        ) from error
    if twin is not None:
        first = HeadedModel(body, nn.Identity(), None, origin, neck=_neck(twin))
        body, origin = Twin(first, copy.deepcopy(first)), _origin(config, config)
    linear = config["classifier"]
    classifier = None if linear is None else nn.Linear(linear[0], linear[1], bias=linear[2])
    names = config["class_names"]
    built = HeadedModel(
        body,
        head,
        classifier,
        origin,
        dropout=config["dropout"],
        preprocess=preprocess,
        class_names=None if names is None else tuple(names),
        neck=_neck(config),
    )
    if config.get("decoder") is not None:
        built.decoder = MapDecoder(**config["decoder"])
    built.outputs = config.get("outputs", "classes")
    return built.to(dtype=getattr(torch, config["dtype"]))


def _origin(config: Mapping[str, Any], told: Mapping[str, Any]) -> Origin:
    """Return how a body came about; `told` says where its features are: the configuration, or its "twin"."""
    place = dict(told["features"])
    place |= {"layout": Layout(place["layout"]), "activation": ACTIVATIONS.get(place["activation"])}
    return Origin(
        FeatureSpec(**place),
        told["body_classifier"],
        **{name: config[name] for name in ("source", "source_args", "output_stride")},
        dilate=config.get("dilate", True),
        cut=config.get("cut", False),
        attention=tuple(config.get("attention", ())),
    )


def _neck(told: Mapping[str, Any]) -> nn.Module | None:
    return None if told.get("neck") is None else fresh_neck(*told["neck"])


def _head(config: Mapping[str, Any], given: nn.Module | None, path: str | Path) -> nn.Module:
    told = config["head"]
    if given is not None:
        return copy.deepcopy(given)
    if told.get("own"):
        raise ModelError(
            f"{path} has a head of its own class, {told['class']}, which camtools does not import by itself. Pass it: "
            f"load_headed({str(path)!r}, head=...)"
        )
    args = dict(told["args"])
    if "adl" in args:
        args["adl"] = ADL(**args["adl"])
    return OWN_HEADS[told["class"]](**args)


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
