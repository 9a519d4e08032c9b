"""Files that are written all or none: staged in a hidden directory, then moved to their place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from camtools.errors import InputError


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a hidden directory within the target, which is made; after an error no new directory is left.

    Args:
        target: Where the files are to end up.
    """
    made = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".camtools-", dir=target))
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except BaseException:
        with suppress(OSError):  # someone else's files may be there by now
            for path in made:
                path.rmdir()
        raise


def swap(stage: Path, target: Path, names: Sequence[str]) -> None:
    """Move staged files to their place, one after another; after an error what was there before is back.

    Args:
        stage: What `staging` gave.
        target: Where they go.
        names: Of the files, in the order in which they move.

    Raises:
        OSError: They cannot be moved, or a directory has the name of one.
    """
    taken = next((name for name in names if (target / name).is_dir()), None)
    if taken:
        raise OSError(f"{taken} is a directory there")
    older = stage / "older"
    older.mkdir()
    try:
        for name in reversed(names):
            if os.path.lexists(target / name):
                (target / name).replace(older / name)
        for name in names:
            (stage / name).replace(target / name)
    except BaseException:
        for name in names:
            if os.path.lexists(older / name):
                (older / name).replace(target / name)
            elif not os.path.lexists(stage / name):
                (target / name).unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what was written becomes `path` at the end, at once, and after an error nothing does.

    Raises:
        InputError: It cannot be written: the disk is full, say.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # torch.save turns some of the former into the latter
            raise InputError(
                f"{path} cannot be written: {' '.join(str(error).split())}. What was there before is unharmed: make "
                "room, and go on with resume (--resume)"
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let a function write a file, whole or not at all.

    Args:
        path: Where it ends up.
        write: Called with a path of the same suffix in the same folder.

    Raises:
        InputError: It cannot be written.
    """
    with replacing(path) as partial:
        named = partial.with_name(f".part{path.suffix}")
        try:
            write(named)
            named.replace(partial)
        finally:
            named.unlink(missing_ok=True)


def write_json(data: Any, path: Path) -> None:
    """Write a JSON file all or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
