"""From an image to the model's input, with the geometry that takes its map back to the original pixels.

`Preprocess` is what timm and torchvision do, `as_transform` makes a transform of whatever the caller preprocesses with,
and `display_image` goes the way back.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camtools.checks import one_of, whole
from camtools.errors import InputError
from camtools.images.geometry import Geometry
from camtools.images.measured import MeasuredTransform
from camtools.images.read import InputImage
from camtools.sizes import resized_size

CropMode = Literal["center", "squash", "border"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_RESAMPLING = {r.name.lower(): r for r in Image.Resampling} | {"nearest-exact": Image.Resampling.NEAREST}
_PIXEL_OPTIONS = ("crop_border_pixels", "tf_preprocessing", "naflex", "patchify")  # of timm; not followed


class Transform(Protocol):
    """What makes a model-ready tensor of an image, and says where in the image it lies."""

    def __call__(self, image: InputImage) -> tuple[Tensor, Geometry]:
        """Give the input, (C, h, w) float32, and where it lies in the image."""
        ...


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop and normalise, pixel for pixel as torchvision and timm do on PIL images.

    Attributes:
        input_size: (height, width) of the network's input; a resized image is cropped to it about its centre, or
            padded where it is smaller. None: take the image as the resize leaves it.
        resize: The short side in pixels (an int), keeping the aspect; or a (height, width) that `crop_mode` interprets;
            or None: the image keeps its size.
        interpolation: "nearest", "bilinear", "bicubic", "box", "hamming" or "lanczos"; antialiased, as PIL always is.
        mean, std: Of values in [0, 1], one per channel: x becomes (x - mean) / std.
        channels: 3; 1 for a greyscale model (the image becomes PIL's mode "L" first); or those of arrays (H, W, C).
        crop_mode: What a pair in `resize` means, in timm's words. "squash": just this size, whatever the aspect;
            "center": keep the aspect and cover it; "border": keep the aspect and fit into it, padding with the mean.
            By default "squash" for a pair, "center" otherwise.
        assumed: Where the numbers come from if nobody knows that they are the model's; "" where they are. Explaining an
            image with such preprocessing warns.
        display: Which channels are drawn, one or three (red, green, blue); None draws the first three.

    Raises:
        InputError: A parameter is out of range or does not fit the others.
    """

    input_size: tuple[int, int] | None = (224, 224)
    resize: int | tuple[int, int] | None = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    crop_mode: CropMode | None = None
    assumed: str = field(default="", compare=False, repr=False)
    display: tuple[int, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        pair = isinstance(self.resize, tuple)
        object.__setattr__(self, "crop_mode", self.crop_mode or ("squash" if pair else "center"))
        resize = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        for name, value in (("input_size", self.input_size), ("resize", resize)):
            if value is not None and (not isinstance(value, tuple) or len(value) != 2 or min(value) < 1):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}: expected (height, width), pixels above 0. Correct it"
                )
        for name, allowed in (("interpolation", tuple(_RESAMPLING)), ("crop_mode", get_args(CropMode))):
            one_of(name, getattr(self, name), allowed)
        if self.crop_mode != "center" and not pair:
            raise InputError(
                f"crop_mode is {self.crop_mode!r} and resize {self.resize!r}: expected a pair. Pass (height, width)"
            )
        whole("channels", self.channels)
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise InputError(
                f"mean is {self.mean} and std {self.std}: expected {self.channels} values each, as channels="
                f"{self.channels}, and std above 0. Give one per channel"
            )

    @classmethod
    def imagenet(
        cls,
        size: int | tuple[int, int] = 224,
        squash: bool = False,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> Preprocess:
        """The usual evaluation transform: short side to size / 0.875 and centre crop, or the whole image squashed.

        Args:
            size: (height, width) of the network's input, or one side of a square.
            squash: Resize to `size` whatever the aspect, so that nothing is cut off.
            mean: Of values in [0, 1], one per channel that the model takes; one makes it a greyscale model.
            std: As many.
        """
        config = {"input_size": (len(mean), *((size, size) if isinstance(size, int) else size)), "mean": mean}
        crop = {"crop_pct": 1.0, "crop_mode": "squash"} if squash else {"crop_pct": 0.875, "crop_mode": "center"}
        return cls.from_timm({**config, **crop, "std": std, "interpolation": "bilinear"})

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> Preprocess:
        """The same pixels as `timm.data.create_transform(**data_config, is_training=False)`.

        Args:
            data_config: What `timm.data.resolve_model_data_config(model)` gives: input_size (C, h, w), interpolation,
                mean, std, crop_pct, crop_mode. With C other than 3, three means and stds are averaged.

        Raises:
            InputError: An option that changes pixels in another way is set, or a value is out of range.
        """
        unknown = [name for name in _PIXEL_OPTIONS if data_config.get(name)]
        if unknown:
            raise InputError(f"data_config sets {', '.join(unknown)}, which Preprocess does not follow. Pass the timm "
                             f"transform itself: timm.data.create_transform(**data_config)")  # fmt: skip
        size = data_config.get("input_size", (3, 224, 224))
        channels, height, width = size if not isinstance(size, int) else (3, size, size)
        mean = tuple(data_config.get("mean") or IMAGENET_MEAN)
        std = tuple(data_config.get("std") or IMAGENET_STD)
        mode: Any
        crop_pct, mode = data_config.get("crop_pct") or 0.875, data_config.get("crop_mode") or "center"
        scaled = (math.floor(height / crop_pct), math.floor(width / crop_pct))
        short = mode == "center" and scaled[0] == scaled[1]  # timm then takes torchvision's Resize, which truncates
        return cls(
            input_size=(height, width),
            resize=scaled[0] if short else scaled,
            interpolation=data_config.get("interpolation") or "bilinear",
            mean=mean,
            std=std,
            channels=len(mean),
            crop_mode=mode,
        ).with_channels(channels)

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocess:
        """The same pixels as torchvision's `ImageClassification` preset on PIL images.

        Args:
            preset: `weights.transforms()` of a torchvision classification weights enum.

        Raises:
            InputError: It is another kind of object.
        """
        if not _is_torchvision_preset(preset):
            raise InputError(f"got {preset!r}: expected an ImageClassification preset. Pass weights.transforms()")
        crop, mean, std = (tuple(v) for v in (preset.crop_size, preset.mean, preset.std))
        return cls(
            input_size=(crop[0], crop[-1]),
            resize=preset.resize_size[0] if len(preset.resize_size) == 1 else tuple(preset.resize_size),
            interpolation=preset.interpolation.value,
            mean=mean,
            std=std,
            channels=len(mean),
        )

    def __call__(self, image: InputImage) -> tuple[Tensor, Geometry]:
        """Make one image ready for the model.

        Args:
            image: From `camtools.images.read`; a ready tensor is passed on, as float32.

        Returns:
            The input, (C, h, w) float32, and where it lies in the image.

        Raises:
            InputError: A ready tensor has another number of channels.
        """
        if image.tensor is not None:
            tensor = image.tensor
            if len(tensor) != self.channels:
                raise InputError(
                    f"a ready tensor has shape {tuple(tensor.shape)}, so {len(tensor)} channels: expected "
                    f"{self.channels}, as the model takes. Select or repeat channels"
                )
            self.check_range(tensor)
            return tensor.float(), Geometry.identity(image.size)
        planes = self._planes(image)
        height, width = resized = resized_size(image.size, self.resize, self.crop_mode or "center")
        if resized != (planes[0].height, planes[0].width) or image.box:
            planes = [plane.resize((width, height), _RESAMPLING[self.interpolation], image.box) for plane in planes]
        geometry = Geometry.from_resize_crop(image.size, resized, self.input_size or resized)
        if geometry.input_size != resized:
            planes = [self._cropped(plane, channel, geometry) for channel, plane in enumerate(planes)]
        values = torch.from_numpy(np.stack([np.array(plane) for plane in planes], 0 if len(planes) > 1 else -1))
        values = values if len(planes) > 1 else values.view(*geometry.input_size, self.channels).permute(2, 0, 1)
        levels = 1 if image.values is not None else 255
        normalised = (values.float() / levels - _per_channel(self.mean)) / _per_channel(self.std)
        return normalised.contiguous(), geometry

    def _planes(self, image: InputImage) -> list[Image.Image]:
        """Return an image's pixels: one PIL image, or one of floats per channel."""
        assert image.image is not None
        if image.values is not None and image.values.shape[2] == self.channels:
            return [Image.fromarray(plane) for plane in np.ascontiguousarray(np.moveaxis(image.values, 2, 0))]
        if image.values is not None or self.channels not in (1, 3):
            has = 3 if image.values is None else image.values.shape[2]
            raise InputError(
                f"{image.source or 'the image'} has {has} channels: expected {self.channels}, as the model takes. Pass "
                f"an array (H, W, {self.channels}), or a ready tensor ({self.channels}, H, W)"
            )
        return [image.image.convert("L") if self.channels == 1 else image.image]

    def _cropped(self, plane: Image.Image, channel: int, geometry: Geometry) -> Image.Image:
        """Cut the network's input out of resized pixels, padding where they are smaller."""
        fill: Any = 0
        if self.crop_mode == "border":
            levels = [round(255 * m) for m in self.mean]
            fill = self.mean[channel] if plane.mode == "F" else levels[0] if self.channels == 1 else tuple(levels)
        elif plane.mode == "RGB":
            fill = (0, 0, 0)
        canvas = Image.new(plane.mode, geometry.input_size[::-1], fill)
        canvas.paste(plane, (int(geometry.offset[1]), int(geometry.offset[0])))
        return canvas

    def check_range(self, tensor: Tensor, name: str = "the image") -> None:
        """Refuse a ready tensor that still holds 8-bit levels: no normalised image has such values.

        Args:
            tensor: Floating, of any shape.
            name: What the error calls it.

        Raises:
            InputError: All values are 0 or more, and some ten times as large as white is.
        """
        white = max((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        low, high = float(tensor.min()), float(tensor.max())
        if low >= 0 and high > 10 * max(white, 1):
            black = min(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
            zeros = ", ".join(["0"] * self.channels)
            raise InputError(
                f"{name} is a float tensor with values from {low:g} to {high:g}: expected one that is normalised for "
                f"the model, {black:.1f} for black to {white:.1f} for white. Pass tensor.to(torch.uint8), which is "
                "preprocessed like any image; or, if the model takes 0 to 255 as they are, say so: "
                f"transform=Preprocess(mean=({zeros},), std=(1 / 255,) * {self.channels})"
            )

    def with_channels(self, channels: int) -> Preprocess:
        """The same preprocessing for a model with another number of channels: each gets the average mean and std.

        For other than one and three channels that average is a guess, and marked as one.
        """
        if channels == self.channels:
            return self
        mean, std = (channels * (sum(values) / self.channels,) for values in (self.mean, self.std))
        assumed = self.assumed or ("" if channels in (1, 3) else f"one mean and std for all {channels} channels")
        return replace(self, channels=channels, mean=mean, std=std, assumed=assumed)

    def scaled(self, ratio: tuple[float, float]) -> Preprocess:
        """The same preprocessing to an input of another size.

        It shows the same part of the image, up to rounding, where both ratios are one or `crop_mode` is "squash".

        Args:
            ratio: Sides (height, width) of the input over those now.

        Raises:
            InputError: `resize` is None and `input_size` is not, so that pixels are the image's own.
        """
        if self.resize is None and self.input_size is not None:
            raise InputError(
                f"{self!r} can't be scaled: it cuts out the image's own pixels, and would cut out others. Give it a "
                "resize"
            )
        size = self.input_size and (round(self.input_size[0] * ratio[0]), round(self.input_size[1] * ratio[1]))
        resize: int | tuple[int, int] | None = self.resize
        if isinstance(resize, int):
            resize = max(1, round(resize * max(ratio)))
        elif resize is not None:
            resize = (max(1, round(resize[0] * ratio[0])), max(1, round(resize[1] * ratio[1])))
        return replace(self, input_size=size, resize=resize)

    def least(self, size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Return the fewest pixels that serve for an image's input: twice those it is resized to, else all.

        Args:
            size: (height, width) of the image.
            scale: Sides of the largest input that is wanted over the own one.
        """
        height, width = (
            math.ceil(2 * scale * side) for side in resized_size(size, self.resize, self.crop_mode or "center")
        )
        return size if self.resize is None else (min(size[0], height), min(size[1], width))


def as_transform(transform: Any) -> Transform:
    """Turn whatever the caller preprocesses with into a `Transform`.

    Args:
        transform: A `Preprocess` or `MeasuredTransform`; a timm data config (a mapping, see `Preprocess.from_timm`);
            torchvision's `ImageClassification` preset; an image processor of transformers; or any deterministic
            callable from an RGB PIL image to a floating (C, h, w), whose geometry is then measured.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(transform, Preprocess | MeasuredTransform):
        return transform
    if isinstance(transform, Mapping):
        return Preprocess.from_timm(transform)
    if _is_torchvision_preset(transform):
        return Preprocess.from_torchvision(transform)
    if all(hasattr(transform, name) for name in ("preprocess", "image_mean", "do_resize")):
        return _of_processor(transform)
    if not callable(transform) or isinstance(transform, type):
        raise InputError(
            f"transform is {transform!r}: expected a Preprocess, or a callable from a PIL image to a tensor. "
            f"Pass e.g. weights.transforms(), timm.data.create_transform(...) or Preprocess.imagenet()"
        )
    return MeasuredTransform(cast(Callable[[Image.Image], Any], transform))


def display_image(image: InputImage, preprocess: Transform | None = None) -> Image.Image:
    """Give an RGB image to draw on.

    A ready tensor is un-normalised with the mean and std of `preprocess`, if it has some and 99 % of the values then
    lie in [0, 1]. Otherwise values that all lie in [0, 1] stay as they are, others are stretched from their minimum to
    their maximum. Of more than three channels the first three are shown, of two the first, in grey;
    `preprocess.display` chooses others.

    Args:
        image: From `camtools.images.read`.
        preprocess: What the caller's tensors were, presumably, normalised with; only a `Preprocess` knows its mean.

    Raises:
        InputError: `preprocess.display` names a channel that is not there.
    """
    chosen = getattr(preprocess, "display", None)
    if image.values is not None:
        pixels = torch.from_numpy(image.values).permute(2, 0, 1)
    elif image.tensor is None:
        return image.pixels()
    else:
        pixels = image.tensor.detach().float().cpu()
        if isinstance(preprocess, Preprocess) and preprocess.channels == len(pixels):
            restored = pixels * _per_channel(preprocess.std) + _per_channel(preprocess.mean)
            plausible = ((restored > -0.02) & (restored < 1.02)).float().mean() >= 0.99
            pixels = restored if plausible else pixels
    pixels = pixels[_drawn(len(pixels), chosen)]
    low, high = float(pixels.min()), float(pixels.max())
    if low < -0.02 or high > 1.02:
        pixels = (pixels - low) / max(high - low, 1e-12)
    levels = (pixels.expand(3, -1, -1).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def with_display(transform: Transform, channels: Any) -> Transform:
    """Return the same transform, whose images are drawn by other channels.

    Args:
        transform: Any.
        channels: One of them, or three as red, green and blue.

    Raises:
        InputError: They are no such numbers.
    """
    listed = (channels,) if isinstance(channels, int) else tuple(channels) if isinstance(channels, list | tuple) else ()
    if len(listed) not in (1, 3) or not all(isinstance(one, int) and one >= 0 for one in listed):
        raise InputError(f"display={channels!r}: expected the number of one channel, or three of them, from 0")
    if isinstance(transform, Preprocess):
        return replace(transform, display=listed)
    drawn = copy.copy(transform)
    drawn.display = listed  # type: ignore[attr-defined]
    return drawn


def _drawn(count: int, chosen: tuple[int, ...] | None) -> list[int]:
    """Return the channels that are drawn, one or three."""
    if chosen is None:
        return [0, 1, 2] if count >= 3 else [0]
    if max(chosen) >= count:
        raise InputError(f"display={chosen}: expected channels from 0 to {count - 1}, as the image has {count}")
    return list(chosen)


def _of_processor(processor: Any) -> Transform:
    """Follow an image processor of transformers: a `Preprocess` where one gives its pixels, else measured."""

    def whole_way(image: Image.Image) -> Tensor:
        made: Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
        return made

    measured = MeasuredTransform(whole_way)
    told = {name: value for name, value in vars(processor).items() if value is not None}
    size, crop = (dict(told.get(name) or {}) for name in ("size", "crop_size"))
    sides = [
        (one.get("height", one.get("shortest_edge")), one.get("width", one.get("shortest_edge")))
        for one in (size, crop)
    ]
    try:
        input_size: Any = sides[1] if told.get("do_center_crop") and crop else sides[0]
        resize: Any = size.get("shortest_edge") or sides[0]
        if told.get("crop_pct") and size.get(
            "shortest_edge"
        ):  # ConvNeXt: cropped below 384 pixels, squashed from there
            side = size["shortest_edge"]
            resize = int(side / told["crop_pct"]) if side < 384 else (side, side)
        normalises = told.get("do_normalize", True)
        found = Preprocess(
            input_size=input_size,
            resize=resize if told.get("do_resize", True) else None,
            interpolation=Image.Resampling(int(told.get("resample", 2))).name.lower(),
            mean=tuple(told["image_mean"]) if normalises else (0.0,) * 3,
            std=tuple(told["image_std"]) if normalises else (1.0,) * 3,
            channels=len(told["image_mean"]) if normalises else 3,
        )
        noise = np.random.default_rng(0).integers(0, 256, (96, 147, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((441, 288), Image.Resampling.BICUBIC)
        ours, theirs = found(InputImage(image, None, None, (288, 441)))[0], measured._apply(image)
        off = ((ours - theirs).abs() * _per_channel(found.std) * 255).max() if ours.shape == theirs.shape else 255
        return found if off < 4 else measured  # levels of 8 bits: libraries round resized pixels differently
    except (InputError, KeyError, TypeError, ValueError):
        return measured


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _is_torchvision_preset(value: object) -> bool:
    return type(value).__name__ == "ImageClassification" and type(value).__module__.startswith("torchvision.transforms")
