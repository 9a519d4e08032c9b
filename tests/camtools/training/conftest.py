"""Images of one colour, a network that tells colours, and a recipe that needs no head."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image
from torch import nn

from camtools.datasets import Record
from camtools.datasets.base import ListedDataset
from camtools.images.preprocess import Preprocess
from camtools.training import Recipe

SIDE = 24


class Colours(ListedDataset):
    """Noise with a square of red, green or blue in it; the square's box is the truth."""

    def __init__(self, count=24, classes=("red", "green", "blue"), labels=None, shift=0, broken=-1):
        super().__init__((f"{i:03d}" for i in range(count)), classes, None, "record")
        self.given = [[i % 3] for i in range(count)] if labels is None else labels
        self.shift, self.broken = shift, broken

    def labels_of(self, index):
        return self.given[index]

    def record(self, index):
        if index == self.broken:
            raise OSError("image file is truncated")
        labels = self.given[index]
        random = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 60, (SIDE, SIDE, 3), generator=random, dtype=torch.uint8)
        x, y = torch.randint(0, SIDE - 12, (2,), generator=random).tolist()
        for label in labels:
            pixels[y : y + 12, x : x + 12, label % 3] = 220
        boxes = torch.tensor([[x, y, x + 12, y + 12]] * len(labels)).float()
        return Record(
            image=Image.fromarray(pixels.numpy()),
            labels=torch.tensor(labels),
            boxes=(boxes + self.shift) % SIDE,
            masks=None,
            ignore=None,
            id=self.ids[index],
        )


class Net(nn.Module):
    """Convolution, batch normalisation, dropout, average, linear."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.bn = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.drop(self.pool(self.bn(self.conv(x)).relu()).flatten(1)))


class Plain(Recipe):
    """Plain cross-entropy on a copy of the model."""

    name = "plain"

    def build(self, model, classes):
        model = copy.deepcopy(model)
        if classes is not None:
            model.fc = nn.Linear(6, classes)
        return model


@pytest.fixture(scope="session")
def colours():
    return Colours


@pytest.fixture(scope="session")
def plain():
    def make(**options):
        return Plain(Plain.Config.of({"epochs": 2, "batch_size": 8, "lr": 0.05, "head_lr_factor": 1.0, **options}))

    return make


@pytest.fixture(scope="session")
def make_net():
    """Builds the same network at every call."""

    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return Net().eval()

    return make


@pytest.fixture
def net(make_net):
    return make_net()


@pytest.fixture(scope="session")
def options():
    """Keyword arguments of `finetune` that all tests share."""
    transform = Preprocess(input_size=(SIDE, SIDE), resize=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3)
    return {"transform": transform, "class_names": ("red", "green", "blue"), "progress": False, "device": "cpu"}


@pytest.fixture
def same():
    """Whether two models' weights and buffers are the same to the last bit."""

    def compare(one, other):
        a, b = one.state_dict(), other.state_dict()
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return compare
