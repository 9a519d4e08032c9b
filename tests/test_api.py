"""The public names and their signatures, as `tests/api.txt` lists them: a change of the API is a change of that file.

`rm tests/api.txt; pytest tests/test_api.py` writes the file anew, and fails that once.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import camtools

LIST = Path(__file__).with_name("api.txt")


class Unquoted(str):
    """An annotation that signatures show as it was written."""

    __repr__ = str.__str__


def public_modules() -> Iterator[tuple[ModuleType, list[str]]]:
    """Yield camtools, every module in it that has `__all__` (but for the command's), and `plot`, with their names."""
    yield camtools, camtools.__all__
    for info in pkgutil.walk_packages(camtools.__path__, "camtools."):
        if not info.name.startswith(("camtools.cli", "camtools.__main__")):
            module = importlib.import_module(info.name)
            if hasattr(module, "__all__"):
                yield module, sorted(module.__all__)
            elif module is camtools.plot:
                functions = inspect.getmembers(module, inspect.isfunction)
                own = [name for name, function in functions if function.__module__ == module.__name__]
                yield module, [name for name in own if not name.startswith("_")]


def signature(value: object) -> str:
    try:
        whole = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # no Python function
        return ""
    shown = [p.replace(annotation=unquoted(p.annotation)) for p in whole.parameters.values()]
    return str(whole.replace(parameters=shown, return_annotation=unquoted(whole.return_annotation)))


def unquoted(annotation: object) -> object:
    return Unquoted(annotation) if isinstance(annotation, str) else annotation


def members(kind: type) -> Iterator[str]:
    """Yield a line for each method and property that a class itself defines."""
    for name, value in sorted(vars(kind).items()):
        if name.startswith("_") and name != "__call__":
            continue
        inner = getattr(value, "__func__", value)
        if isinstance(value, property) or type(value).__name__ == "cached_property":
            yield f"    {name}"
        elif inspect.isfunction(inner):
            yield f"    {'' if value is inner else '@' + type(value).__name__ + ' '}{name}{signature(inner)}"


def listed() -> str:
    """Return every public name with its signature; one that is public in several places is written out at the first."""
    lines: list[str] = []
    first: dict[int, str] = {}
    for module, names in public_modules():
        lines.append(f"\n# {module.__name__}\n")
        for name in names:
            value, full = getattr(module, name), f"{module.__name__}.{name}"
            if callable(value) and first.setdefault(id(value), full) != full:
                lines.append(f"{name} = {first[id(value)]}")
            elif inspect.isclass(value):
                lines += [f"class {name}{signature(value)}", *members(value)]
            elif callable(value):
                lines.append(f"{name}{signature(value)}")
            else:
                lines.append(f"{name}: {type(value).__name__}")
    return "\n".join(lines).lstrip() + "\n"


def test_public_names_and_signatures():
    now = listed()
    if not LIST.exists():
        LIST.write_text(now, encoding="utf-8")
        pytest.fail(f"{LIST} was missing and has been written: see what has changed by git diff")
    assert now == LIST.read_text(encoding="utf-8"), f"if the change is meant, remove {LIST} and run this test again"
