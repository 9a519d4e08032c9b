"""Where the network's input lies in the original picture, and how maps and boxes get from one to the other.

Coordinates are in pixels and run from edge to edge: 0 is the left edge of the leftmost pixel, `width` the right edge of
the rightmost, and pixel i has its centre at i + 0.5 (half-pixel centres, `align_corners=False`).
`measure_geometry` finds the map of a transform that does not say what it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from camtools.errors import InputError

Mode = Literal["bilinear", "bicubic"]

_BICUBIC_A = -0.75  # Keys' coefficient as in torch.nn.functional.interpolate


@dataclass(frozen=True)
class Geometry:
    """The axis-aligned map from the original picture to the network's input, u = x * scale + offset on each axis.

    All pairs are (vertical, horizontal), as in (height, width).

    Attributes:
        size: Height and width of the original picture, pixels.
        input_size: Height and width of the network's input, pixels.
        scale: Input pixels per original pixel, > 0.
        offset: Input coordinate of the original picture's top left corner, input pixels; negative where a crop cut
            something off, positive where padding was added.

    Raises:
        InputError: A size below 1, or a scale or offset that is not finite or a scale that is not positive.
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    def __post_init__(self) -> None:
        if min(*self.size, *self.input_size) < 1:
            raise InputError(f"{self!r} has a side below 1: expected sizes (height, width) of at least 1 x 1 pixels")
        if not all(map(math.isfinite, (*self.scale, *self.offset))) or min(self.scale) <= 0:
            raise InputError(f"{self!r} cannot be undone: expected finite scales above 0 and finite offsets")

    @classmethod
    def identity(cls, size: tuple[int, int]) -> Geometry:
        """The network sees the picture as it is.

        Args:
            size: (height, width) in pixels, of the picture and of the input.
        """
        return cls(size, size, (1.0, 1.0), (0.0, 0.0))

    @classmethod
    def from_resize_crop(cls, size: tuple[int, int], resized: tuple[int, int], input_size: tuple[int, int]) -> Geometry:
        """A resize followed by a centre crop, or by centred padding on an axis where the crop is larger.

        The rounding is torchvision's (`center_crop`, which timm's `center_crop_or_pad` shares): a crop starts at
        `int(round((side - crop) / 2))`, padding at `(crop - side) // 2`.

        Args:
            size: (height, width) of the original picture.
            resized: (height, width) after the resize.
            input_size: (height, width) of the crop.
        """
        top, left = (centre_offset(side, crop) for side, crop in zip(resized, input_size, strict=True))
        scale = (resized[0] / size[0], resized[1] / size[1])
        return cls(size, input_size, scale, (float(top), float(left)))

    @property
    def covers_all(self) -> bool:
        """Whether the network sees every pixel of the original, i.e. no pixel's centre lies outside its input."""
        return all(
            0.5 * scale + offset >= 0 and (side - 0.5) * scale + offset <= seen
            for side, seen, scale, offset in zip(self.size, self.input_size, self.scale, self.offset, strict=True)
        )

    @property
    def visible_box(self) -> tuple[float, float, float, float]:
        """What the network sees of the original: x0, y0, x1, y1 in original pixels, clipped to the picture."""
        corners = torch.tensor([[0.0, 0.0, self.input_size[1], self.input_size[0]]], dtype=torch.float64)
        x0, y0, x1, y1 = self.boxes_to_original(corners)[0].tolist()
        return x0, y0, x1, y1

    def resize(self, maps: Tensor, mode: Mode = "bilinear") -> Tensor:
        """Interpolate maps from the feature grid to the original picture's pixels, in one step.

        The grid's h x w cells tile the network's input. Within the input, edges clamp; pixels whose centre lies outside
        it (cut off by a crop) get the minimum of their map: unseen is no evidence. With the identity geometry this
        is `torch.nn.functional.interpolate(..., align_corners=False)`.

        Args:
            maps: (B, K', h, w), floating, any range and device; half precision is interpolated in float32.
            mode: "bilinear", or "bicubic" (a = -0.75), which may overshoot the range of the map.

        Returns:
            (B, K', H, W) with (H, W) = `size`, of the same dtype and device; gradients flow.

        Raises:
            InputError: `maps` is not a floating 4-dimensional tensor of at least 1 x 1 cells, or `mode` is unknown.
        """
        if maps.ndim != 4 or 0 in maps.shape[-2:] or not maps.is_floating_point():
            raise InputError(
                f"maps have shape {tuple(maps.shape)} and dtype {maps.dtype}: expected floating (B, K', h, w). "
                f"Add the missing dimensions, e.g. maps[None, None] for a single map"
            )
        if mode not in get_args(Mode):
            raise InputError(f"mode is {mode!r}: expected one of {', '.join(map(repr, get_args(Mode)))}. Choose one")
        dtype = maps.dtype if maps.dtype == torch.float64 else torch.float32
        rows, columns = (
            _axis_matrix(*axis, mode).to(maps.device, dtype)
            for axis in zip(self.size, self.input_size, self.scale, self.offset, maps.shape[-2:], strict=True)
        )
        source = maps.to(dtype)
        unseen = source.amin((-2, -1), keepdim=True)  # one more cell on each axis, which only unseen pixels draw on
        with torch.autocast(maps.device.type, enabled=False):
            source = torch.cat([source, unseen.expand(-1, -1, source.shape[2], 1)], 3) @ columns.mT
            resized = rows @ torch.cat([source, unseen.expand(-1, -1, 1, source.shape[3])], 2)
        return resized.to(maps.dtype)

    def boxes_to_original(self, boxes: Tensor, clip: bool = True) -> Tensor:
        """Take boxes from the network's input to the original picture.

        Args:
            boxes: (..., 4), x0, y0, x1, y1 in input pixels, edge to edge (half-open).
            clip: Cut them off at the picture's border.

        Returns:
            (..., 4) in original pixels; floating, not rounded.
        """
        scale, offset = self._per_coordinate(boxes)
        return self._clip((boxes - offset) / scale, self.size if clip else None)

    def boxes_to_input(self, boxes: Tensor, clip: bool = True) -> Tensor:
        """Take boxes from the original picture to the network's input.

        Args:
            boxes: (..., 4), x0, y0, x1, y1 in original pixels, edge to edge (half-open).
            clip: Cut them off at the input's border; a box that was cropped away gets an area of 0.

        Returns:
            (..., 4) in input pixels; floating, not rounded.
        """
        scale, offset = self._per_coordinate(boxes)
        return self._clip(boxes * scale + offset, self.input_size if clip else None)

    def _per_coordinate(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset of x0, y0, x1, y1, each (4,), in the boxes' floating type."""
        if boxes.ndim < 1 or boxes.shape[-1] != 4:
            raise InputError(f"boxes have shape {tuple(boxes.shape)}: expected (..., 4), x0, y0, x1, y1. Reshape them")
        dtype = boxes.dtype if boxes.is_floating_point() else torch.float32
        (sy, sx), (oy, ox) = self.scale, self.offset
        return boxes.new_tensor([sx, sy, sx, sy], dtype=dtype), boxes.new_tensor([ox, oy, ox, oy], dtype=dtype)

    @staticmethod
    def _clip(boxes: Tensor, size: tuple[int, int] | None) -> Tensor:
        if size is None:
            return boxes
        return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([size[1], size[0], size[1], size[0]]))


