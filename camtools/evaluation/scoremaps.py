"""Score maps on disk, of any method, judged as the reference judges them: `FOLDER/<image_id>.npy`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camtools.errors import InputError
from camtools.evaluation.rows import Rows
from camtools.evaluation.runner import Runner
from camtools.evaluation.sample import Sample, prepare
from camtools.evaluation.scores import score_rows
from camtools.evaluation.store import Shard
from camtools.metrics.scoremap import PROTOCOL_SIZE, normalise


class MapRunner(Runner):
    """Evaluates maps from files.

    Args:
        folders: By the name of the method.
        masks: Whether the data set has masks.
        *rest: Those of `Runner`; the classes are the data set's own.
    """

    def __init__(self, folders: Mapping[str, Path], masks: bool, *rest: Any) -> None:
        super().__init__(*rest)
        self.folders, self.masks = folders, masks

    def read(self, index: int) -> tuple[Sample, list[Tensor]]:
        """Return an image's truth and its map in every folder."""
        sample = prepare(self.data.record(index), index, self.classes, None)
        if len(sample.truths) > 1:
            raise InputError(
                f"{sample.id!r} has {len(sample.truths)} classes, but there is one score map per image: expected data "
                "with one class per image"
            )
        return sample, [read_map(folder, sample.id) for folder in self.folders.values()]

    def forward(self, images: list[tuple[Sample, list[Tensor]]]) -> list[tuple[Sample, list[Tensor]]]:
        """Return the images: their maps are there already."""
        return images

    def score(self, passes: list[tuple[Sample, list[Tensor]]]) -> Shard:
        """Measure every folder's maps against the truth."""
        done = [sample.index for sample, _ in passes]
        kept = [(sample, maps) for sample, maps in passes if sample.truths]
        if not kept:
            return Shard(done, [])
        pairs = [(sample, sample.truths[0]) for sample, _ in kept]
        stacks = [torch.stack(list(maps)) for maps in zip(*(maps for _, maps in kept), strict=True)]
        return Shard(done, [], Rows.stacked([score_rows(stack, pairs, masks=self.masks) for stack in stacks]))


def map_folders(given: str | Path | Mapping[str, str | Path]) -> dict[str, Path]:
    """Return the folders of score maps by the name of their method.

    Args:
        given: One folder, named by its own name; or a mapping from names to folders.

    Raises:
        InputError: One is not a folder.
    """
    pairs = given.items() if isinstance(given, Mapping) else [(Path(given).resolve().name, given)]
    folders = {str(name): Path(folder) for name, folder in pairs}
    for folder in folders.values():
        if not folder.is_dir():
            raise InputError(f"scoremaps: {str(folder)!r} is not a folder: expected one with <image_id>.npy in it")
    if not folders:
        raise InputError("scoremaps is empty: expected at least one folder")
    return folders


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
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no score map {folder / f'{name}.npy'}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"the score map {path} cannot be read ({error}): expected an .npy file") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiub":
        shown = getattr(values, "shape", type(values).__name__)
        raise InputError(f"the score map {path} has shape {shown} and dtype {values.dtype}: expected (H, W) numbers")
    if np.isinf(values).any():
        raise InputError(f"the score map {path} has an infinite value: expected finite numbers, or NaN")
    return normalise(torch.from_numpy(values.astype(np.float64))[None], PROTOCOL_SIZE)[0]
