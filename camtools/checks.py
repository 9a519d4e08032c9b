"""Arguments that are numbers, flags or literals: the one place that says what was expected of them.

Checks take the argument's name and value, and `owner` and `error` by name: whose argument it is, such as "CREAM", for
"CREAM(delta=2): delta must be ..." instead of "delta=2: expected ..."; and the error to raise.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn

from camtools.errors import CamtoolsError, InputError

_Error = type[CamtoolsError]


def whole(
    name: str, value: Any, least: int = 1, most: int | None = None, *, owner: str = "", error: _Error = InputError
) -> int:
    """Return an argument that must be a whole number from `least` to `most`; True and 2.0 are none.

    Raises:
        CamtoolsError: It is something else; of the type `error`.
    """
    if _is(value, Integral) and least <= value and (most is None or value <= most):
        return int(value)
    _refuse(name, value, f"a whole number of at least {least}{f' and at most {most}' if most else ''}", owner, error)


def number(name: str, value: Any, interval: str = "(0, inf)", *, owner: str = "", error: _Error = InputError) -> float:
    """Return an argument that must be a finite number within an interval: of "[0, 1)", 0 is part and 1 is not.

    Raises:
        CamtoolsError: It is something else; of the type `error`.
    """
    low, high = interval[1:-1].split(", ")
    with_low, with_high = interval[0] == "[", interval[-1] == "]"
    if _is(value, Real) and abs(value) <= sys.float_info.max:
        above = value >= float(low) if with_low else value > float(low)
        if above and (value <= float(high) if with_high else value < float(high)):
            return float(value)
    if high == "inf":
        expected = f"a finite number {'of at least' if with_low else 'above'} {low}"
    else:
        expected = f"a number, {low} {'<=' if with_low else '<'} {name} {'<=' if with_high else '<'} {high}"
    _refuse(name, value, expected, owner, error)


def share(name: str, value: Any, *, owner: str = "", error: _Error = InputError) -> float:
    """Return an argument that must be a number in [0, 1).

    Raises:
        CamtoolsError: It is something else; of the type `error`.
    """
    return number(name, value, "[0, 1)", owner=owner, error=error)


def flag(name: str, value: Any, *, owner: str = "", error: _Error = InputError) -> bool:
    """Return an argument that must be True or False; 1 and "yes" are neither.

    Raises:
        CamtoolsError: It is something else; of the type `error`.
    """
    if not isinstance(value, bool):
        _refuse(name, value, "True or False", owner, error)
    return value


def one_of(name: str, value: Any, allowed: Sequence[str], *, owner: str = "", error: _Error = InputError) -> Any:
    """Return an argument that must be one of a few words.

    Raises:
        CamtoolsError: It is something else; of the type `error`.
    """
    if not isinstance(value, str) or value not in allowed:
        words = [repr(word) for word in allowed]
        _refuse(name, value, " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}", owner, error)
    return value


def as_path(name: str, value: Any, *, owner: str = "", error: _Error = InputError) -> Path:
    """Return an argument that must be a path: text or path-like; that it is there is not checked.

    Raises:
        CamtoolsError: It is something else; of the type `error`.
    """
    if not isinstance(value, str | os.PathLike):
        _refuse(name, value, "a path", owner, error)
    return Path(value)


def literal(text: str) -> Any:
    """Return the Python literal that a text reads like; the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that it is documented to raise
        return text


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _refuse(name: str, value: Any, expected: str, owner: str, error: _Error) -> NoReturn:
    if owner:
        raise error(f"{owner}({name}={value!r}): {name} must be {expected}.")
    raise error(f"{name}={value!r}: expected {expected}")
