"""Parts that are found, not imported: the entry points of installed packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from camtools.errors import ModelError


def plugins(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, by name.

    Args:
        group: "camtools.adapters", "camtools.commands", "camtools.recipes" or "camtools.sources".

    Raises:
        ModelError: There is none, so not even camtools' own: it runs from a checkout that was never installed.
    """
    points = sorted(entry_points(group=group), key=lambda point: point.name)
    if not points:
        raise ModelError(
            f"no installed package has entry points of the group {group!r}, not even camtools' own: expected "
            "an installed camtools. Run pip install camtools, or pip install -e . in a checkout"
        )
    return points


def load_plugin(point: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises:
        ModelError: It cannot be imported; names the distribution to fix or remove.
    """
    try:
        return point.load()
    except Exception as error:
        raise ModelError(f"{described(point)} cannot be loaded: {error}. Fix or uninstall {owner(point)}") from error


def described(point: EntryPoint) -> str:
    """Name an entry point in a message: what it is, its name and where it lies."""
    kind = point.group.rpartition(".")[2].removesuffix("s")
    return f"{kind} {point.name!r} ({point.value})"


def owner(point: EntryPoint) -> str:
    """Name the distribution that an entry point belongs to."""
    return point.dist.name if point.dist else "the package that declares it"
