"""Where classifiers come from: a library's registry by entry point, a user's function, or camtools itself."""

from __future__ import annotations

import difflib
from typing import Any

from camtools.errors import ModelError
from camtools.plugins import load_plugin, plugins
from camtools.sources.base import Built, LoadedModel, Source
from camtools.sources.function import FunctionSource
from camtools.sources.lite0 import Lite0Source
from camtools.sources.scenes import ScenesSource

__all__ = [
    "Built",
    "FunctionSource",
    "Lite0Source",
    "LoadedModel",
    "ScenesSource",
    "Source",
    "find_source",
    "known_models",
]

GROUP = "camtools.sources"
OWN = {"lite0": Lite0Source, "scenes": ScenesSource}
FORMS = "{libraries}, package.module:function, path/FILE.py:function, lite0, or scenes"


def find_source(spec: str, model_args: dict[str, Any] | None = None, size: tuple[int, int] | None = None) -> Source:
    """Return the source that a model's name points to, without building anything.

    Args:
        spec: "LIBRARY/NAME" such as "timm/resnet50", "hf:FOLDER_OR_NAME", "package.module:function",
            "path/FILE.py:function", "lite0" or "scenes". Libraries are found through the entry point group
            `camtools.sources`, whose objects are classes that take (spec, name, args, size).
        model_args: Keyword arguments for the constructor or function.
        size: The input's (height, width) where it is not the model's own; only models of a fixed size need to know.

    Raises:
        ModelError: The name has none of these forms, or is unknown to the library it names.
    """
    args = dict(model_args or {})
    library, slash, name = spec.partition("/")
    if spec in OWN:
        return OWN[spec](args)
    is_file = ".py:" in spec or spec.endswith(".py")
    prefix, colon, rest = spec.partition(":")
    for point in plugins(GROUP):
        if colon and rest and point.name == prefix and getattr(load_plugin(point), "by_colon", False):
            return load_plugin(point)(spec, rest, args, size)
    if slash and not is_file:
        for point in plugins(GROUP):
            if point.name == library and not getattr(load_plugin(point), "by_colon", False):
                return load_plugin(point)(spec, name, args, size)
    if is_file or (":" in spec and not slash):
        return FunctionSource(spec, args)
    ways = [(point.name, ":" if getattr(load_plugin(point), "by_colon", False) else "/") for point in plugins(GROUP)]
    ways.sort(key=lambda way: way[1])
    forms = FORMS.format(libraries=", ".join(f"{name}{mark}NAME" for name, mark in ways))
    raise ModelError(f"{spec!r} does not name a model: names have the form {forms}.{_guess(spec)}")


def known_models() -> list[str]:
    """Return the full names of all models that the installed sources list, and of camtools' own."""
    return [*OWN, *(f"{point.name}/{name}" for point in plugins(GROUP) for name in load_plugin(point).known())]


def _guess(spec: str) -> str:
    """Suggest full names for one that lacks its library."""
    known = known_models()
    name = spec.rpartition("/")[2]
    exact = [full for full in known if full.partition("/")[2] == name]
    guesses = (f"{point.name}/{name}" for point in plugins(GROUP))
    close = exact or [match for guess in guesses for match in difflib.get_close_matches(guess, known, n=1)][:1]
    return f" Did you mean {' or '.join(close)}?" if close else ""
