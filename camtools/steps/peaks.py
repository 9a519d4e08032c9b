"""Peaks: a mask is split where its map has separate peaks, so that neighbouring objects get a box each."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import max_pool2d

from camtools.boxes import SPECK, PartBoxes, boxes_from_parts
from camtools.checks import number, whole
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step

_EIGHT = np.ones((3, 3))  # neighbours


class Peaks(Step):
    """Split each mask among its map's peaks: along the valleys between them, where these are deep enough.

    A peak counts where the map falls by more than `h` times its maximum on every way from it to a higher one (the
    h-maxima of mathematical morphology); of equal neighbours either counts. A watershed of the map, flooded from these
    peaks within the mask, gives each pixel to one of them. A part of the mask without such a valley stays whole, so
    that every connected part holds at least one peak, however low.

    The map is looked at through cells, each with the maximum of its pixels; cuts run along the cells' edges. All maps
    of a batch lie below one another in one image, a single call for each step of the morphology on the CPU, and every
    map's parts are what they are alone.

    Reads `State.maps`, (B, K', H, W) in [0, 1], and `State.masks`; sets `State.parts`, (B, K', H, W) int32, the number
    of each pixel's peak, 1, 2 ... in each map, and 0 outside the mask. Masks and maps stay.

    Source: Soille, "Morphological Image Analysis", 2nd ed., 2003, sections 6.3.4 (h-maxima) and 9.2 (markers), by
    scikit-image's `reconstruction`, `local_maxima` and `watershed`.

    Args:
        h: Least depth of a valley, as a fraction of the map's maximum, above 0 and below 1.
        cells: Most cells along the map's longer side, at least 1.
        overlap: Non-maximum suppression of the boxes: one whose IoU with that of a higher peak of the same mask is
            above this is left out; in [0, 1], and 1 leaves out none.

    Raises:
        PipelineError: A parameter is out of range; or, when called, the state has no maps or no masks.
    """

    stage = Stage.PARTS
    resolution = "image"

    def __init__(self, h: float = 0.2, cells: int = 64, overlap: float = 0.5) -> None:
        number("h", h, "(0, 1)", owner="Peaks", error=PipelineError)
        whole("cells", cells, owner="Peaks", error=PipelineError)
        number("overlap", overlap, "[0, 1]", owner="Peaks", error=PipelineError)
        self.h = h
        self.cells = cells
        self.overlap = overlap

    def __call__(self, state: State) -> State:
        """Return the state with parts."""
        maps, masks = state.require("maps", self), state.require("masks", self)
        *_, height, width = maps.shape
        side = -(-max(height, width) // self.cells)  # of a cell, in pixels
        shares = maps.detach().float() / maps.detach().amax((-2, -1), keepdim=True).clamp_min(1e-12)
        cells = max_pool2d(torch.where(masks, shares, -1.0).flatten(0, 1), side, ceil_mode=True)
        numbers = torch.from_numpy(peak_basins(cells.cpu().numpy(), self.h)).to(maps.device)
        numbers = numbers.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]
        return state.replace(parts=torch.where(masks, numbers.view_as(masks), 0))


def peak_basins(maps: NDArray[np.float32], h: float) -> NDArray[np.int32]:
    """Give each position of a map to one of its peaks.

    Args:
        maps: (n, H, W) in [0, 1], and -1 outside the masks.
        h: Least depth of the valleys.

    Returns:
        (n, H, W), 1, 2 ... in each map, by the topmost and then leftmost position of the peaks; 0 outside the masks.
    """
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    count, height, width = maps.shape
    apart = np.full((count, height + 1, width), -1, dtype=np.float32)  # a row of background below each map
    apart[:, :height] = maps
    tall = apart.reshape(-1, width)
    inside = tall >= 0
    lowered = reconstruction(np.where(inside, np.maximum(tall - h, -1), -1), tall, footprint=_EIGHT)
    peaks, _ = ndimage.label(local_maxima(lowered, connectivity=2) & inside, _EIGHT)
    basins = watershed(-tall, peaks, connectivity=2, mask=inside).reshape(apart.shape)[:, :height]
    before = np.maximum.accumulate(np.append(0, basins.max((1, 2), initial=0)[:-1]))  # peaks in the maps above
    return np.where(basins > 0, basins - before[:, None, None], 0).astype(np.int32)


def part_boxes(state: State, peaks: Peaks | None) -> list[PartBoxes]:
    """Return the boxes of the parts of every mask, specks left out.

    Args:
        state: With maps and masks, (B, K', H, W); its parts are found here where it has none.
        peaks: The step that splits the masks; None keeps connected parts whole.

    Returns:
        One for each mask, in row-major order over B and K'.
    """
    if peaks is not None and state.parts is None:
        state = peaks(state)
    masks = state.require("masks" if peaks is None else "parts", part_boxes)
    return boxes_from_parts(masks, state.require("maps", part_boxes), SPECK, 1.0 if peaks is None else peaks.overlap)
