"""Models that a user's own function builds, "package.module:function" or "path/FILE.py:function"."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from camtools.errors import CamtoolsError, ModelError
from camtools.images.adjusted import adjust
from camtools.images.preprocess import Preprocess
from camtools.sources.base import Built, Source

RETURNS = (
    "the model; (model, mean, std); (model, transform); or a dict with 'model' and any of 'mean', 'std', 'size', "
    "'transform', 'class_names'"
)

_TUPLES = {2: ("model", "transform"), 3: ("model", "mean", "std")}


class FunctionSource(Source):
    """A function that returns a model; a file's own folder is importable while the function runs."""

    def __init__(self, spec: str, args: dict[str, Any]) -> None:
        """Take the name apart.

        Args:
            spec: "package.module:function" or "path/FILE.py:function".
            args: Keyword arguments for the function.

        Raises:
            ModelError: The name lacks its function.
        """
        super().__init__(spec, args)
        self.place, _, self.function = spec.rpartition(":")
        if not self.place or not self.function.isidentifier():
            raise ModelError(f"{spec!r} lacks the function that builds the model: say FILE.py:function.")

    def empty(self, num_classes: int | None = None) -> Built:
        """Call the function; `num_classes` is passed on where the function has a parameter of that name."""
        with _importing(self.place) as module:
            function = self._find(module)
            args = dict(self.args)
            self.takes_num_classes = _accepts(function, "num_classes")
            if num_classes is not None:
                if not self.takes_num_classes:
                    raise ModelError(
                        f"{self.spec} has no parameter num_classes, so num_classes={num_classes} cannot be had."
                    )
                args["num_classes"] = num_classes
            try:
                result = function(**args)
            except (Exception, SystemExit) as error:
                raise ModelError(f"{self.spec} failed: {type(error).__name__}: {error}") from error
        return self._interpret(result)

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Call the function, whose model has whatever weights the function gave it."""
        return self.empty(num_classes)

    def _find(self, module: ModuleType) -> Callable[..., Any]:
        function = getattr(module, self.function, None)
        if not callable(function):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            close = difflib.get_close_matches(self.function, names, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"It has {', '.join(names[:5]) or 'no functions'}."
            raise ModelError(f"{self.place} has no function {self.function}. {hint}")
        return function

    def _interpret(self, result: Any) -> Built:
        """Make one form of the several that a function may return."""
        if isinstance(result, nn.Module):
            told: dict[str, Any] = {"model": result}
        elif isinstance(result, Mapping):
            told = dict(result)
        elif isinstance(result, tuple) and len(result) in _TUPLES:
            told = dict(zip(_TUPLES[len(result)], result, strict=True))
        else:
            raise ModelError(f"{self.spec} returned {_kind(result)}, but a function must return {RETURNS}.")
        unknown = set(told) - {"model", "mean", "std", "size", "transform", "class_names"}
        if unknown or not isinstance(told.get("model"), nn.Module):
            what = f"the keys {sorted(map(str, unknown))}" if unknown else f"{_kind(told.get('model'))} as the model"
            raise ModelError(f"{self.spec} returned {what}, but a function must return {RETURNS}.")
        names = told.get("class_names")
        return Built(
            told["model"],
            _preprocess(self.spec, told),
            tuple(str(name) for name in names) if names is not None else None,
        )


def _preprocess(spec: str, told: Mapping[str, Any]) -> Preprocess | Callable[..., Any] | None:
    """Make one of the preprocessing that a function told of."""
    transform = told.get("transform")
    if transform is not None and not callable(transform):
        raise ModelError(f"{spec} returned {_kind(transform)} as the transform, which is not callable.")
    numbers = {key: told[key] for key in ("mean", "std", "size") if told.get(key) is not None}
    if transform is not None and numbers:
        raise ModelError(f"{spec} returned a transform and {', '.join(numbers)}: give one or the other.")
    size = numbers.get("size")
    try:
        return adjust(transform, **numbers | {"size": (size, size) if isinstance(size, int) else size})
    except (TypeError, ValueError, CamtoolsError) as error:
        raise ModelError(f"{spec} returned an impossible {' or '.join(numbers)}: {error}") from error


def _kind(value: object) -> str:
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{type(value).__name__}{size}" if value is not None else "None"


def _accepts(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


@contextlib.contextmanager
def _importing(place: str) -> Iterator[ModuleType]:
    """Import a module by name or a file by path; `sys.path` is as it was afterwards.

    A file's folder comes first on the path meanwhile; for a module the working folder comes last, so that it never
    hides anything installed.
    """
    before, path, is_file = list(sys.path), Path(place), place.endswith(".py")
    if is_file and not path.is_file():
        close = difflib.get_close_matches(str(path), [str(p) for p in path.parent.glob("*.py")], n=1)
        raise ModelError(f"There is no file {path}." + (f" Did you mean {close[0]}?" if close else ""))
    sys.path[:] = [str(path.resolve().parent), *before] if is_file else [*before, str(Path.cwd())]
    try:
        try:
            module = _run_file(path.resolve()) if is_file else importlib.import_module(place)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
        yield module
    finally:
        sys.path[:] = before


def _run_file(path: Path) -> ModuleType:
    """Run a file as a module under a name of its own, so that it hides no installed package."""
    name = f"_camtools_model_file_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
