"""Networks that end behind a layer, with a fresh convolution and classifier; and those that begin behind one."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models as tv

import camtools
from camtools import ModelError
from camtools.heads import TAP, HeadedModel, Wildcat, load_headed, replace_head
from camtools.heads.cut import take_out_before
from camtools.model import set_output_stride

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


class TinyVGG(nn.Module):
    """Convolutions, flattening and hidden layers: a head that is linearised."""

    def __init__(self, classes=3):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(4), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(True)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, classes))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return tv.resnet18(num_classes=5).eval()


def test_the_network_ends_behind_the_layer(resnet):
    headed = replace_head(resnet, TAP(), cut_after="layer3").eval()
    early = nn.Sequential(*list(resnet.children())[:7])  # up to layer3
    torch.testing.assert_close(headed.features(X), early(X))
    torch.testing.assert_close(headed(X), headed.classifier(TAP()(early(X))))
    assert not [name for name, _ in headed.named_parameters() if "layer4" in name or name.startswith("body.fc")]
    assert sum(map(torch.numel, headed.parameters())) == sum(map(torch.numel, early.parameters())) + 256 * 5 + 5
    assert camtools.wrap(headed).decomposition.exact


def test_it_may_end_within_a_stage(resnet):
    headed = replace_head(resnet, TAP(), cut_after="layer3.0").eval()
    want = resnet.layer3[0](nn.Sequential(*list(resnet.children())[:6])(X))
    torch.testing.assert_close(headed.features(X), want)
    assert not [name for name, _ in headed.named_parameters() if "layer3.1" in name]


def test_a_fresh_convolution_stands_before_the_pooling(resnet):
    headed = replace_head(resnet, TAP(), conv=12).eval()
    conv = headed.neck[0]
    assert isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and not conv.bias.any()
    want = conv(camtools.wrap(resnet).features(X)).relu()
    torch.testing.assert_close(headed.features(X), want)
    assert headed.classifier.in_features == 12 and headed.classifier.out_features == 5
    again = replace_head(headed, TAP(), conv=7)
    assert again.neck[0].in_channels == 512 and again.features(X).shape[1] == 7
    kept = replace_head(headed, TAP(theta=0.2)).eval()
    torch.testing.assert_close(kept.features(X), want)  # a swapped pooling leaves the convolution


@pytest.mark.parametrize("head", [TAP(), Wildcat], ids=["tap", "wildcat"])
def test_a_linearised_head_gives_way_to_a_fresh_one(head, tmp_path):
    torch.manual_seed(0)
    model = TinyVGG().eval()
    headed = replace_head(model, head).eval()
    torch.testing.assert_close(headed.features(X), headed.neck(model.features(X)))
    assert headed.neck[0].out_channels == 1024 and headed(X).shape == (2, 3)
    assert not [name for name, _ in headed.named_parameters() if name.startswith("body.classifier")]
    assert camtools.wrap(headed).decomposition.exact
    bare = replace_head(model, head, conv=0).eval()
    torch.testing.assert_close(bare.features(X), model.features(X))
    headed.save(tmp_path / "m.safetensors")
    loaded = load_headed(tmp_path / "m.safetensors", TinyVGG())
    torch.testing.assert_close(loaded(X), headed(X), rtol=0, atol=0)


def test_a_saved_cut_is_cut_again(resnet, tmp_path):
    headed = replace_head(
        resnet, TAP(), cut_after="layer2", conv=9, output_stride=16, dilate=False, classes=2,
        source="torchvision/resnet18",
    ).eval()  # fmt: skip
    headed.save(tmp_path / "m.safetensors")
    loaded = load_headed(tmp_path / "m.safetensors")
    torch.testing.assert_close(loaded(X), headed(X), rtol=0, atol=0)
    assert loaded.origin.cut and not loaded.origin.dilate and loaded.origin.output_stride == 16


def test_what_cannot_be_cut_is_refused(resnet):
    with pytest.raises(ModelError, match=r"cut_after='layer9': ResNet has no such layer\. .*below conv1, bn1"):
        replace_head(resnet, TAP(), cut_after="layer9")
    with pytest.raises(ModelError, match=r"cut_after='fc': its output has shape \(1, 5\), expected \(images, channels"):
        replace_head(resnet, TAP(), cut_after="fc")
    with pytest.raises(ModelError, match=r"layer 'layer1\.0\.relu' runs 2 times in a forward of ResNet"):
        replace_head(resnet, TAP(), cut_after="layer1.0.relu")
    with pytest.raises(ModelError, match=r"the model has another head already"):
        replace_head(replace_head(resnet, TAP()), TAP(), cut_after="layer3")
    with pytest.raises(ModelError, match=r"conv=-1: expected a whole number"):
        replace_head(resnet, TAP(), conv=-1)


@pytest.mark.parametrize("layer", ["layer2", "layer3.0", "maxpool"])
def test_what_follows_a_layer_runs_by_itself(resnet, layer):
    rest = copy.deepcopy(resnet)
    given = take_out_before(rest, layer, X[:1])
    inputs = []
    handle = resnet.get_submodule(layer).register_forward_hook(lambda module, args, output: inputs.append(output))
    want = resnet(X)
    handle.remove()
    assert given.shape[1:] == inputs[0].shape[1:]
    torch.testing.assert_close(rest(inputs[0]), want)
    assert (
        not [name for name, _ in rest.named_parameters() if name.startswith(("conv1", "layer1"))] or layer == "maxpool"
    )


def test_what_does_not_run_by_itself_is_refused(resnet):
    with pytest.raises(ModelError, match=r"what follows 'layer3\.0\.conv1' in ResNet does not run by itself \("):
        take_out_before(copy.deepcopy(resnet), "layer3.0.conv1", X[:1])
    with pytest.raises(ModelError, match=r"ResNet has no layer 'stem'"):
        take_out_before(copy.deepcopy(resnet), "stem", X[:1])


def test_strides_may_go_without_dilation():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 8, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, padding=1), nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    ).eval()  # fmt: skip
    dense = set_output_stride(model, 8, dilate=False, example=X)
    f = nn.functional.conv2d(model[0](X).relu(), model[2].weight, model[2].bias, padding=1).relu()
    want = nn.functional.conv2d(f, model[4].weight, model[4].bias, padding=1)
    torch.testing.assert_close(camtools.wrap(dense).features(X), want)
    assert dense[4].dilation == (1, 1) and set_output_stride(model, 8, example=X)[4].dilation == (2, 2)


def test_the_callers_model_stays_whole(resnet):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    headed = replace_head(resnet, TAP(), cut_after="layer1", conv=4)
    assert isinstance(headed, HeadedModel) and list(resnet.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in resnet.modules())
