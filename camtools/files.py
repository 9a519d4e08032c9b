"""Files that are written whole or not at all: one by one, or several staged in a hidden directory and then moved."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from camtools.errors import CamtoolsError, InputError

_UMASK = os.umask(0)
os.umask(_UMASK)
_PARTIAL, _STAGE, LOCK = ".part-", ".camtools-", ".lock"


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a hidden directory within the target, which is made; after an error no new directory is left.

    Args:
        target: Where the files are to end up.
    """
    made = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_STAGE, dir=target, ignore_cleanup_errors=True) as stage:
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
    if not path.name:
        raise InputError(f"{str(path)!r} cannot be written: expected a file's name")
    partial = path.with_name(shortened(f"{_PARTIAL}{os.getpid()}-{threading.get_ident()}.{path.stem}") + path.suffix)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_UMASK)  # some libraries write files that only their owner may read
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        # torch.save turns some OSErrors into RuntimeErrors, and a null byte is a ValueError.
        if isinstance(error, OSError | RuntimeError | ValueError) and not isinstance(error, CamtoolsError):
            raise InputError(
                f"{path} cannot be written: {' '.join(str(error).split())}. What was there before is unharmed: make "
                "room or choose another place, and try again (a long run goes on with --resume)"
            ) from error
        raise


def read_text(path: Path, most: int = 4 * 1024**3) -> str:
    """Read a text file in UTF-8, without its byte order mark.

    Args:
        path: The file.
        most: Bytes that it may have: what is larger is no such file, and takes the machine.

    Raises:
        OSError: It cannot be read, is larger, or is no file but a pipe, a device or a folder.
        UnicodeDecodeError: It is not UTF-8.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"it is no file of at most {most:,} bytes, but a folder, a pipe or a device")
    if found.st_size > most:
        raise OSError(f"it is no file of at most {most:,} bytes: it has {found.st_size:,}")
    return path.read_text(encoding="utf-8-sig")


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


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON document holds.

    Raises:
        json.JSONDecodeError: It is none, or is nested so deeply that nothing can read it.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", str(text[:9]), 0) from error


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep a folder to this run: another that wants to write to it is told who does. Killed holders hold nothing.

    Args:
        folder: Made if it is missing; None for a run that writes nothing.

    Raises:
        InputError: Another process, or thread, is writing to it; or it cannot be made or written to.
    """
    if folder is None:
        yield
        return
    lock, holder = FileLock(folder / LOCK, timeout=0), folder / f"{LOCK}-holder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout as error:
        who = "another process"
        with suppress(OSError):
            who = holder.read_text(encoding="utf-8")
        raise InputError(
            f"{folder} is being written to by {who}: two runs would mix their files. Wait for it to end, or choose "
            "another folder"
        ) from error
    except OSError as error:
        lock.release()
        raise InputError(
            f"{folder} cannot be used as the output folder: {error.strerror or error}. Make room, or name another"
        ) from error
    try:
        clear(folder)
        yield
    finally:
        for path in (holder, folder / LOCK):
            path.unlink(missing_ok=True)
        lock.release()


def check_writable(out: Path, *, folder: bool = True) -> None:
    """Find out before a long run whether its results can be written; nothing is left, no new folder either.

    Args:
        out: Where results will go.
        folder: Whether that is a folder, not a file.

    Raises:
        InputError: The disk is full, or read-only, or the place is taken by something else.
    """
    try:
        if out.exists() and out.is_dir() != folder:
            raise OSError(f"it is a {'file' if folder else 'folder'}")
        place = out if folder else out.parent
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place, prefix=_PARTIAL) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{out} cannot be written: {reason}. Make room, or choose another place (--out)") from error


def shortened(name: str, most: int = 200) -> str:
    """Return a name that file systems take: itself, or its beginning and a hash of the whole.

    Args:
        name: Of a file or folder, without its suffix.
        most: Bytes in UTF-8; most file systems take 255, and suffixes come on top.
    """
    data = os.fsencode(name)
    if len(data) <= most:
        return name
    mark = f"-{hashlib.sha256(data).hexdigest()[:12]}"
    return data[: most - len(mark)].decode("utf-8", "ignore") + mark


def clear(folder: Path) -> None:
    """Remove what killed runs left in a folder, and in the folders in it: files half-written, and staged ones."""
    for path in [path for path in folder.rglob(".*") if path.name.startswith((_PARTIAL, _STAGE))]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
