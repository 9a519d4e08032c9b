"""Parts that are found, not imported: the entry points of installed packages, or of the checkout camtools runs from."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def plugins(group: str) -> list[EntryPoint]:
    """Return the entry points of a group.

    A checkout that was never installed has no entry points: there, those in its own `pyproject.toml` count, and the
    folders that hold their packages are added to `sys.path`.

    Args:
        group: Such as "camtools.adapters".
    """
    return list(entry_points(group=group)) or _of_checkout(group)


def _of_checkout(group: str) -> list[EntryPoint]:
    try:
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return []
    if project.get("name") != "camtools":
        return []
    declared = project.get("entry-points", {}).get(group, {})
    for package in {value.partition(":")[0].partition(".")[0] for value in declared.values()}:
        for folder in CHECKOUT.glob(f"*/{package}"):
            if str(folder.parent) not in sys.path:
                sys.path.append(str(folder.parent))
    return [EntryPoint(name, value, group) for name, value in declared.items()]
