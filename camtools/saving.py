"""Files that are written all or none: staged in a hidden directory, then moved to their place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


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
