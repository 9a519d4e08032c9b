"""torchvision's classifiers: features, classifier, preprocessing and names of each family."""

from functools import partialmethod
from typing import get_type_hints

import pytest
import torch
import torchvision.models as tv
from torch import nn

from camtools import ModelError, wrap
from camtools.model import Layout
from camtools.model.adapter import find_adapter
from camtools_adapters.torchvision import FAMILIES, TorchvisionAdapter

ADAPTER = TorchvisionAdapter()
X = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(3))


def model_of(name, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return tv.get_model(name, weights=None, **{"num_classes": 7, **kwargs}).eval()


def meta_of(name, **kwargs):
    """A model without values: enough to count its parameters."""
    if name.startswith("regnet"):  # computes its widths with tensors, so only its layers may be without values
        with pytest.MonkeyPatch.context() as patch:
            for layer in (nn.Conv2d, nn.Linear):
                patch.setattr(layer, "__init__", partialmethod(layer.__init__, device="meta"))
            return tv.get_model(name, weights=None, **kwargs)
    with torch.device("meta"):
        return tv.get_model(name, weights=None, **kwargs)


def test_it_knows_torchvisions_models_and_what_derives_from_them():
    class Mine(tv.ResNet):
        pass

    assert ADAPTER.matches(Mine(tv.resnet.BasicBlock, [1, 1, 1, 1]))
    assert not ADAPTER.matches(nn.Sequential(meta_of("resnet18")))
    assert find_adapter(meta_of("resnet18")).name == "torchvision"


def test_every_family_is_in_the_table():
    families = {get_type_hints(tv.get_model_builder(name))["return"] for name in tv.list_models(module=tv)}
    assert families == {*FAMILIES, tv.VisionTransformer}


@pytest.mark.parametrize(
    ("name", "features", "weight"),
    [
        ("resnet18", lambda m, x: m.layer4(m.layer3(m.layer2(m.layer1(m.maxpool(m.relu(m.bn1(m.conv1(x)))))))),
         "fc.weight"),
        ("densenet121", lambda m, x: m.features(x).relu(), "classifier.weight"),
        ("mobilenet_v2", lambda m, x: m.features(x), "classifier.1.weight"),
        ("shufflenet_v2_x0_5",
         lambda m, x: m.conv5(m.stage4(m.stage3(m.stage2(m.maxpool(m.conv1(x)))))), "fc.weight"),
        ("mnasnet0_5", lambda m, x: m.layers(x), "classifier.1.weight"),
        ("regnet_y_400mf", lambda m, x: m.trunk_output(m.stem(x)), "fc.weight"),
        ("efficientnet_b0", lambda m, x: m.features(x), "classifier.1.weight"),
    ],
)  # fmt: skip
def test_exact_families(name, features, weight):
    model = model_of(name)
    cam_model = wrap(model)
    with torch.no_grad():
        found = cam_model.activations(X)
        f = features(model, X)
        torch.testing.assert_close(found.features, f)
        want = torch.einsum("kc,bchw->bkhw", model.state_dict()[weight], f)
        torch.testing.assert_close(found.maps(), want, atol=1e-5, rtol=1e-4)
    assert found.decomposition.exact and found.decomposition.grid == (3, 2)
    assert cam_model.class_weights.data_ptr() == model.state_dict()[weight].data_ptr()


def test_squeezenet_pools_class_maps():
    model = model_of("squeezenet1_1")
    cam_model = wrap(model)
    with torch.no_grad():
        want = model.classifier[:3](model.features(X))
        torch.testing.assert_close(cam_model.maps(X), want)
    assert cam_model.decomposition.exact and cam_model.decomposition.head == "avg pooling of 7 class maps"


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "alexnet"])
def test_linearised_families_against_their_jacobian(name):
    model = model_of(name)
    x = X[:1]
    with torch.no_grad():
        f = model.features(x)
        maps = wrap(model).maps(x, [[5]])
    weights = torch.autograd.functional.jacobian(lambda t: model.classifier(model.avgpool(t).flatten(1))[0, 5], f)
    torch.testing.assert_close(maps[0, 0], (weights * f)[0].sum(0) * f[0, 0].numel(), atol=1e-5, rtol=1e-3)
    assert not wrap(model).locate(x).exact


