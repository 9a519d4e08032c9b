"""Transforms that do not say what they do to positions: measured on synthetic images."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from camtools.errors import InputError
from camtools.images.geometry import Geometry
from camtools.images.read import InputImage

_SMALLEST = 8  # pixels a side; below, a ramp has too few steps to be measured
_CYCLES = 8  # of the ramp's dither
_LINES = 256  # of the output that are looked at, spread over it


class MeasuredTransform:
    """Any deterministic callable from PIL images to tensors, its geometry measured once per size of image.

    Measuring runs it eight to twelve times on synthetic images; a `Preprocess` knows its geometry for nothing.

    Args:
        transform: Takes an RGB PIL image to a floating (C, h, w), or (1, C, h, w).
    """

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform
        self._geometry = lru_cache(maxsize=4096)(self._measure)

    def __call__(self, image: InputImage) -> tuple[Tensor, Geometry]:
        """Make one image ready for the model; arguments and returns as in `Preprocess`.

        Raises:
            InputError: The transform is random, flips, turns, shears or warps, does not give a floating (C, h, w), or
                gives another size than for other images of this size.
        """
        if image.tensor is not None:
            return image.tensor.float(), Geometry.identity(image.size)
        geometry, tensor = self._geometry(image.size), self._apply(image.pixels())
        if tuple(tensor.shape[1:]) != geometry.input_size:
            raise InputError(
                f"the transform gives {tuple(tensor.shape[1:])} for this image, {geometry.input_size} for others of "
                f"its size {image.size}: expected a size that does not depend on the content. Pass such a transform"
            )
        return tensor.float(), geometry

    def __repr__(self) -> str:
        return f"MeasuredTransform(transform={self.transform!r})"

    def _measure(self, size: tuple[int, int]) -> Geometry:
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        before, first, after = _random_state(), self._apply(noise), _random_state()
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if before != after or not torch.equal(first, self._apply(noise)):
            seen = "it draws random numbers" if before != after else "it gives two results for one image"
            raise InputError(
                f"the transform {self.transform!r} is random: {seen}. Expected a deterministic one; pass that of the "
                f"evaluation, without flips, jitter or random crops"
            )
        return measure_geometry(lambda image: self._apply(image).detach().float().cpu(), size)

    def _apply(self, image: Image.Image) -> Tensor:
        try:
            made = self.transform(image)
        except Exception as error:
            raise InputError(
                f"the transform {self.transform!r} failed on a PIL image of {image.width} x {image.height} ({error}): "
                f"expected a callable from a PIL image to a tensor. Wrap it in one, e.g. lambda image: ..."
            ) from error
        if isinstance(made, Tensor) and made.ndim == 4 and len(made) == 1:
            made = made[0]
        if not isinstance(made, Tensor) or made.ndim != 3 or not made.is_floating_point():
            got = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise InputError(
                f"the transform {self.transform!r} gives {got}: expected a floating tensor (C, h, w). End it in "
                f"ToTensor(), or ToImage() and ToDtype(torch.float32, scale=True), and Normalize(...)"
            )
        return made.as_subclass(Tensor)


def measure_geometry(transform: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> Geometry:
    """Find out what a transform does to positions, from what it makes of six to ten synthetic images.

    A black and a white image tell what each output pixel makes of a brightness (normalisation; padding takes
    nothing from the image). With that undone, a ramp along x says for each output pixel which x it shows, and
    another the same for y, both also inverted; a line is fitted to each by least squares. Where a crop leaves little
    of an axis, a second, steeper ramp refines it. Within the image the result is accurate to about half a pixel of
    the original; whole numbers (a resize to whole pixels, a crop between pixels) are restored where they are well
    within that. Least exact where a padded image fills fewer than some ten rows of the input.

    Args:
        transform: Takes an RGB image to a floating tensor (C, h, w); deterministic.
        size: (height, width) of the images to measure for.

    Raises:
        InputError: The transform flips, turns, shears or warps, hides brightness, or `size` is below 8 x 8.
    """
    if min(size) < _SMALLEST:
        raise _unmeasurable(f"it is too small, expected at least {_SMALLEST} pixels a side", size)
    black, white = (transform(Image.new("RGB", size[::-1], colour)) for colour in ("black", "white"))
    contrast = white - black
    weight = contrast.square().sum(0)
    if not bool(torch.isfinite(weight).all()) or float(weight.max()) <= 0:
        raise _unmeasurable("it makes the same of a black and of a white image, or NaN", size)
    valid = weight > weight.max() / 4
    rows, columns = (torch.nonzero(valid.any(axis))[:, 0] for axis in (1, 0))
    if not bool(valid[rows][:, columns].all()):
        raise _unmeasurable("what it shows of the image is no upright rectangle: it rotates, shears or masks", size)

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
        raise _unmeasurable(f"{name} runs along the other axis: it turns or transposes the image", size)
    if slope <= 0:
        raise _unmeasurable(f"{name} runs backwards: it flips the image", size)
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
        f"the transform cannot be followed for an image of {size[0]} x {size[1]}: {seen}. Expected a resize, crop and "
        f"padding without rotation or flip, then normalisation; pass such a transform, a Preprocess, or ready tensors"
    )


def _random_state() -> bytes:
    """Where Python's, numpy's and torch's global generators stand."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()))
