"""Score maps on disk, of any method, judged as the reference judges them: `FOLDER/<image_id>.npy`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camtools.classes.matching import ClassMap
from camtools.datasets.selection import Selection
from camtools.errors import CamtoolsError, InputError
from camtools.evaluation.runner import Failure, known_rows
from camtools.evaluation.sample import Sample, prepare
from camtools.evaluation.scores import Arrays, score_rows
from camtools.metrics.scoremap import PROTOCOL_SIZE, normalise


@dataclass(frozen=True)
class MapReader:
    """Evaluates batches of one data set with maps from files; it runs as a `Runner` does.

    Attributes:
        folders: By the name of the method.
        data: The images.
        classes: The data set's own, as they are.
        masks: Whether the data set has masks.
        workers: Threads that read.
    """

    folders: Mapping[str, Path]
    data: Selection
    classes: ClassMap
    masks: bool
    workers: int = 4

    def over(self, chunks: Sequence[list[int]], keep: Callable[[Arrays], None], tick: Callable[[int], None]) -> None:
        """Evaluate images batch by batch, see `Runner.over`."""
        with ThreadPoolExecutor(self.workers) as pool:
            for chunk in chunks:
                futures = [pool.submit(self._read, index) for index in chunk]
                samples: list[Sample] = []
                maps: list[list[Tensor]] = []
                failed: list[Failure] = []
                for index, future in zip(chunk, futures, strict=True):
                    try:
                        sample, of_folders = future.result()
                        samples.append(sample)
                        maps.append(of_folders)
                    except Exception as error:  # this image's trouble, not the run's
                        kind = "" if isinstance(error, CamtoolsError) else f"{type(error).__name__}: "
                        failed.append((index, self.data.id_of(index), kind + " ".join(str(error).split())))
                keep(self._scored(samples, maps, failed))
                tick(len(chunk))

    def _read(self, index: int) -> tuple[Sample, list[Tensor]]:
        sample = prepare(self.data.record(index), index, self.classes, None)
        if len(sample.truths) > 1:
            raise InputError(
                f"{sample.id!r} has {len(sample.truths)} classes, but there is one score map per image: expected data "
                "with one class per image"
            )
        return sample, [read_map(folder, sample.id) for folder in self.folders.values()]

    def _scored(self, samples: list[Sample], maps: list[list[Tensor]], failed: list[Failure]) -> Arrays:
        tables = known_rows(samples, failed)
        pairs = [(sample, truth) for sample in samples for truth in sample.truths]
        kept = [of_folders for sample, of_folders in zip(samples, maps, strict=True) if sample.truths]
        found = []
        for number in range(len(self.folders)):
            stack = [of_folders[number] for of_folders in kept]
            scores = torch.stack(stack) if stack else torch.zeros((0, *PROTOCOL_SIZE), dtype=torch.float64)
            found.append(score_rows(scores, pairs, masks=self.masks))
        for name in found[0]:
            tables[f"rows/{name}"] = np.stack([each[name] for each in found], 1)
        count, methods = len(pairs), len(self.folders)
        nothing = np.full((count, methods), np.nan, dtype=np.float32)
        tables |= {f"rows/{name}": nothing for name in ("own_iou", "own_threshold")}
        tables["rows/own_box"] = np.full((count, methods, 4), np.nan, dtype=np.float32)
        if self.masks:
            tables["rows/own_mask_iou"] = nothing
        tables["rows/rank"] = np.full(count, -1, dtype=np.int64)
        tables["rows/score"] = np.full(count, np.nan, dtype=np.float32)
        return tables


def map_folders(given: str | Path | Mapping[str, str | Path]) -> dict[str, Path]:
    """Return the folders of score maps by the name of their method.

    Args:
        given: One folder, named by its own name; or a mapping from names to folders.

    Raises:
        InputError: One is not a folder.
    """
    pairs = given.items() if isinstance(given, Mapping) else [(Path(given).resolve().name, given)]
    found = {str(name): Path(folder) for name, folder in pairs}
    for folder in found.values():
        if not folder.is_dir():
            raise InputError(f"scoremaps: {str(folder)!r} is not a folder: expected one with <image_id>.npy in it")
    if not found:
        raise InputError("scoremaps is empty: expected at least one folder")
    return found


def read_map(folder: Path, name: str) -> Tensor:
    """Read an image's score map, resize it to the protocol's size and normalise it.

    A map with a NaN, or of one value only, counts as zeros.

    Args:
        folder: Where maps are.
        name: The image's id, which may have folders in it; "a/b.jpg" has its map in "a/b.jpg.npy" or "a/b.npy".

    Returns:
        (224, 224) float64 in [0, 1].

    Raises:
        InputError: The file is missing, cannot be read, or is no map (H, W) of finite numbers or NaN.
    """
    path = folder / f"{name}.npy"
    if not path.exists():
        path = (folder / name).with_suffix(".npy")
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no score map {folder / f'{name}.npy'}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"the score map {path} cannot be read ({error}): expected an .npy file") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "fiub":
        shown = getattr(found, "shape", type(found).__name__)
        raise InputError(f"the score map {path} has shape {shown} and dtype {found.dtype}: expected (H, W) numbers")
    if np.isinf(found).any():
        raise InputError(f"the score map {path} has an infinite value: expected finite numbers, or NaN")
    return normalise(torch.from_numpy(found.astype(np.float64))[None], PROTOCOL_SIZE)[0]