def centre_offset(side: int, crop: int) -> int:
    """Where a centred picture starts in its crop, torchvision's rounding; negative if cut, positive if padded.

    Args:
        side: Length of the picture, pixels.
        crop: Length of the crop, pixels.
    """
    return (crop - side) // 2 if crop > side else -round((side - crop) / 2)


@lru_cache(maxsize=128)
def _axis_matrix(side: int, input_side: int, scale: float, offset: float, cells: int, mode: Mode) -> Tensor:
    """Interpolation weights along one axis, (side, cells + 1) float32 on the CPU.

    A pixel whose centre lies outside the input takes the additional last cell, all others leave it alone.
    """
    u = (torch.arange(side, dtype=torch.float64) + 0.5) * scale + offset
    position = u * (cells / input_side) - 0.5  # in cells, counted from the first cell's centre
    if mode == "bilinear":
        position = position.clamp(0, cells - 1)
        first = position.floor()
        t = position - first
        taps = torch.stack([1 - t, t])
    else:
        first = position.floor() - 1
        t = position - first - 1
        taps = torch.stack([_cubic_far(t + 1), _cubic_near(t), _cubic_near(1 - t), _cubic_far(2 - t)])
    inside = (u >= 0) & (u <= input_side)
    index = (first.long() + torch.arange(len(taps))[:, None]).clamp(0, cells - 1)
    matrix = torch.zeros(side, cells + 1, dtype=torch.float64)
    matrix.scatter_add_(1, index.T, (taps * inside).T)
    matrix[:, cells] = (~inside).double()
    return matrix.float()


