"""Score maps as the WSOL protocol reads them: resized to 224 x 224, min-max normalised, quantised to 256 levels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from camtools.errors import InputError
from camtools.metrics.arguments import map_size, numbers

PROTOCOL_SIZE = (224, 224)
"""Height and width at which the protocol compares maps with the truth."""

THRESHOLDS = torch.from_numpy(np.arange(0, 1, 0.001))
"""The protocol's thresholds: 0, 0.001 ... 0.999 of a map's maximum, (1000,) float64."""
BIN_EDGES = torch.cat([THRESHOLDS, torch.ones(1, dtype=torch.float64)])
"""Lower edges of PxAP's 1,001 bins of scores, float64; the last holds 1 alone."""

_CHUNK = 8  # maps at a time on a CPU: 3 MB in double precision, which stay in its cache from one step to the next


def scoremaps(maps: Tensor, size: tuple[int, int] | None = PROTOCOL_SIZE) -> Tensor:
    """Return score maps as the 8-bit levels the protocol thresholds: floor(255 s), s the normalised map.

    A map with a NaN, or of one value only, counts as zeros (Choe et al. 2020, `normalize_scoremap`).

    Args:
        maps: (B, H, W) of any real dtype, any range, on any device.
        size: (height, width) to resize to first, None for the maps' own.

    Returns:
        (B, height, width) uint8 on the maps' device. The largest level of a map is 255, or 0 for a map of zeros.

    Raises:
        InputError: `maps` is not such a tensor, or has an infinite value; or `size` is not two positive integers.
    """
    return _by_chunks(checked_maps(maps), lambda part: _normalised(part, size).mul_(255).to(torch.uint8))


def normalise(maps: Tensor, size: tuple[int, int] | None = PROTOCOL_SIZE) -> Tensor:
    """Resize score maps and normalise them to [0, 1], in double precision as the reference does.

    Args:
        maps: (B, H, W) of any real dtype, any range, on any device.
        size: (height, width) to resize to first, None for the maps' own.

    Returns:
        (B, height, width) float64 on the maps' device (the CPU for a device without float64); smallest value 0 and
        largest 1, or zeros for a map that has a NaN or one value only.

    Raises:
        InputError: `maps` is not such a tensor, or has an infinite value; or `size` is not two positive integers.
    """
    return _by_chunks(checked_maps(maps), lambda part: _normalised(part, size))


def _normalised(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize and normalise float64 maps."""
    if size is not None:
        maps = resize_cubic(maps, size)
    shifted = maps - maps.amin((-2, -1), keepdim=True)
    high = shifted.amax((-2, -1), keepdim=True)  # amin and amax pass a NaN on
    shifted /= high
    flat = (high == 0) | high.isnan()
    return shifted.masked_fill_(flat, 0.0) if flat.any() else shifted


def resize_cubic(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize as `cv2.resize(map, (width, height), interpolation=cv2.INTER_CUBIC)` does for float64 maps, bit for bit.

    Half-pixel centres, no antialiasing, edge pixels repeated, A = -0.75. The weights are rounded to float32 and the
    four products added from left to right, columns before rows: that order is OpenCV's, and decides the last bit.

    Args:
        maps: (B, H, W) float64.
        size: (height, width), positive. Maps that have it already are returned as they are.

    Returns:
        (B, height, width) float64 on the maps' device.

    Raises:
        InputError: `size` is not two positive integers.
    """
    if tuple(maps.shape[-2:]) == map_size(size):
        return maps
    for dim, side in ((-1, size[1]), (-2, size[0])):
        taps, weights = _taps(maps.shape[dim], side, maps.device)
        shape = (-1, 1) if dim == -2 else (-1,)
        total = maps.index_select(dim, taps[0]).mul_(weights[0].view(shape))
        for tap, weight in zip(taps[1:], weights[1:], strict=True):
            total += maps.index_select(dim, tap).mul_(weight.view(shape))
        maps = total
    return maps


def _taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return for each new pixel the four old ones it reads, (4, new), and their weights, (4, new) float64."""
    scale = 1.0 / (new / old)
    position = ((torch.arange(new, dtype=torch.float64) + 0.5) * scale - 0.5).float()
    left = position.floor()
    x = position - left  # float32, and so are the weights
    a, right = -0.75, 1 - x
    first = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
    second = ((a + 2) * x - (a + 3)) * x * x + 1
    third = ((a + 2) * right - (a + 3)) * right * right + 1
    weights = torch.stack([first, second, third, 1 - first - second - third]).double()
    taps = (left.long() + torch.arange(-1, 3).view(4, 1)).clamp(0, old - 1)
    return taps.to(device), weights.to(device)


def _by_chunks(maps: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of (B, H, W) maps, a few at a time on a CPU."""
    if maps.device.type != "cpu" or len(maps) <= _CHUNK:
        return function(maps)
    return torch.cat([function(part) for part in maps.split(_CHUNK)])


def checked_maps(maps: Tensor) -> Tensor:
    """Return score maps (B, H, W) in float64, on the CPU where their device has no such type.

    Raises:
        InputError: `maps` is not such a tensor, or has an infinite value.
    """
    maps = numbers("maps", maps)
    if maps.dim() != 3 or 0 in maps.shape[1:]:
        raise InputError(
            f"maps: expected shape (B, H, W), one score map per image, got {tuple(maps.shape)}. Choose the class "
            "first: maps[:, k] of (B, K, H, W)."
        )
    maps = (maps.cpu() if maps.device.type == "mps" else maps).double()
    infinite = maps.isinf().flatten(1).any(1)
    if infinite.any():
        raise InputError(
            f"maps[{int(infinite.nonzero()[0, 0])}] has an infinite value; a score map is finite, or NaN where "
            "the method failed (it then counts as zeros)."
        )
    return maps
