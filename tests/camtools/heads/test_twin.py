"""Two networks as one body: the features by hand, and that files and another head keep both."""

import copy
import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from camtools import WeightsError
from camtools.heads import GAP, HeadedModel, Wildcat, load_headed, replace_head
from camtools.heads.twin import Twin
from camtools.model import FeatureSpec

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


class Times(nn.Module):
    """Features that are the input times a number."""

    def __init__(self, factor, ran):
        super().__init__()
        self.factor, self.ran = factor, ran

    def features(self, x):
        self.ran.append(self.factor)
        return self.factor * x


def test_features_stand_side_by_side_and_the_first_runs_last():
    ran = []
    x = torch.tensor([[[[1.0]], [[2.0]]]])
    assert Twin(Times(10, ran), Times(100, ran))(x).flatten().tolist() == [10, 20, 100, 200]
    assert ran == [100, 10]


@pytest.fixture
def twins():
    """A model of two networks, whose second one has other weights."""
    first = replace_head(timm.create_model("test_resnet", num_classes=5), GAP(), conv=6).eval()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter *= 1.1
    origin = replace(first.origin, spec=FeatureSpec("join"))
    first.head = second.head = nn.Identity()
    first.classifier = second.classifier = None
    return HeadedModel(Twin(first, second), Wildcat(12, 5, M=2), None, origin, class_names=tuple("abcde")).eval()


def test_a_file_gives_the_same_bits(twins, tmp_path):
    file = tmp_path / "m.safetensors"
    twins.save(file)
    start = timm.create_model("test_resnet", num_classes=5)
    for again in (load_headed(file), load_headed(file, start)):
        assert torch.equal(again(X), twins(X)) and again.origin == twins.origin
        assert torch.equal(again.features(X), twins.features(X)) and again.class_names == twins.class_names
        assert again.body.first.origin == twins.body.first.origin
    features = [network.features(X) for network in (twins.body.first, twins.body.second)]
    assert not torch.allclose(*features) and torch.equal(torch.cat(features, 1), twins.features(X))


@pytest.mark.parametrize("place", [{}, {"output_stride": 8, "conv": 3}])
def test_another_head_keeps_both(twins, tmp_path, place):
    gap = replace_head(twins, GAP(), **place).eval()
    if not place:
        torch.testing.assert_close(gap(X), twins.head.class_pool(twins.head.conv(twins.features(X))).mean((2, 3)))
    gap.save(tmp_path / "m.safetensors")
    again = load_headed(tmp_path / "m.safetensors")
    assert torch.equal(again(X), gap(X)) and torch.equal(again.features(X), gap.features(X))


def test_a_damaged_description(twins, tmp_path):
    file = tmp_path / "m.safetensors"
    twins.save(file)
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["camtools.headed"])
    for twin, message in (
        ("x", r"is damaged"),
        (config["twin"] | {"neck": [64, 1 << 20, 1]}, r"has the size 1048576, which no tensor in the file has"),
        (None, r"does not fit"),
    ):
        save_file(load_file(file), file, {"camtools.headed": json.dumps(config | {"twin": twin})})
        with pytest.raises(WeightsError, match=message):
            load_headed(file)