def _cubic_near(t: Tensor) -> Tensor:
    """Keys' cubic kernel for distances t in [0, 1] (Keys 1981, eq. 15, with general a)."""
    return ((_BICUBIC_A + 2) * t - (_BICUBIC_A + 3)) * t * t + 1


def _cubic_far(t: Tensor) -> Tensor:
    """Keys' cubic kernel for distances t in [1, 2]."""
    return ((_BICUBIC_A * t - 5 * _BICUBIC_A) * t + 8 * _BICUBIC_A) * t - 4 * _BICUBIC_A


_SMALLEST = 8  # pixels a side; below, a ramp has too few steps to be measured
_CYCLES = 8  # of the ramp's dither
_LINES = 256  # of the output that are looked at, spread over it


def measure_geometry(transform: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> Geometry:
    """Find out what a transform does to positions, from what it makes of six to ten synthetic pictures.

    A black and a white picture tell what each output pixel makes of a brightness (normalisation; padding takes
    nothing from the picture). With that undone, a ramp along x says for each output pixel which x it shows, and
    another the same for y, both also inverted; a line is fitted to each by least squares. Where a crop leaves little
    of an axis, a second, steeper ramp refines it. Within the picture the result is accurate to about half a pixel of
    the original; whole numbers (a resize to whole pixels, a crop between pixels) are restored where they are well
    within that. Least exact where a padded picture fills fewer than some ten rows of the input.

    Args:
        transform: Takes an RGB picture to a floating tensor (C, h, w); deterministic.
        size: (height, width) of the pictures to measure for.

    Raises:
        InputError: The transform flips, turns, shears or warps, hides brightness, or `size` is below 8 x 8.
    """
    if min(size) < _SMALLEST:
        raise _unmeasurable(f"it is too small, expected at least {_SMALLEST} pixels a side", size)
    black, white = (transform(Image.new("RGB", size[::-1], colour)) for colour in ("black", "white"))
    contrast = white - black
    weight = contrast.square().sum(0)
    if not bool(torch.isfinite(weight).all()) or float(weight.max()) <= 0:
        raise _unmeasurable("it makes the same of a black and of a white picture, or NaN", size)
    valid = weight > weight.max() / 4
    rows, columns = (torch.nonzero(valid.any(axis))[:, 0] for axis in (1, 0))
    if not bool(valid[rows][:, columns].all()):
        raise _unmeasurable("what it shows of the picture is no upright rectangle: it rotates, shears or masks", size)

    def fit(axis: int, start: float, stop: float) -> tuple[float, float]:
        along, across = (rows, columns) if axis == 0 else (columns, rows)
        # Resampling mixes the ends of a line across with padding.
        trim = max(3, len(across) // 8) if len(across) > 12 else len(across) // 4
        across = across[trim : len(across) - trim]
        across = across[:: -(-len(across) // _LINES)]

        def lines(output: Tensor) -> Tensor:
            chosen = output.index_select(1 + axis, along).index_select(2 - axis, across).double()
            return chosen if axis == 0 else chosen.mT

        response, ramp = lines(contrast), _ramp(size, axis, start, stop)
        seen = [((lines(transform(r)) - lines(black)) * response).sum(0) for r in (ramp, ImageOps.invert(ramp))]
        level = 0.5 + (seen[0] - seen[1]) / (2 * response.square().sum(0))  # of both, so that rounding up cancels out
        return _fit_axis(start + level * (stop - start), along + 0.5, (start, stop), axis, size)

    fits = []
    for axis, (side, along) in enumerate(zip(size, (rows, columns), strict=True)):
        scale, offset = fit(axis, 0.0, float(side))
        start, stop = (float(along[0]) - offset) / scale, (float(along[-1]) + 1 - offset) / scale
        if stop - start < 0.6 * side:
            scale, offset = fit(axis, max(0.0, start - side / 64), min(float(side), stop + side / 64))
        fits.append((scale, offset))
    (sy, oy), (sx, ox) = fits
    return Geometry(size, (valid.shape[0], valid.shape[1]), (sy, sx), (oy, ox))


def _ramp(size: tuple[int, int], axis: int, start: float, stop: float) -> Image.Image:
    """A grey ramp from 0 at start to 255 at stop, dithered across so that its mean is exact, not rounded."""
    along = ((np.arange(size[axis]) + 0.5 - start) / (stop - start)).clip(0, 1) * 255
    across = (np.arange(size[1 - axis], dtype=np.float32) + 0.5) / size[1 - axis] * _CYCLES % 1
    fraction, whole = np.modf(along.astype(np.float32))
    ramp = whole.astype(np.uint8)[:, None] + (fraction[:, None] + across >= 1)
    return Image.fromarray(ramp if axis == 0 else ramp.T.copy()).convert("RGB")


def _fit_axis(
    position: Tensor, u: Tensor, ramp: tuple[float, float], axis: int, size: tuple[int, int]
) -> tuple[float, float]:
    """Fit position = (u - offset) / scale; position (along, across) in original pixels, u (along,) in input pixels."""
    name = ("y", "x")[axis]
    profile, level = position.mean(1), (ramp[1] - ramp[0]) / 255
    edge = 1 + level  # the plateaus of padding and beyond the ramp lie within
    usable = torch.nonzero((profile > ramp[0] + edge) & (profile < ramp[1] - edge))[:, 0]
    if len(usable) < 4:
        raise _unmeasurable(f"only {len(usable)} output pixels show different {name}: it turns or crops too much", size)
    third = len(usable) // 3 if len(usable) >= 9 else 0
    core = usable[third : len(usable) - third]
    start, slope = _line(u[core], profile[core])
    lines = torch.arange(position.shape[1], dtype=u.dtype)
    drift = _line(lines, position[core].mean(0))[1] * len(lines)
    tolerance = max(1.0, 1.5 * level, 1.5 * abs(slope))
    if abs(slope) * len(u) < 0.25 * abs(drift):
        raise _unmeasurable(f"{name} runs along the other axis: it turns or transposes the picture", size)
    if slope <= 0:
        raise _unmeasurable(f"{name} runs backwards: it flips the picture", size)
    if abs(drift) > tolerance:
        raise _unmeasurable(f"{name} drifts by {drift:.1f} pixels across the input: it rotates or shears", size)
    inner = torch.zeros(len(u), dtype=torch.bool).index_fill(0, core, True)
    widest = 0.3 * (ramp[1] - ramp[0])
    for margin in (edge, 1.5 * slope, min(max(3.5, 3.5 * slope), widest)):  # resampling mixes in what lies beyond
        fitted = start + slope * u
        chosen = (fitted > ramp[0] + max(margin, edge)) & (fitted < ramp[1] - max(margin, edge))
        if int(chosen.sum()) >= 4:
            inner = chosen
            start, slope = _line(u[inner], profile[inner])
    residual = (position - (start + slope * u)[:, None])[inner].abs()
    if float(residual.quantile(0.99)) > tolerance:
        raise _unmeasurable(f"{name} does not follow a straight line: it warps, or changes brightness unevenly", size)
    scale = _restore_whole(size[axis] / slope, slope) / size[axis]
    return scale, _restore_whole(float((u - profile * scale)[inner].mean()), slope)


def _restore_whole(length: float, slope: float) -> float:
    """Round a length in input pixels if that changes less than a tenth of them and a quarter of an original pixel."""
    change = abs(round(length) - length)
    return float(round(length)) if change < 0.1 and change * slope < 0.25 else length


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Least-squares line through points, both (N,): its value at 0 and its slope."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / centred.square().sum().clamp(min=1e-12))
    return float(y.mean() - slope * x.mean()), slope


def _unmeasurable(seen: str, size: tuple[int, int]) -> InputError:
    return InputError(
        f"the transform cannot be followed for a picture of {size[0]} x {size[1]}: {seen}. Expected a resize, crop and "
        f"padding without rotation or flip, then normalisation; pass such a transform, a Preprocess, or ready tensors"
    )
