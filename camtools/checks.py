"""TODO camtools.checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camtools.errors import InputError

if TYPE_CHECKING:
    pass


def check_whole(**values: Any) -> None:
    """Refuse what is not a whole number of at least 1.

    Raises:
        InputError: One is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: expected a whole number of at least 1")


def whole(value: object, name: str, least: int = 1) -> None:
    """Refuse what is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: expected a whole number of at least {least}")


def is_share(value: object) -> bool:
    """Tell whether a value is a number in [0, 1)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
