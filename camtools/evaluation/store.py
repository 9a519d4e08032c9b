"""Finished batches: in memory, or as files that a run killed at any moment can go on from."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camtools.errors import InputError
from camtools.evaluation.results import Ranked, Rows
from camtools.evaluation.scores import Arrays
from camtools.evaluation.statistics import Measured
from camtools.files import write_json

SETTINGS = "run.json"
SHARDS = "shards"


class Store:
    """Batches of rows; every one holds the whole of some images, those that failed included.

    Args:
        folder: Where the files go, made if need be; None keeps all in memory.
        settings: What the rows depend on, as JSON keeps it.
        fresh: Whether to start over, whatever the folder holds of an earlier run.
        leader: Whether this process writes what all share.

    Raises:
        InputError: The folder holds rows of other settings, or cannot be written.
    """

    def __init__(
        self, folder: Path | None, settings: dict[str, Any], *, fresh: bool = False, leader: bool = True
    ) -> None:
        self.folder = folder
        self._kept: list[Arrays] = []
        if folder is None or not leader:
            return
        self._settle(folder, json.loads(json.dumps(settings)), fresh)

    def done(self) -> set[int]:
        """Return the images, by index, that need not be evaluated again; those that failed do."""
        found: set[int] = set()
        for shard in self.read(("done/index",)):
            found |= set(shard["done/index"].tolist())
        return found

    def add(self, shard: Arrays) -> None:
        """Keep a finished batch; on disk it appears whole or not at all.

        Raises:
            InputError: It cannot be written.
        """
        if self.folder is None:
            self._kept.append(shard)
            return
        images = np.concatenate([shard["done/index"], shard["failed/index"]])
        path = self.folder / SHARDS / f"{int(images.min()):08d}-{int(images.max()):08d}.npz"
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                np.savez(file, **shard)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise InputError(f"{path} cannot be written: {error}. Make room, or name another --out") from error

    def read(self, columns: Sequence[str] | None = None) -> list[Arrays]:
        """Return all finished batches, in the order of their first images.

        Args:
            columns: Only these; None for all.

        Raises:
            InputError: A file is broken.
        """
        if self.folder is None:
            return list(self._kept)
        found = []
        for path in sorted((self.folder / SHARDS).glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as data:
                    found.append({name: data[name] for name in columns or data.files})
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise InputError(f"{path} is broken ({error}): delete it, and run again") from error
        return found

    def _settle(self, folder: Path, settings: dict[str, Any], fresh: bool) -> None:
        """Make the folder this run's."""
        try:
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            known = folder / SETTINGS
            if fresh:
                shutil.rmtree(folder / SHARDS)
                (folder / SHARDS).mkdir()
                known.unlink(missing_ok=True)
            if known.exists():
                _compare(known, settings)
            elif any((folder / SHARDS).glob("*.npz")):
                raise InputError(
                    f"{folder} holds rows without {SETTINGS}, so of unknown settings: start over (--fresh)"
                )
            for stale in (folder / SHARDS).glob(".*.part"):
                stale.unlink(missing_ok=True)
            write_json(settings, known)
        except OSError as error:
            raise InputError(f"{folder} cannot be used as the output folder: {error}. Name another --out") from error


def merged(shards: Iterable[Arrays]) -> tuple[Arrays, list[tuple[int, str, str]]]:
    """Put batches together, sorted by image.

    An array's name is "TABLE/COLUMN"; every table has a column "index", the index of each row's image. The table
    "done" lists the finished images, "failed" those that could not be evaluated.

    Args:
        shards: As they were added, from any number of processes; an image that occurs twice counts once.

    Returns:
        The arrays, and the images that failed: (index, id, error).
    """
    parts: list[Arrays] = []
    seen: set[int] = set()
    failures: dict[int, tuple[int, str, str]] = {}
    for shard in shards:
        finished = shard["done/index"].tolist()
        again = [index for index in finished if index in seen]
        parts.append(_select(shard, lambda index, again=again: np.flatnonzero(~np.isin(index, again))))  # type: ignore[misc]
        seen.update(finished)
        columns = (shard[f"failed/{name}"].tolist() for name in ("index", "id", "error"))
        failures |= {index: (index, name, error) for index, name, error in zip(*columns, strict=True)}
    whole = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
    failed = [failures[index] for index in sorted(failures) if index not in seen]
    return _select(whole, lambda index: np.argsort(index, kind="stable")), failed


def _select(arrays: Arrays, choose: Callable[[Any], Any]) -> Arrays:
    """Return the rows of every table that `choose` takes of its column "index"."""
    chosen = {name: choose(values) for name, values in arrays.items() if name.endswith("/index")}
    return {name: values[chosen[name.partition("/")[0] + "/index"]] for name, values in arrays.items()}


def _compare(path: Path, settings: dict[str, Any]) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(before, dict)
    except (ValueError, AssertionError) as error:
        raise InputError(f"{path} is not a run of camtools evaluate: name another --out, or use --fresh") from error
    keys = dict.fromkeys([*before, *settings])
    changed = [f"{k} {before.get(k)!r}, now {settings.get(k)!r}" for k in keys if before.get(k) != settings.get(k)]
    if changed:
        raise InputError(
            f"{path.parent} holds another run ({'; '.join(changed)}): name another --out to keep both, or start over "
            "with --fresh"
        )


_PAIRED = ("v1", "v2", "own_iou", "own_threshold", "own_box", "pointing")
_MASKED = ("mask_iou", "own_mask_iou", "on_objects", "elsewhere")


def assemble(tables: Arrays, failed: list[tuple[int, str, str]], pipelines: tuple[str, ...]) -> Measured:
    """Return the rows of an evaluation.

    Args:
        tables: From `camtools.evaluation.store.merged`.
        failed: Images that could not be evaluated: (index, id, error).
        pipelines: Their names.

    Raises:
        InputError: There is no row.
    """
    if not tables or not len(tables["rows/index"]):
        first = f" The first, {failed[0][1]!r}: {failed[0][2]}" if failed else ""
        raise InputError(
            f"no image could be evaluated: {len(failed)} failed, and the others have neither boxes nor masks.{first}"
        )
    ends = np.cumsum(tables["rows/truths"])[:-1]
    # A row's arrays are (N, P, ...), for they grow by rows; results have the pipelines first.
    swapped = {name: np.ascontiguousarray(tables[f"rows/{name}"].swapaxes(0, 1)) for name in _PAIRED}
    masked = {
        name: np.ascontiguousarray(tables[f"rows/{name}"].swapaxes(0, 1))
        for name in _MASKED
        if f"rows/{name}" in tables
    }
    rows = Rows(
        index=tables["rows/index"],
        ids=tables["rows/id"].tolist(),
        labels=tables["rows/label"],
        names=tables["rows/name"].tolist(),
        sizes=tables["rows/size"],
        truth=np.split(tables["truth/box"], ends),
        rank=tables["rows/rank"],
        score=tables["rows/score"],
        **swapped,
        **masked,
    )
    detections: dict[str, dict[str, Ranked]] = {}
    for number, name in enumerate(pipelines):
        for kind in ("boxes", "points"):
            if f"{kind}{number}/index" in tables:
                detections.setdefault(name, {})[kind] = Ranked(
                    image=tables[f"{kind}{number}/index"],
                    label=tables[f"{kind}{number}/label"],
                    score=tables[f"{kind}{number}/score"],
                    correct=tables[f"{kind}{number}/correct"],
                    true_image=tables[f"true_{kind}{number}/index"],
                    true_label=tables[f"true_{kind}{number}/label"],
                )
    return Measured(pipelines, rows, detections)
