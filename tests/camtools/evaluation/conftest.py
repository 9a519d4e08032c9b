"""A classifier whose maps are known, and images drawn for it: class k is the amount of colour k."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from camtools.images.preprocess import Preprocess

COLOURS = ("red", "green", "blue")
PLAIN = Preprocess.imagenet(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Colours(nn.Module):
    """Maps are the mean of a colour in 8 x 8 pixels; logits their mean, times 10."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 8, stride=8, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, classes)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8) / 64)
            self.fc.weight.copy_(10 * torch.eye(classes, 3) - 2 * (1 - torch.eye(classes, 3)))
            self.fc.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.conv(x)).flatten(1))


def draw(folder: Path, count: int = 12, seed: int = 0, size: tuple[int, int] = (112, 112), broken: int = -1) -> Path:
    """Draw a BoxFolder: in each image a rectangle shaded in its colour, and a bright corner that is none of it."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    rows = []
    for number in range(count):
        pixels = generator.integers(0, 40, (height, width, 3), dtype=np.uint8)
        label = number % 3
        x0, y0 = int(generator.integers(0, width // 2)), int(generator.integers(0, height // 2))
        x1, y1 = x0 + int(generator.integers(16, width // 2)), y0 + int(generator.integers(16, height // 2))
        ramp = np.linspace(generator.integers(0, 200), 220, x1 - x0).astype(np.uint8)
        pixels[y0:y1, x0:x1, label] = ramp
        pixels[-20:, -20:, label if number % 4 == 0 else (label + 1) % 3] = 250
        name = f"deep/{number:03d}.png" if number % 2 else f"{number:03d}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        if number == broken:
            (folder / name).write_bytes((folder / name).read_bytes()[:90])
        rows.append([name, COLOURS[label], x0, y0, x1, y1, width, height])
    with folder.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "x0", "y0", "x1", "y1", "width", "height"])
        writer.writerows(rows)
    return folder


@pytest.fixture
def model() -> nn.Module:
    return Colours().eval()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images")


@pytest.fixture
def options() -> dict:
    return {"transform": PLAIN, "class_names": COLOURS, "progress": False, "bootstrap": 50, "batch_size": 4}


@pytest.fixture(scope="session")
def drawing():
    return draw
