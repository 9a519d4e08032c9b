"""Real results of images with awkward names: in sub-folders under one name, unicode, without a box, several classes."""

import numpy as np
import pytest
from PIL import Image

import camtools
from camtools import Preprocess

FILES = ("a/same.png", "b/same.png", "b/same.jpg", "héron & œuf, 鷺.png", "blank.png")
NAMES = ("red kite", "wren, Zaunkönig", "鷺 <&>")


@pytest.fixture(scope="session")
def model():
    import torch

    torch.manual_seed(7)
    conv = torch.nn.Conv2d(3, 4, 4, 4, bias=False)
    head = torch.nn.Linear(4, 3)
    with torch.no_grad():  # what is bright counts for every class, more or less
        conv.weight.abs_()
        head.weight.abs_()
    pool = torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(conv, torch.nn.ReLU(), pool, torch.nn.Flatten(), head).eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, name in enumerate(FILES):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.zeros((40 + 8 * number, 64, 3), np.uint8)
        if name != "blank.png":
            pixels[8:24, 8:30] = rng.integers(60, 256, (16, 22, 3))
            pixels[30:38, 40:60] = 200
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="session")
def options():
    plain = Preprocess(input_size=(32, 32), resize=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    return {"transform": plain, "class_names": NAMES}


@pytest.fixture(scope="session")
def found(model, folder, options):
    """Two explanations of every image."""
    return camtools.explain(model, [str(folder / name) for name in FILES], top_k=2, pipeline="cam", **options)


@pytest.fixture(scope="session")
def segmented(model, folder, options):
    """A segmentation of every image, in which all classes are looked for."""
    return camtools.segment(model, [str(folder / name) for name in FILES], classes=[0, 1, 2], **options)
