"""Finished batches: in memory, or as Parquet files that a run killed at any moment can go on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from camtools.errors import InputError
from camtools.evaluation.rows import (
    Array,
    Detections,
    Rows,
    detections_table,
    join_detections,
    rows_table,
    table_detections,
    table_rows,
)
from camtools.evaluation.statistics import Measured
from camtools.files import parse_json, replacing, write_json

SETTINGS, SHARDS = "run.json", "shards"
_ROWS, _DETECTIONS = ".rows.parquet", ".detections.parquet"
_IMAGES = b"camtools.images"  # key of a file's metadata

Failure = tuple[int, str, str]
"""Index, id and error of an image that could not be evaluated."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A finished batch: the whole of some images.

    Attributes:
        done: Index of every image that was evaluated, those without a row included.
        failed: Those that could not be.
        rows: What was measured; None where no image has a row.
        detections: Of multi-label data.
    """

    done: list[int]
    failed: list[Failure]
    rows: Rows | None = None
    detections: Detections = field(default_factory=dict)


class Store:
    """Finished batches of one run.

    On disk a batch is a file like rows.parquet, with the images done and failed in its metadata, and where there are
    detections a file like detections.parquet before it.

    Args:
        folder: Where the files go, made if need be; None keeps all in memory.
        pipelines: Their names.
        settings: What the rows depend on, as JSON keeps it.
        fresh: Whether to start over, whatever the folder holds of an earlier run.
        leader: Whether this process writes what all share.

    Raises:
        InputError: The folder holds rows of other settings, or cannot be written.
    """

    def __init__(
        self,
        folder: Path | None,
        pipelines: Sequence[str],
        settings: dict[str, Any],
        *,
        fresh: bool = False,
        leader: bool = True,
    ) -> None:
        self.folder = folder
        self.pipelines = pipelines
        self._kept: list[Shard] = []
        if folder is not None and leader:
            self._settle(folder, json.loads(json.dumps(settings)), fresh)

    def done(self) -> set[int]:
        """Return the images, by index, that need not be evaluated again; those that failed do."""
        if self.folder is None:
            return {index for shard in self._kept for index in shard.done}
        return {index for path in self._files() for index in _read(path, rows=False).done}

    def add(self, shard: Shard) -> None:
        """Keep a finished batch; on disk it appears whole or not at all.

        Raises:
            InputError: It cannot be written.
        """
        if self.folder is None:
            self._kept.append(shard)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        images = [*shard.done, *(index for index, _, _ in shard.failed)]
        # With their number: a batch that is tried again after failures has fewer, and may begin and end the same.
        path = self.folder / SHARDS / f"{min(images):08d}-{max(images):08d}-{len(images)}{_ROWS}"
        if shard.detections:
            with replacing(_beside(path)) as partial:
                pq.write_table(detections_table(shard.detections), partial)
        table = pa.table({}) if shard.rows is None else rows_table(shard.rows, self.pipelines)
        images_json = json.dumps({"done": shard.done, "failed": shard.failed})
        with replacing(path) as partial:
            pq.write_table(table.replace_schema_metadata({_IMAGES: images_json}), partial)

    def read(self) -> list[Shard]:
        """Return all finished batches, in the order of their first images.

        Raises:
            InputError: A file is broken.
        """
        return list(self._kept) if self.folder is None else [_read(path) for path in self._files()]

    def _files(self) -> list[Path]:
        assert self.folder is not None
        return sorted((self.folder / SHARDS).glob(f"[0-9]*{_ROWS}"))

    def _settle(self, folder: Path, settings: dict[str, Any], fresh: bool) -> None:
        """Make the folder this run's."""
        shards, known = folder / SHARDS, folder / SETTINGS
        try:
            if fresh:
                forget(folder)
            shards.mkdir(parents=True, exist_ok=True)
            if known.exists():
                _compare(known, settings)
            elif self._files():
                raise InputError(
                    f"{folder} holds rows without {SETTINGS}, so of unknown settings: start over (--fresh)"
                )
            write_json(settings, known)
        except OSError as error:
            raise InputError(f"{folder} cannot be used as the output folder: {error}. Name another --out") from error


def forget(folder: Path) -> None:
    """Remove a run's finished batches, and their folder where nothing else is in it."""
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def merged(shards: Iterable[Shard], pipelines: tuple[str, ...]) -> tuple[Measured, list[Failure]]:
    """Put batches together, sorted by image.

    Args:
        shards: As they were added, from any number of processes; an image that occurs twice counts once.
        pipelines: Their names.

    Returns:
        What was measured, and the images that failed and were not evaluated later either.

    Raises:
        InputError: There is no row.
    """
    rows: list[Rows] = []
    detections: list[Detections] = []
    seen: set[int] = set()
    failures: dict[int, Failure] = {}
    for shard in shards:
        again = np.array([index for index in shard.done if index in seen], dtype=np.int64)

        def new(index: Array, again: Array = again) -> Array:
            return np.flatnonzero(~np.isin(index, again))

        rows += [] if shard.rows is None else [shard.rows.pick(new) if len(again) else shard.rows]
        detections.append({n: {k: r.pick(new) for k, r in kinds.items()} for n, kinds in shard.detections.items()})
        seen.update(shard.done)
        failures |= {failure[0]: failure for failure in shard.failed}
    failed = [failures[index] for index in sorted(failures) if index not in seen]
    if not sum(map(len, rows)):
        first = f" The first, {failed[0][1]!r}: {failed[0][2]}" if failed else ""
        raise InputError(
            f"no image could be evaluated: {len(failed)} failed, and the others have neither boxes nor masks.{first}"
        )
    joined = join_detections(detections, pipelines)
    ranked = {name: {kind: part.pick(_in_order) for kind, part in kinds.items()} for name, kinds in joined.items()}
    return Measured(pipelines, Rows.joined(rows).pick(_in_order), ranked), failed


def _in_order(index: Array) -> Array:
    return np.argsort(index, kind="stable")


def _beside(path: Path) -> Path:
    """Return where the detections of a batch are."""
    return path.with_name(path.name.removesuffix(_ROWS) + _DETECTIONS)


def _read(path: Path, *, rows: bool = True) -> Shard:
    """Read a batch, or only which images it has."""
    import pyarrow.parquet as pq

    try:
        images = parse_json(pq.read_schema(path).metadata[_IMAGES])
        done, failed = images["done"], [(index, name, error) for index, name, error in images["failed"]]
        if not rows:
            return Shard(done, failed)
        table, beside = pq.read_table(path), _beside(path)
        detections = table_detections(pq.read_table(beside)) if beside.exists() else {}
        return Shard(done, failed, table_rows(table) if table.num_rows else None, detections)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is broken ({error}): delete it, and run again") from error


def _compare(path: Path, settings: dict[str, Any]) -> None:
    try:
        before = parse_json(path.read_text(encoding="utf-8"))
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
