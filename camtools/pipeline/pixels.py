"""From the feature grid to the images' pixels: the maps of images that share a geometry, or one map again later.

for rows in groups(geometries, at_once(geometries, classes)):
    done = on_pixels(pipeline, state, rows, geometry.resize)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camtools.images.geometry import Geometry
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.trace import TraceStep
from camtools.steps.base import Resize, State, Step

Item = TypeVar("Item")
Result = TypeVar("Result")

_VALUES = 1 << 24  # map values at image size that are worked on together


def on_pixels(
    pipeline: Pipeline,
    state: State,
    rows: Sequence[int],
    resize: Resize,
    images: Sequence[Image.Image] | None = None,
    trace: list[TraceStep] | None = None,
) -> State:
    """Run a pipeline's steps on the pixels of images that share a geometry.

    Args:
        pipeline: The pipeline.
        state: Of the whole batch, from `Engine.maps`.
        rows: Which images of the batch, b of them.
        resize: Takes maps from the feature grid to the pixels.
        images: These images, RGB and of one size, for steps that look at them; None where no step does.
        trace: A list to which the maps after every step are appended.

    Returns:
        The state of these images with `maps`, `masks` (b, K', H, W) and `thresholds` (b, K').
    """
    state = state.rows(rows).replace(resize=resize)
    device = state.require("maps", pipeline).device
    with plain(device):
        if images is not None:
            state = state.replace(images=_pixels(images, device))
        return pipeline.image(state, trace)


def map_on_pixels(
    steps: Sequence[Step], grid_map: Tensor, label: int, resize: Resize, image: Image.Image | None = None
) -> Tensor:
    """Take one map to an image's pixels: bit for bit what `on_pixels` makes of it in a batch.

    Args:
        steps: What acts on the pixels before the threshold, see `Pipeline.pixel_steps`.
        grid_map: (h, w).
        label: The class that it is of.
        resize: Takes maps from the feature grid to the pixels.
        image: The image, for steps that look at it.

    Returns:
        (H, W) float32.
    """
    with plain(grid_map.device):
        state = State(maps=resize(grid_map[None, None]), labels=torch.tensor([[label]], device=grid_map.device))
        if image is not None:
            state = state.replace(images=_pixels([image], grid_map.device))
        for step in steps:
            state = step(state)
        return state.require("maps", map_on_pixels)[0, 0]


def groups(keys: Sequence[Hashable], most: int | None = None) -> list[list[int]]:
    """Return the positions of equal keys together, ascending, in the order of their first; at most `most` per group."""
    positions: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    size = most or len(keys)
    return [group[start : start + size] for group in positions.values() for start in range(0, len(group), size)]


def at_once(geometries: Sequence[Geometry], classes: int) -> int:
    """Return how many images' maps are taken to pixels together: 64 MB of each tensor, or one image.

    Args:
        geometries: Of a batch's images.
        classes: Maps per image.
    """
    largest = max((height * width for height, width in (geometry.size for geometry in geometries)), default=1)
    return max(1, _VALUES // (largest * classes))


def portions(geometries: Sequence[Geometry], classes: int) -> Iterator[tuple[list[int], slice]]:
    """Yield the images of one geometry and the classes whose maps are taken to pixels together: 64 MB, or one map.

    Args:
        geometries: Of a batch's images.
        classes: Maps per image.
    """
    for rows in groups(geometries, at_once(geometries, classes)):
        height, width = geometries[rows[0]].size
        count = max(1, _VALUES // (height * width * len(rows)))
        for start in range(0, classes, count):
            yield rows, slice(start, min(start + count, classes))


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """Yield a function of each item, in their order; on the CPU several at a time, where torch may use several cores.

    Args:
        function: It leaves everything but its result as it is.
        items: At pixels each is large: at most four are under way.
        device: Where the work is done; a GPU's own order is kept.
    """
    waiting = list(items)
    workers = min(torch.get_num_threads(), len(waiting), 4) if device.type == "cpu" else 1
    if workers < 2:
        yield from map(function, waiting)
    else:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(function, waiting)


@contextmanager
def plain(device: torch.device) -> Iterator[None]:
    """No gradients, no inference mode, and no autocast: half precision has too few levels for a map."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _pixels(images: Sequence[Image.Image], device: torch.device) -> Tensor:
    """Return images of one size as (b, 3, H, W) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return pixels.permute(0, 3, 1, 2).to(device, torch.float32) / 255
