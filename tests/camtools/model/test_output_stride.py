import pytest
import timm
import torch
from torch import nn
from torchvision import models as tv

from camtools import ModelError, wrap
from camtools.model import set_output_stride


def features(model, x):
    with torch.no_grad():
        return wrap(model).features(x)


@pytest.mark.parametrize(("size", "stride"), [(96, 8), (96, 16), (97, 8)])
@pytest.mark.parametrize(
    "build",
    [
        lambda: tv.resnet18(),
        lambda: tv.mobilenet_v2(),
        lambda: tv.densenet121(),
        lambda: timm.create_model("test_resnet"),
        lambda: timm.create_model("resnet18d"),  # average pooling in the shortcuts
        lambda: timm.create_model("tf_efficientnet_lite0"),  # padded as TensorFlow does
    ],
    ids=["resnet18", "mobilenet_v2", "densenet121", "test_resnet", "resnet18d", "tf_efficientnet_lite0"],
)
def test_every_old_feature_is_among_the_new_ones(build, stride, size):
    model, x = build().eval(), torch.randn(1, 3, size, size + 32)
    if isinstance(model, tv.DenseNet) and size % 32:
        pytest.skip("its poolings drop the odd row, which the dense ones keep, so the edges differ")
    old, new = features(model, x), features(set_output_stride(model, stride), x)
    ratio = 32 // stride
    assert new.shape[2:] == (-(-size // stride), -(-(size + 32) // stride))
    found = new[:, :, ::ratio, ::ratio]
    torch.testing.assert_close(found, old, rtol=1e-4, atol=1e-5 * float(old.abs().max()))


def test_unpadded_networks_agree_away_from_the_edges():
    model, x = tv.googlenet(init_weights=False).eval(), torch.randn(1, 3, 224, 224)
    old, new = features(model, x), features(set_output_stride(model, 16), x)
    torch.testing.assert_close(new[:, :, ::2, ::2], old, rtol=1e-4, atol=1e-5)


def test_the_callers_model_stays_and_weights_keep_their_names():
    model = tv.mobilenet_v2()
    before = [(m.stride, m.dilation, m.padding) for m in model.modules() if isinstance(m, nn.Conv2d)]
    dense = set_output_stride(model, 8)
    assert before == [(m.stride, m.dilation, m.padding) for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert list(dense.state_dict()) == list(model.state_dict()) and dense.training
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), model.parameters(), strict=True))
    assert not any(a is b for a, b in zip(dense.parameters(), model.parameters(), strict=True))
    dense.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "resnet18d", "tf_efficientnet_lite0"])
def test_twice_is_as_once(name):
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 96, 96)
    once, between = set_output_stride(model, 8), set_output_stride(model, 16)
    coarse = features(between, x)
    torch.testing.assert_close(features(set_output_stride(between, 8), x), features(once, x))
    torch.testing.assert_close(features(between, x), coarse, rtol=0, atol=0)  # left as it was


def test_the_present_stride_changes_nothing():
    model, x = timm.create_model("test_resnet").eval(), torch.randn(1, 3, 160, 160)
    assert torch.equal(set_output_stride(model, 32)(x), model(x))


def test_max_pooling_is_made_dense():
    model, x = tv.vgg11().eval(), torch.randn(1, 3, 64, 64)
    old, new = features(model, x), features(set_output_stride(model, 8, example=x), x)
    torch.testing.assert_close(new[:, :, ::4, ::4], old, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ModelError, match="output stride 4: expected 8, 16, 32"):
        set_output_stride(timm.create_model("test_resnet"), 4)
    with pytest.raises(ModelError, match=r"'patch_embed.proj' \(Conv2d\) goes from stride 1 to 16 at once"):
        set_output_stride(timm.create_model("test_vit"), 8)
    with pytest.raises(ModelError, match="has output stride 16 already, finer than 32"):
        set_output_stride(set_output_stride(timm.create_model("test_resnet"), 16), 32)
    with pytest.raises(ModelError, match="is a BlurPool2d, whose stride camtools cannot take out"):
        set_output_stride(timm.create_model("resnetblur18"), 16)
    with pytest.raises(ModelError, match="its strides"):
        set_output_stride(timm.create_model("swin_tiny_patch4_window7_224"), 16)
