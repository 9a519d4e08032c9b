"""`load_model`: a classifier by name, from an installed source or a function, with its weights and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from camtools.checkpoints import class_count, fit, match_prefix, read_checkpoint
from camtools.checks import whole
from camtools.classes.names import checked_names
from camtools.errors import ModelError, WeightsError
from camtools.heads.saved import headed_config, load_headed
from camtools.images.adjusted import adjust
from camtools.images.preprocess import Preprocess
from camtools.model.adapter import find_adapter
from camtools.model.cam_model import wrap
from camtools.model.inputs import input_channels
from camtools.sources import Built, FunctionSource, Source, find_source
from camtools.sources.base import LoadedModel

RANDOM = "random"
MAX_CLASSES = 1_000_000
MAX_INPUT_PIXELS = 4096 * 4096


def load_model(
    spec: str,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Build a classifier from its name and load its weights.

    Args:
        spec: "timm/NAME" or "timm/NAME.TAG", "torchvision/NAME", "package.module:function", or
            "path/FILE.py:function"; "lite0", an ImageNet classifier whose weights come in a package (extra `demo`);
            "scenes", the one for drawn scenes that comes with camtools; or a file that `HeadedModel.save` wrote. A
            function returns the model; or (model, mean, std); or (model, transform), a `Preprocess` or a callable from
            a PIL image to a tensor; or a dict with "model" and any of "mean", "std", "size", "transform",
            "class_names".
        weights: A checkpoint (safetensors or PyTorch, see `camtools.checkpoints.read_checkpoint`), one that
            `HeadedModel.save` wrote included, whose head then comes with it; for torchvision also
            the name of published weights ("IMAGENET1K_V1"); "random" for none. Left out, timm and torchvision get their
            published weights, downloaded into their own caches. A function's model keeps what the function gave it,
            unless a checkpoint is named.
        num_classes: How many classes to build; read from the checkpoint where left out.
        class_names: Names by index, instead of those that come with the model.
        mean: What to subtract from images in [0, 1], per channel, instead of the model's own.
        std: What to divide them by then, instead of the model's own.
        size: The input's size in pixels, a side or (height, width), instead of the model's own; the resize before the
            crop changes in proportion.
        model_args: More keyword arguments for the model's constructor, or for the function.

    Raises:
        ModelError: The name is unknown (the closest is named), or the function is missing, fails or returns no model.
        WeightsError: The weights cannot be read, downloaded, or do not fit.
        TargetError: `class_names` is not a list of names.
    """
    args = dict(model_args or {})
    if "num_classes" in args and num_classes is not None:
        raise ModelError(f"num_classes={num_classes!r} was given twice: leave it out of model_args.")
    asked = args.get("num_classes", num_classes)
    if asked is not None:
        whole("num_classes", asked, 1, MAX_CLASSES, error=ModelError)
    if weights is None and (config := headed_config(spec)) is not None:
        built = _headed(spec, config, None, num_classes)
        return _loaded(built, spec, class_names, mean, std, size, model_args)
    source = find_source(spec, args, _pair(size))
    if not isinstance(source, FunctionSource):  # which may do as it likes with an argument of that name
        num_classes = args.pop("num_classes", num_classes)
        source.args.pop("num_classes", None)
    tag = None if weights is None else str(weights)
    if tag is None or (source.has_published(tag) and not Path(tag).exists()):
        built = source.published(num_classes, tag)
    elif tag == RANDOM:
        built = source.empty(num_classes)
    elif (config := headed_config(tag)) is not None:
        built = _headed(tag, config, source, num_classes)
    else:
        built = _from_file(source, Path(tag), num_classes)
    return _loaded(built, spec, class_names, mean, std, size, model_args)


def _loaded(
    built: Built,
    spec: str,
    class_names: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: int | tuple[int, int] | None,
    model_args: Mapping[str, Any] | None,
) -> LoadedModel:
    """Complete what is known of a model with what its adapter knows, and what the caller wants otherwise."""
    model = built.model.eval()
    wrapped, known = wrap(model, adapter=find_adapter(model)), built.preprocess
    if known is None:
        known = wrapped.preprocess
    elif isinstance(known, Preprocess):
        known = known.with_channels(input_channels(model, known))
    if class_names is not None:
        class_names = checked_names(class_names)
    else:
        class_names = built.class_names or wrapped.adapter.class_names(model)
    names = None if class_names is None else tuple(class_names)
    return LoadedModel(model, adjust(known, mean, std, _pair(size)), names, spec, dict(model_args or {}))


def _headed(path: str, config: Mapping[str, Any], source: Source | None, num_classes: int | None) -> Built:
    """Load a model with a swapped head, by the name in the file or from a source."""
    if config.get("outputs", "classes") != "classes":
        raise WeightsError(
            f"{path} holds a box regressor, which knows no classes: expected a classifier. Read it by "
            "camtools.heads.BoxRegressor.load, and pass it as boxes_from"
        )
    if num_classes not in (None, classes := config.get("classes", num_classes)):
        raise _other_count(path, classes, num_classes)
    return Built(load_headed(path, None if source is None else source.empty().model))


def _other_count(path: str | Path, classes: Any, num_classes: int | None) -> WeightsError:
    return WeightsError(
        f"{path} is for {classes} classes, but num_classes is {num_classes}. "
        "Leave num_classes out: it is read from the file."
    )


def _pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ModelError(f"size={size!r}: expected the input's side in pixels, or (height, width).")
    height, width = sides
    if height < 1 or width < 1:
        raise ModelError(f"An input of {height} x {width} pixels is impossible: size needs positive numbers.")
    if height * width > MAX_INPUT_PIXELS:
        raise ModelError(
            f"An input of {height} x {width} pixels is more than a network and memory take: expected at most "
            f"{MAX_INPUT_PIXELS:,} pixels. Most networks see best near the size that they were trained at."
        )
    return int(height), int(width)


def _from_file(source: Source, path: Path, num_classes: int | None) -> Built:
    """Build a source's model with the checkpoint's number of classes, and load the checkpoint."""
    state: Mapping[str, Tensor] = read_checkpoint(path)
    built = source.for_checkpoint(num_classes, state, path)
    state = match_prefix(state, list(built.model.state_dict()))
    counts = class_count(built.model, state)
    if counts is not None and num_classes is not None:
        raise _other_count(path, counts[1], num_classes)
    if counts is not None and source.takes_num_classes:
        built = source.for_checkpoint(counts[1], state, path)
    try:
        fit(built.model, state, source=str(path), name=source.spec)
    except WeightsError:
        converted = source.convert(state, built.model)
        if converted is None:
            raise
        fit(built.model, converted, source=str(path), name=source.spec)
    return built