def test_vision_transformer():
    model = tv.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=7).eval()
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(1, 3, 32, 32)
    found = wrap(model).activations(x)
    maps = found.maps([[3]])
    last = model.encoder.layers[1]
    tokens = torch.cat([model.class_token, model._process_input(x)], 1) + model.encoder.pos_embedding
    stream = model.encoder.layers[0](tokens).detach()
    normed = last.ln_1(stream).detach()

    def tail(t):
        y = stream + last.self_attention(t, t, t, need_weights=False)[0]
        y = y + last.mlp(last.ln_2(y))
        return model.heads(model.encoder.ln(y)[:, 0])[0, 3]

    weights = torch.autograd.functional.jacobian(tail, normed)
    want = (weights * normed).sum(2)[0, 1:].unflatten(0, (4, 4)) * 16
    torch.testing.assert_close(maps[0, 0], want, atol=1e-5, rtol=1e-3)
    assert found.decomposition.layout is Layout.NLC and found.decomposition.grid == (4, 4)


@pytest.mark.parametrize("head", [nn.Linear(512, 5), nn.Sequential(nn.Dropout(), nn.Linear(512, 5))])
def test_new_heads(head):
    model = model_of("resnet18")
    model.fc = head.eval()
    cam_model = wrap(model)
    weight = next(p for p in head.parameters() if p.dim() == 2)
    with torch.no_grad():
        found = cam_model.activations(X)
    torch.testing.assert_close(
        found.maps(), torch.einsum("kc,bchw->bkhw", weight, found.features).detach(), atol=1e-5, rtol=1e-4
    )
    assert cam_model.decomposition.exact and cam_model.class_weights.data_ptr() == weight.data_ptr()
    assert ADAPTER.class_names(model) is None


def test_a_model_that_is_no_classifier_is_refused():
    model = tv.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    with pytest.raises(ModelError, match=r"OrderedDict without logits.*Give camtools a classifier"):
        wrap(model).maps(torch.randn(1, 3, 64, 64))


# Preprocessing, told by the number of parameters


@pytest.mark.parametrize("name", tv.list_models(module=tv))
def test_data_config_of_every_model(name):
    """As its best weights were evaluated; where two share the number of parameters they must share the transform."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    kind = tv.get_model_weights(name)
    # The best weights of ViT-H are for images of 518 pixels, a model of its own.
    want = (kind.IMAGENET1K_SWAG_LINEAR_V1 if name == "vit_h_14" else kind.DEFAULT).transforms()
    got = ADAPTER.data_config(meta_of(name, **options))
    assert (got.crop_size, got.resize_size) == (want.crop_size, want.resize_size)
    assert (got.mean, got.std, got.interpolation) == (want.mean, want.std, want.interpolation)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("googlenet", {"aux_logits": False, "init_weights": False}),
        ("inception_v3", {"aux_logits": False, "init_weights": False}),
        ("inception_v3", {"num_classes": 4, "init_weights": False}),
        ("googlenet", {"num_classes": 4, "init_weights": False}),
        ("vgg16", {"num_classes": 2}),
        ("efficientnet_b7", {"num_classes": 200}),
        ("squeezenet1_0", {"num_classes": 12}),
        ("vit_b_16", {"num_classes": 12}),
    ],
)
def test_data_config_with_other_heads(name, options):
    want = tv.get_model_weights(name).DEFAULT.transforms()
    got = ADAPTER.data_config(meta_of(name, **options))
    assert (got.crop_size, got.resize_size, got.interpolation) == (
        want.crop_size, want.resize_size, want.interpolation
    )  # fmt: skip


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 384), ("vit_l_16", 512), ("vit_h_14", 518)])
def test_data_config_of_a_vision_transformer_built_for_larger_images(name, size):
    got = ADAPTER.data_config(meta_of(name, image_size=size, num_classes=5))
    assert (got.crop_size, got.resize_size) == ([size], [size])


def test_data_config_with_dropout_before_a_new_head():
    model = meta_of("efficientnet_b3")
    model.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(1536, 9, device="meta"))
    assert ADAPTER.data_config(model).crop_size == [300]


def test_a_network_of_ones_own_width_gets_the_usual_transform():
    config = ADAPTER.data_config(tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1]))
    assert (config.crop_size, config.resize_size) == ([224], [232])


def test_class_names():
    names = ADAPTER.class_names(meta_of("resnet18"))
    assert len(names) == 1000 and names[0] == "tench" and names[281] == "tabby"
    assert ADAPTER.class_names(meta_of("resnet18", num_classes=10)) is None
