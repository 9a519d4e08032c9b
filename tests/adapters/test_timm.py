"""timm's models: what they say about themselves is read, and is true."""

import pytest
import timm
import torch
from torch import nn

from camtools import ModelError, wrap
from camtools.model import Layout
from camtools.model.adapter import find_adapter
from camtools_adapters.observe import observe
from camtools_adapters.timm import TimmAdapter

ADAPTER = TimmAdapter()


def model_of(name, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(name, **{"num_classes": 7, **kwargs}).eval()
        for m in model.modules():
            if isinstance(m, nn.Linear) and not m.weight.any():  # some heads start at zero, which would hide anything
                nn.init.normal_(m.weight, std=0.5)
                nn.init.normal_(m.bias)
        return model


def image(model, batch=1):
    return torch.randn(batch, *ADAPTER.data_config(model)["input_size"], generator=torch.Generator().manual_seed(3))


def weights_map(weight, f):
    return torch.einsum("kc,bchw->bkhw", weight.flatten(1), f)


def test_it_knows_timms_models_and_what_derives_from_them():
    class Mine(timm.models.resnet.ResNet):
        pass

    assert ADAPTER.matches(model_of("test_resnet"))
    assert ADAPTER.matches(Mine(timm.models.resnet.BasicBlock, (1, 1, 1, 1)))
    assert not ADAPTER.matches(nn.Sequential(model_of("test_resnet")))
    assert find_adapter(model_of("test_vit")).name == "timm"


@pytest.mark.parametrize(
    ("name", "layer", "side", "layout", "prefix", "exact"),
    [
        ("test_resnet", "global_pool", "input", Layout.NCHW, 0, True),
        ("test_byobnet", "head.global_pool", "input", Layout.NCHW, 0, True),
        ("test_efficientnet", "global_pool", "input", Layout.NCHW, 0, True),
        ("test_nfnet", "head.global_pool", "input", Layout.NCHW, 0, True),
        ("test_convnext", "head.global_pool", "input", Layout.NCHW, 0, False),
        ("test_mambaout", "stages", "output", Layout.NHWC, 0, False),
        ("test_vit", "blocks.5.attn", "input", Layout.NLC, 1, False),
        ("test_vit2", "norm", "output", Layout.NLC, 1, False),
        ("test_vit3", "norm", "output", Layout.NLC, 1, False),
    ],
)
def test_where_features_are(name, layer, side, layout, prefix, exact):
    model = model_of(name)
    spec = ADAPTER.locate(model, image(model))
    assert (spec.side, spec.layout, spec.prefix_tokens) == (side, layout, prefix)
    assert spec.layer == layer
    found = wrap(model).locate(image(model))
    assert found.exact is exact and found.adapter == "timm" and found.layer == spec.layer


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_efficientnet", "test_nfnet"])
def test_exact_maps_are_the_classifiers_weights_on_timms_own_features(name):
    model = model_of(name)
    x = image(model, 2)
    found = wrap(model).activations(x)
    with torch.no_grad():
        f = model.forward_features(x)
    torch.testing.assert_close(found.features, f)
    torch.testing.assert_close(found.maps(), weights_map(model.get_classifier().weight, f), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        found.maps().mean((2, 3)) + model.get_classifier().bias, found.logits, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["test_convnext", "test_mambaout", "test_vit2", "test_vit3"])
def test_linearised_maps_against_the_jacobian_of_timms_own_head(name):
    model = model_of(name)
    x = image(model)
    with torch.no_grad():
        f = model.forward_features(x)
        maps = wrap(model).maps(x, [[0, 6]])
    weights = torch.autograd.functional.jacobian(lambda t: model.forward_head(t)[0, [0, 6]], f)[:, 0]
    positions = maps.shape[2] * maps.shape[3]
    if f.dim() == 3:
        want = (weights * f).sum(2)[:, model.num_prefix_tokens :].unflatten(1, maps.shape[2:])
    else:
        want = (weights * f).sum(1 if f.shape[2:] == maps.shape[2:] else 3)
    torch.testing.assert_close(maps[0], want * positions, atol=1e-5, rtol=1e-3)


def test_class_token_maps_against_the_jacobian_of_the_last_block():
    model = model_of("test_vit")
    x = image(model)
    spec = ADAPTER.locate(model, x)
    block = model.get_submodule(spec.layer.removesuffix(".attn"))
    seen = []
    handle = block.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    with torch.no_grad():
        maps = wrap(model).maps(x, [[2]])
    handle.remove()
    normed = block.norm1(seen[-1]).detach()

    def tail(tokens):
        y = seen[-1] + block.drop_path1(block.ls1(block.attn(tokens)))
        y = y + block.drop_path2(block.ls2(block.mlp(block.norm2(y))))
        return model.forward_head(model.norm(y))[0, 2]

    weights = torch.autograd.functional.jacobian(tail, normed)
    want = (weights * normed).sum(2)[0, 1:].unflatten(0, maps.shape[2:]) * (maps.shape[2] * maps.shape[3])
    torch.testing.assert_close(maps[0, 0], want, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_other_poolings_of_a_vision_transformer(pool):
    model = model_of("test_vit", global_pool=pool, fc_norm=False)
    x = image(model, 2)
    cam_model = wrap(model)
    with torch.no_grad():
        f = model.forward_features(x)[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, (10, 10))
        torch.testing.assert_close(cam_model.maps(x), weights_map(model.head.weight, f), atol=1e-5, rtol=1e-4)
    assert cam_model.decomposition.exact and cam_model.decomposition.head == f"{pool} pooling + Linear(64, 7)"


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_other_poolings_of_a_convolutional_network(pool):
    model = model_of("test_resnet", global_pool=pool)
    x = image(model, 2)
    cam_model = wrap(model)
    with torch.no_grad():
        maps = cam_model.maps(x)
        f = model.forward_features(x)
    assert cam_model.decomposition.exact is (pool != "catavgmax")
    if pool == "catavgmax":  # pooled features twice: W is (K, 2 C)
        one = f[:1]
        weights = torch.autograd.functional.jacobian(lambda t: model.forward_head(t)[0], one)[:, 0]
        want = (weights * one).sum(1) * f.shape[2] * f.shape[3]
        torch.testing.assert_close(maps[0], want, atol=1e-5, rtol=1e-3)
    else:
        torch.testing.assert_close(maps, weights_map(model.fc.weight, f), atol=1e-5, rtol=1e-4)


def test_a_vision_transformer_takes_other_sizes():
    model = model_of("test_vit", dynamic_img_size=True)
    cam_model = wrap(model)
    assert cam_model.maps(image(model)).shape == (1, 7, 10, 10)
    assert cam_model.maps(torch.randn(1, 3, 64, 128)).shape == (1, 7, 4, 8)


def test_a_new_head():
    model = model_of("test_resnet")
    model.reset_classifier(11)
    assert wrap(model).maps(image(model)).shape == (1, 11, 5, 5)
    model.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(model.num_features, 4)).eval()
    cam_model = wrap(model)
    f = model.forward_features(image(model))
    torch.testing.assert_close(cam_model.maps(image(model)), weights_map(model.fc[1].weight, f), atol=1e-5, rtol=1e-4)
    assert cam_model.decomposition.exact


def test_a_model_without_classes_is_refused():
    model = model_of("test_resnet", num_classes=0)
    with pytest.raises(ModelError, match=r"ResNet has num_classes=0.*model.reset_classifier\(num_classes\)"):
        wrap(model).maps(image(model))
    model.fc = nn.Linear(model.num_features, 4).eval()  # a head of one's own, that timm was not told of
    assert wrap(model).maps(image(model)).shape == (1, 4, 5, 5)


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_efficientnet", "test_nfnet"])
def test_observation_comes_to_the_same_maps(name):
    """What `observe` finds without reading any metadata."""
    model = model_of(name)
    x = image(model)
    torch.testing.assert_close(wrap(model, spec=observe(model, x)).maps(x), wrap(model).maps(x), atol=1e-5, rtol=1e-4)


def test_data_config_is_timms_own():
    model = model_of("test_vit")
    config = ADAPTER.data_config(model)
    assert config["input_size"] == (3, 160, 160) and config["mean"] == (0.5, 0.5, 0.5)
    assert ADAPTER.data_config(model_of("test_resnet")) == timm.data.resolve_data_config(
        {}, model=model_of("test_resnet")
    )
    assert wrap(model).example().shape == (1, 3, 160, 160)


def test_the_input_size_a_transformer_was_built_for():
    built = model_of("vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=24, depth=1, num_heads=3)
    assert ADAPTER.data_config(built)["input_size"] == (3, 32, 48)  # timm's own config says 224
    assert wrap(built).maps(image(built)).shape == (1, 7, 4, 6)
    free = model_of("test_vit", img_size=96, dynamic_img_size=True)
    assert ADAPTER.data_config(free)["input_size"] == (3, 160, 160)


def test_class_names():
    names = ADAPTER.class_names(model_of("test_resnet", num_classes=1000))
    assert len(names) == 1000 and names[0] == "tench" and names[281] == "tabby"
    assert ADAPTER.class_names(model_of("test_resnet")) is None


@pytest.mark.parametrize("training", [False, True])
def test_attention_bias_caches_are_as_they_were(training):
    model = model_of("levit_128s").train(training)
    cam_model = wrap(model)
    cam_model.locate(image(model))
    assert not any(m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache"))
    assert model.training is training
