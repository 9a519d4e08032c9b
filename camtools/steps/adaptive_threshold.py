"""The adaptive threshold (Zhang): where the values along the mask's boundary jump."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step

Select = Literal["first", "largest"]

FALLBACK = 0.2
"""The fraction of the maximum used where no level is a candidate; that of `FixedThreshold`."""

TOLERANCE = 1e-5
"""What rounding may move, in units of the map's maximum: float32 maps differ by 2e-6 between batches of 1 and 32.
Values less than this above a level do not count as above it, and differences of D below it count as none."""


class AdaptiveThreshold(Step):
    """Choose each map's threshold among equally spaced levels by how fast the values on its mask's boundary change.

    For each level eta = 0, interval, 2 * interval ... 1: mask = M' > eta * max M'; V(eta) is the mean of M' over the
    mask's boundary pixels, those with at least one of their 4 neighbours outside the mask or outside the image;
    D(eta) = abs(V(eta) - V(eta - interval)). The candidates are the levels with D above the mean of D. An empty mask
    has no V (so eta = 1 has none), and D is defined only where both V are.

    Where there is no candidate (a map of zeros, a single bright pixel, an even ramp) the level is 0.2, as in
    `FixedThreshold`. Lest rounding decide, a pixel is in the mask of a level only where it exceeds it by 1e-5 of the
    maximum (the lowest values of a map are 0 but for rounding, and there are many), and differences of D under 1e-5 of
    the maximum count as none.

    Reads the normalised `State.maps`, (B, K', H, W) in [0, 1]; sets `masks`, (B, K', H, W) bool, and `thresholds`,
    (B, K'), the value eta * max M'. One pass serves all levels: a pixel is on the boundary of the masks of exactly
    those levels t with E <= t < M', where E is the lowest value among itself and its 4 neighbours.

    Source: Zhang, Chang and Bui, "Improving Class Activation Map for Weakly Supervised Object Localization", ICASSP
    2022, section 4.3 and the blue line of Fig. 3. The text leaves open which candidate to take: hence `select`.

    Args:
        select: "first" takes the smallest candidate (the widest mask); "largest" the candidate with the largest D, the
            smallest of equals.
        interval: Distance between levels, as a fraction of the maximum, from 0.001 up to but not including 0.5, where
            no two D could be compared.

    Raises:
        PipelineError: A parameter is not in its range; or, when called, the state has no maps.
    """

    stage = Stage.THRESHOLD
    resolution = "image"

    def __init__(self, select: Select = "first", interval: float = 0.05) -> None:
        if select not in ("first", "largest"):
            raise PipelineError(f"AdaptiveThreshold(select={select!r}): select must be 'first' or 'largest'.")
        if not (isinstance(interval, float | Real) and 0.001 <= interval < 0.5):
            raise PipelineError(
                f"AdaptiveThreshold(interval={interval!r}): interval must be a number, 0.001 <= interval < 0.5."
            )
        self.select: Select = select
        self.interval = interval

    def __call__(self, state: State) -> State:
        """Return the state with masks and thresholds."""
        maps = state.require("maps", self)
        peaks = maps.amax((-2, -1))
        steps = torch.arange(math.floor(1 / self.interval + 1e-9) + 1, dtype=torch.float64, device=maps.device)
        levels = (steps * float(self.interval)).clamp_max(1).to(maps.dtype)
        means = boundary_means(maps.detach(), (levels + TOLERANCE) * peaks.detach().clamp_min(0)[..., None])
        thresholds = self._choose(means, levels, peaks.detach()) * peaks
        return state.replace(masks=maps > thresholds[..., None, None], thresholds=thresholds)

    def _choose(self, means: Tensor, levels: Tensor, peaks: Tensor) -> Tensor:
        """Return the level (B, K') that the boundary means (B, K', L) speak for."""
        change = means.diff(dim=-1).abs()  # D of levels[1:]; NaN where undefined
        slack = TOLERANCE * peaks.double()[..., None]
        candidates = change > change.nanmean(-1, keepdim=True) + slack  # False where NaN
        if self.select == "largest":
            candidates &= change >= change.nan_to_num(-1).amax(-1, keepdim=True) - slack
        first = candidates.to(torch.uint8).argmax(-1) + 1  # argmax returns the first of equals
        return torch.where(candidates.any(-1), levels[first], FALLBACK)


def boundary_means(maps: Tensor, thresholds: Tensor) -> Tensor:
    """Return the mean value of each map over the boundary pixels of its mask, for many thresholds at once.

    A mask is `map > threshold`; its boundary pixels are those with one of their 4 neighbours outside the mask, or
    outside the image (`mask & ~scipy.ndimage.binary_erosion(mask)`).

    Args:
        maps: (..., H, W) float, finite.
        thresholds: (..., L), ascending.

    Returns:
        (..., L) float64; NaN where the mask is empty.
    """
    count = thresholds.shape[-1]
    height, width = maps.shape[-2:]
    values = maps.reshape(-1, height * width)
    # A pixel lies above the first `above` of its map's thresholds, and all its neighbours above the first `inside`.
    above = torch.searchsorted(thresholds.reshape(-1, count).contiguous(), values.contiguous(), out_int32=True)
    above = above.to(torch.uint8 if count < 256 else torch.int16).view(-1, height, width)
    padded = F.pad(above, (1, 1, 1, 1))
    vertical = torch.minimum(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
    horizontal = torch.minimum(padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    inside = torch.minimum(torch.minimum(vertical, horizontal), above)
    # Boundary at thresholds inside ... above - 1: +1 at the former, -1 at the latter, and a running sum.
    pixels = (inside < above).flatten().nonzero().squeeze(1)
    row = pixels.div(height * width, rounding_mode="floor") * (count + 1)
    slots = torch.cat([row + inside.flatten()[pixels], row + above.flatten()[pixels]])
    weights = values.flatten()[pixels].double()
    shape, size = (*thresholds.shape[:-1], count + 1), len(values) * (count + 1)
    sums = weights.new_zeros(size).scatter_add_(0, slots, torch.cat([weights, -weights]))
    ones = torch.ones_like(pixels)
    numbers = pixels.new_zeros(size).scatter_add_(0, slots, torch.cat([ones, -ones]))
    sums, numbers = (x.view(shape).cumsum(-1)[..., :-1] for x in (sums, numbers))
    return torch.where(numbers > 0, sums / numbers.clamp_min(1), math.nan)
