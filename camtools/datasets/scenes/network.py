"""The classifier that comes with camtools: a small residual network, trained on scenes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from camtools.checks import whole
from camtools.datasets.scenes.creature import MARKS
from camtools.errors import ModelError
from camtools.images.preprocess import Preprocess

WEIGHTS = Path(__file__).with_name("scenes_classifier.safetensors")
WIDTHS = (16, 32, 64, 96)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features, (B, outputs, H / stride, W / stride), at least 0."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SceneNet(nn.Module):
    """A residual network for scenes: features at 1/8 of the input's resolution, average pooling, linear classifier.

    Args:
        num_classes: Number of classes.
        widths: Channels of the stem and the three blocks.

    Attributes:
        preprocess: What it expects of images; `camtools.explain` finds it there.
        class_names: Names by index, the scenes' where there are as many classes; found there likewise.
    """

    preprocess = Preprocess(input_size=(128, 128), resize=(128, 128), mean=(0.5,) * 3, std=(0.25,) * 3)
    classes = tuple(MARKS)

    def __init__(self, num_classes: int = len(MARKS), widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        whole("num_classes", num_classes, error=ModelError)
        self.class_names = self.classes if num_classes == len(self.classes) else None
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(Block(*channels, stride) for channels, stride in zip(pairwise(widths), (2, 2, 1), strict=True))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits.

        Args:
            x: Normalised images, (B, 3, H, W); H and W 128 in training.

        Returns:
            (B, num_classes).
        """
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
        return logits


def scene_classifier() -> SceneNet:
    """Return the classifier that comes with camtools, trained on `Scenes("train")`, in eval mode, on the CPU.

    `tests/benchmarks/train_scene_classifier.py` trains such a model; docs/scenes.md has what it printed for this one.
    """
    model = SceneNet()
    model.load_state_dict(load_file(WEIGHTS))  # kept in half precision; the parameters they are copied to are not
    return model.eval()
