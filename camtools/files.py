"""Files that are written whole or not at all: one by one, or several staged in a hidden directory and then moved."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from camtools.errors import InputError

_PARTIAL = ".part-"


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a hidden directory within the target, which is made; after an error no new directory is left.

    Args:
        target: Where the files are to end up.
    """
    made = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".camtools-", dir=target, ignore_cleanup_errors=True) as stage:
            yield Path(stage)
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

    The path is in the same folder, has the same suffix, and is this thread's own.

    Raises:
        InputError: It cannot be written: the disk is full, say.
    """
    partial = path.with_name(f"{_PARTIAL}{os.getpid()}-{threading.get_ident()}.{path.name}")
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
                "room or choose another place, and try again (a long run goes on with --resume)"
            ) from error
        raise


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing to a folder."""
    for path in folder.glob(f"{_PARTIAL}*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(data: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
