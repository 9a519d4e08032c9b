"""Where the network's input lies in the original image, and how maps and boxes get from one to the other.

Coordinates are in pixels and run from edge to edge: 0 is the left edge of the leftmost pixel, `width` the right edge of
the rightmost, and pixel i has its centre at i + 0.5 (half-pixel centres, `align_corners=False`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from camtools.checks import one_of
from camtools.errors import InputError
from camtools.sizes import centre_offset

Mode = Literal["bilinear", "bicubic"]

_BICUBIC_A = -0.75  # Keys' coefficient as in torch.nn.functional.interpolate


@dataclass(frozen=True)
class Geometry:
    """The axis-aligned map from the original image to the network's input, u = x * scale + offset on each axis.

    All pairs are (vertical, horizontal), as in (height, width).

    Attributes:
        size: Height and width of the original image, pixels.
        input_size: Height and width of the network's input, pixels.
        scale: Input pixels per original pixel, > 0.
        offset: Input coordinate of the original image's top left corner, input pixels; negative where a crop cut
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
        """The network sees the image as it is.

        Args:
            size: (height, width) in pixels, of the image and of the input.
        """
        return cls(size, size, (1.0, 1.0), (0.0, 0.0))

    @classmethod
    def from_resize_crop(cls, size: tuple[int, int], resized: tuple[int, int], input_size: tuple[int, int]) -> Geometry:
        """A resize followed by a centre crop, or by centred padding on an axis where the crop is larger.

        The rounding is torchvision's (`center_crop`, which timm's `center_crop_or_pad` shares): a crop starts at
        `int(round((side - crop) / 2))`, padding at `(crop - side) // 2`.

        Args:
            size: (height, width) of the original image.
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
    def seen(self) -> tuple[int, int, int, int]:
        """The pixels of the original that the network sees, those whose centre its input covers: x0, y0, x1, y1."""
        sides = []
        for side, taken, scale, offset in zip(self.size, self.input_size, self.scale, self.offset, strict=True):
            first, last = math.ceil(-offset / scale - 0.5), math.floor((taken - offset) / scale - 0.5)
            sides.append((max(0, first), min(side, last + 1)))
        (y0, y1), (x0, x1) = sides
        return x0, y0, x1, y1

    def at(self, size: tuple[int, int]) -> Geometry:
        """The same input seen from another rendering of the image.

        Args:
            size: (height, width) in pixels that the image has there.
        """
        ratios = (mine / other for mine, other in zip(self.size, size, strict=True))
        scale = tuple(scale * ratio for scale, ratio in zip(self.scale, ratios, strict=True))
        return replace(self, size=size, scale=(scale[0], scale[1]))

    @property
    def visible_box(self) -> tuple[float, float, float, float]:
        """What the network sees of the original: x0, y0, x1, y1 in original pixels, clipped to the image."""
        corners = torch.tensor([[0.0, 0.0, self.input_size[1], self.input_size[0]]], dtype=torch.float64)
        x0, y0, x1, y1 = self.boxes_to_original(corners)[0].tolist()
        return x0, y0, x1, y1

    def resize(self, maps: Tensor, mode: Mode = "bilinear") -> Tensor:
        """Interpolate maps from the feature grid to the original image's pixels, in one step.

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
        one_of("mode", mode, get_args(Mode))
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
        if mode == "bilinear" and not self.covers_all:
            resized = torch.maximum(resized, unseen)  # rounding must not put seen pixels below the unseen
        return resized.to(maps.dtype)

    def boxes_to_original(self, boxes: Tensor, clip: bool = True) -> Tensor:
        """Take boxes from the network's input to the original image.

        Args:
            boxes: (..., 4), x0, y0, x1, y1 in input pixels, edge to edge (half-open).
            clip: Cut them off at the image's border.

        Returns:
            (..., 4) in original pixels; floating, not rounded.
        """
        scale, offset = self._per_coordinate(boxes)
        return self._clip((boxes - offset) / scale, self.size if clip else None)

    def boxes_to_input(self, boxes: Tensor, clip: bool = True) -> Tensor:
        """Take boxes from the original image to the network's input.

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
        taps = _cubic(torch.stack([t + 1, t, 1 - t, 2 - t]))
    inside = (u >= 0) & (u <= input_side)
    index = (first.long() + torch.arange(len(taps))[:, None]).clamp(0, cells - 1)
    matrix = torch.zeros(side, cells + 1, dtype=torch.float64)
    matrix.scatter_add_(1, index.T, (taps * inside).T)
    matrix[:, cells] = (~inside).double()
    return matrix.float()


def _cubic(t: Tensor) -> Tensor:
    """Keys' cubic kernel for distances t in [0, 2] (Keys 1981, eq. 15, with general a)."""
    near = ((_BICUBIC_A + 2) * t - (_BICUBIC_A + 3)) * t * t + 1
    far = ((_BICUBIC_A * t - 5 * _BICUBIC_A) * t + 8 * _BICUBIC_A) * t - 4 * _BICUBIC_A
    return torch.where(t <= 1, near, far)
