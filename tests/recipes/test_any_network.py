"""Every recipe trains a network whose own head cannot be kept, such as VGG16: hidden layers behind its features."""

import pytest
import torch
from torch import nn

import camtools
from camtools.datasets import Scenes
from camtools.errors import ModelError
from camtools.training import installed_recipes

SIDE = 48


class TinyVGG(nn.Module):
    """Convolutions, flattening and hidden layers, as VGG16 has them."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5, 4, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(True),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 8))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@pytest.mark.parametrize("name", installed_recipes())
def test_a_network_like_vgg_is_trained(name):
    torch.manual_seed(0)
    model, data = TinyVGG().eval(), Scenes("train", 12)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = {"epochs": 1, "batch_size": 6, "input_size": SIDE, "conv": 16, "progress": False, "device": "cpu"}
    if name == "minmaxcam":
        options |= {"set_size": 2, "classes_per_batch": 2}
    if name == "decoder":  # which keeps the head that it finds
        with pytest.raises(ModelError, match=r"TinyVGG is not pooling \+ linear.*Train it by gap first"):
            camtools.finetune(name, model, data, class_names=data.classes, **options)
        return
    result = camtools.finetune(name, model, data, class_names=data.classes, **options)
    assert result.history[-1]["loss"] < 100
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    network = getattr(result.model, "network", result.model)
    own = {"bas": "conv", "acol": "first.0", "spg": "a2.0"}.get(name)  # the fresh convolution of those that bring one
    assert (network.neck[0] if own is None else network.head.get_submodule(own)).out_channels == 16
    assert not torch.equal(network.body.features[0].weight, before["features.0.weight"])
    if network is result.model and own is None:
        assert camtools.wrap(result.model).decomposition.exact
        camtools.explain(result.model, data[0].image, pipeline=result.pipeline)
