"""Random changes of training images; what happens to an image depends on seed, epoch and image only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from camtools.images.preprocess import Preprocess
from camtools.training.config import TrainConfig

_RESIZE_OVER_INPUT = 8 / 7  # 256 to 224, wsolevaluation
_JITTER = 0.4  # of brightness, contrast and saturation, as in torchvision's and timm's references


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Make torch's random numbers on the CPU depend on these numbers for a while; then they go on as before."""
    state = torch.get_rng_state()
    entropy = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(entropy)
    try:
        yield
    finally:
        torch.set_rng_state(state)


class HideAndSeek(torch.nn.Module):
    """Hides random cells of a grid (Singh and Lee, ICCV 2017).

    Args:
        grid: Cells per side.
        drop: Probability that a cell is hidden.
        cell: Side of a cell in pixels, instead of `grid`; the last of a row or column may be smaller.
    """

    def __init__(self, grid: int = 4, drop: float = 0.5, cell: int | None = None) -> None:
        super().__init__()
        self.grid, self.drop, self.cell = grid, drop, cell

    def forward(self, image: Tensor) -> Tensor:
        """Return a copy with the hidden cells 0, the mean image of a normalised one.

        Args:
            image: (C, H, W), normalised.
        """
        rows, columns = (
            torch.arange(side) // self.cell if self.cell else torch.arange(side) * self.grid // side
            for side in image.shape[-2:]
        )
        hidden = torch.rand(int(rows[-1]) + 1, int(columns[-1]) + 1) < self.drop
        return image.masked_fill(hidden[rows][:, columns], 0.0)


def input_size(config: TrainConfig, preprocess: Preprocess) -> tuple[int, int]:
    """Return (height, width) of the model's inputs in training and validation."""
    size = (config.input_size, config.input_size) if config.input_size is not None else preprocess.input_size
    return size or (224, 224)


def _geometry(config: TrainConfig, preprocess: Preprocess) -> list[Any]:
    """Return what moves pixels, in the order in which it draws random numbers."""
    size = height, width = input_size(config, preprocess)
    scaled = round(height * _RESIZE_OVER_INPUT), round(width * _RESIZE_OVER_INPUT)
    resize = scaled if config.resize is None else (config.resize, config.resize)
    if "resized_crop" in config.augment:
        parts: list[Any] = [v2.RandomResizedCrop(size, scale=(config.crop_scale, 1.0))]
    elif "crop" in config.augment:
        parts = [v2.Resize((max(resize[0], height), max(resize[1], width))), v2.RandomCrop(size)]
    else:
        parts = [v2.Resize(size)]
    if "flip" in config.augment:
        parts.append(v2.RandomHorizontalFlip())
    if "vflip" in config.augment:
        parts.append(v2.RandomVerticalFlip())
    return parts


def move_boxes(config: TrainConfig, preprocess: Preprocess, boxes: Tensor) -> Tensor:
    """Return where boxes are in an augmented image; under the same `seeded` numbers as the image's own.

    Args:
        config: Settings; with "resized_crop" the draws depend on the image's size, so that boxes cannot follow.
        preprocess: The model's.
        boxes: x0, y0, x1, y1 as shares of the whole image's sides, (N, 4).

    Returns:
        Shares of the input's sides, within [0, 1]; without area where a box is outside.
    """
    side = 1000.0
    canvas: Any = tv_tensors.BoundingBoxes(boxes * side, format="XYXY", canvas_size=(int(side), int(side)))  # type: ignore[call-overload]
    moved = v2.Compose(_geometry(config, preprocess))(canvas)
    height, width = moved.canvas_size
    shares: Tensor = moved.as_subclass(Tensor) / boxes.new_tensor([width, height, width, height])
    return shares.clamp(0, 1)


def move_map(config: TrainConfig, preprocess: Preprocess, map: Tensor) -> Tensor:
    """Return where a map of the whole image is in an augmented one; see `move_boxes`.

    Args:
        config: Likewise.
        preprocess: Likewise.
        map: At any resolution, (h, w) float.

    Returns:
        At the input's size, (H, W).
    """
    moved: Tensor = v2.Compose(_geometry(config, preprocess))(tv_tensors.Image(map[None]))
    return moved.as_subclass(Tensor)[0]


def training_transform(config: TrainConfig, preprocess: Preprocess) -> Callable[[Any], Tensor]:
    """Return what turns an RGB PIL image into a model input, (C, H, W) float32, augmented as `config.augment` says.

    Args:
        config: Settings.
        preprocess: The model's own, for channels, mean and std.
    """
    parts = _geometry(config, preprocess)
    if "colour" in config.augment:
        parts.append(v2.ColorJitter(*[_JITTER] * 3))
    hide = [HideAndSeek(config.has_grid, config.has_drop, config.has_cell)] if "has" in config.augment else []
    convert = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    normalise = v2.Normalize(list(preprocess.mean), list(preprocess.std))
    channels = v2.Grayscale() if preprocess.channels == 1 else v2.RGB()
    transform: Callable[[Any], Tensor] = v2.Compose([channels, *parts, *convert, normalise, *hide])
    return transform


def plain_transform(config: TrainConfig, preprocess: Preprocess) -> Callable[[Any], Tensor]:
    """Return the same without anything random: the whole image squashed to the input's size."""
    return training_transform(replace(config, augment=()), preprocess)


def cutmix(images: Tensor, labels: Tensor, classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of each image's neighbour in the batch into it (Yun et al., ICCV 2019).

    Args:
        images: (B, C, H, W).
        labels: (B,) indices, or (B, K) shares.
        classes: K.
        alpha: Of the Beta distribution that the area comes from.

    Returns:
        Images, and shares of classes, (B, K) float32.
    """
    mixed, shares = v2.CutMix(alpha=alpha, num_classes=classes)(images, labels)
    return mixed, shares.float()
