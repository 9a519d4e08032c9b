"""Every recipe trains networks whose own head cannot be kept, such as VGG16, and those whose branches join."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import VGG, inception_v3, vgg

import camtools
from camtools.datasets import Scenes
from camtools.errors import ModelError
from camtools.training import installed_recipes, make_recipe

SIDE = 48
OWN_CONV = {"bas": "conv", "acol": "first.0", "spg": "a2.0"}  # the fresh convolution of heads that bring one
SINGLE_LABEL = ("tap", "wgap", "minmaxcam", "cream", "gap", "adl", "bas", "acol", "spg", "i2c")
SETTINGS = {
    "minmaxcam": {"set_size": 2, "classes_per_batch": 2},
    "adl": {"drop_rate": 1.0},  # the same at every step
}


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
        options |= SETTINGS[name]
    if name == "tscam":  # of transformers alone
        with pytest.raises(ModelError, match=r"TinyVGG: this head reads a class token's attention"):
            camtools.finetune(name, model, data, class_names=data.classes, **options | {"conv": None})
        return
    if name == "decoder":  # which keeps the head that it finds
        with pytest.raises(ModelError, match=r"TinyVGG is not pooling \+ linear.*Train it by gap first"):
            camtools.finetune(name, model, data, class_names=data.classes, **options)
        return
    result = camtools.finetune(name, model, data, class_names=data.classes, **options)
    assert result.history[-1]["loss"] < 100
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    network = getattr(result.model, "network", result.model)
    own = OWN_CONV.get(name)
    assert (network.neck[0] if own is None else network.head.get_submodule(own)).out_channels == 16
    assert not torch.equal(network.body.features[0].weight, before["features.0.weight"])
    if network is result.model and own is None:
        assert camtools.wrap(result.model).decomposition.exact
        camtools.explain(result.model, data[0].image, pipeline=result.pipeline)


def narrow(layers, batch_norm):
    """Torchvision's VGG of an eighth of the channels, whose hidden layers are small."""
    with torch.device("meta"):  # the hidden layers of its own are large
        model = VGG(nn.Sequential(), init_weights=False)
    widths = [layer if layer == "M" else layer // 8 for layer in vgg.cfgs[layers]]
    model.features = vgg.make_layers(widths, batch_norm=batch_norm)
    model.classifier = nn.Sequential(nn.Linear(64 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 8))
    return model


NETWORKS = {  # how it is built, the layer up to which it is frozen, and settings
    "vgg16": (lambda: narrow("D", False), "features.16", {"cut_after": "features.29", "input_size": 96}),
    "vgg11_bn": (lambda: narrow("A", True), "features.14", {"input_size": 64}),
    "inception_v3": (
        lambda: inception_v3(aux_logits=False, init_weights=False, num_classes=8),
        "Mixed_6e",
        {"input_size": 107},  # the smallest of 2 x 2 positions
    ),
}


@pytest.fixture(scope="module")
def networks():
    """Each is built once; training leaves it as it is."""
    torch.manual_seed(0)
    return {name: build().eval() for name, (build, _, _) in NETWORKS.items()}


@pytest.fixture(scope="module")
def pairs():
    """Two images of each of two classes."""
    scenes = Scenes("train", 24, size=96)
    found = {}
    for index in range(len(scenes)):
        found.setdefault(scenes.labels_of(index)[0], []).append(index)
    first, second = [indices[:2] for indices in found.values() if len(indices) > 1][:2]
    return torch.utils.data.Subset(scenes, first + second), scenes.classes


@pytest.mark.parametrize(
    ("network", "name"),
    [
        pytest.param(network, name, marks=[pytest.mark.slow] if network == "inception_v3" and name != "acol" else [])
        for network in NETWORKS
        for name in SINGLE_LABEL
    ],
)
def test_torchvisions_networks_are_trained(network, name, networks, pairs):
    model, (data, classes), (_, frozen, settings) = networks[network], pairs, NETWORKS[network]
    options = {"epochs": 2, "batch_size": 4, "conv": 8, "augment": (), "freeze": frozen, **settings}
    recipe, start = make_recipe(name, options | SETTINGS.get(name, {})), {}
    own = recipe.before_training

    def before_training(trainer):
        start.update({key: value.detach().clone() for key, value in trainer.inner.state_dict().items()})
        own(trainer)

    recipe.before_training = before_training
    result = camtools.finetune(recipe, model, data, class_names=classes, progress=False, device="cpu")
    # One step each, on the same images. BAS's background counts only where it is below the foreground, so it may jump.
    first, second = (row["loss"] - row.get("background", 0.0) for row in result.history)
    assert math.isfinite(first) and second < first
    trained = result.model.state_dict()
    fresh = f"head.{OWN_CONV[name]}.weight" if name in OWN_CONV else "neck.0.weight"
    assert trained[fresh].shape[0] == 8 and not torch.equal(trained[fresh], start[fresh])
    layers = [layer for layer, _ in result.model.body.named_children()]
    kept = [key for key in start if key.startswith("body.") and before(key.removeprefix("body."), frozen, layers)]
    moved = [key for key in kept if not torch.equal(trained[key], start[key])]
    assert len(kept) > 4 and moved == []
    learnt = [key for key in start if key.startswith("body.") and key.endswith("weight") and key not in kept]
    assert learnt and all(not torch.equal(trained[key], start[key]) for key in learnt)


def before(key, frozen, layers):
    """Whether a parameter or statistic is of the frozen part: of a stage of the network, or a layer of its features."""
    if "." not in frozen:
        return layers.index(key.split(".")[0]) <= layers.index(frozen)
    return int(key.split(".")[1]) <= int(frozen.split(".")[1])
