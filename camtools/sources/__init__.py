"""Where classifiers come from: timm, torchvision, a user's function, or camtools itself; one file a source."""

from __future__ import annotations

import difflib
from typing import Any

from camtools.errors import ModelError
from camtools.sources.base import Built, Source
from camtools.sources.function import FunctionSource
from camtools.sources.scenes import NAME as SCENES
from camtools.sources.scenes import ScenesSource
from camtools.sources.timm import TimmSource
from camtools.sources.torchvision import TorchvisionSource

__all__ = ["Built", "FunctionSource", "ScenesSource", "Source", "TimmSource", "TorchvisionSource", "find_source"]

FORMS = "timm/NAME, torchvision/NAME, package.module:function, path/FILE.py:function, or scenes"


def find_source(spec: str, model_args: dict[str, Any] | None = None, size: tuple[int, int] | None = None) -> Source:
    """Return the source that a model's name points to, without building anything.

    Args:
        spec: "timm/NAME", "torchvision/NAME", "package.module:function", "path/FILE.py:function", or "scenes".
        model_args: Keyword arguments for the constructor or function.
        size: The input's (height, width) where it is not the model's own; only models of a fixed size need to know.

    Raises:
        ModelError: The name has none of these forms, or is unknown to the library it names.
    """
    args = dict(model_args or {})
    library, slash, name = spec.partition("/")
    if spec == SCENES:
        return ScenesSource(args)
    is_file = ".py:" in spec or spec.endswith(".py")
    if slash and library == "timm" and not is_file:
        return TimmSource(spec, name, args, size)
    if slash and library == "torchvision" and not is_file:
        return TorchvisionSource(spec, name, args)
    if is_file or (":" in spec and not slash):
        return FunctionSource(spec, args)
    raise ModelError(f"{spec!r} does not name a model: names have the form {FORMS}.{_guess(spec)}")


def _guess(spec: str) -> str:
    """Suggest full names for one that lacks its library."""
    name = spec.rpartition("/")[2]
    known = [f"timm/{n}" for n in TimmSource.known()] + [f"torchvision/{n}" for n in TorchvisionSource.known()]
    exact = [n for n in known if n.partition("/")[2] == name]
    close = exact or difflib.get_close_matches(f"timm/{name}", known, n=1)
    return f" Did you mean {' or '.join(close)}?" if close else ""
