import pytest
import torch
from torch import nn

from camtools import ModelError, wrap
from camtools.model import Decomposition, FeatureSpec, Layout
from camtools.model.decomposition import POOLS, classifier_weights, head_gradient, linear_head


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.conv = nn.Conv2d(4, 3, 1, bias=False)
        self.small = nn.Linear(4, 2)
        self.wide = nn.Linear(5, 3)
        self.none = nn.ReLU()


F = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))


def test_poolings():
    f = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert {name: float(pool(f)) for name, pool in POOLS.items()} == {"avg": 3.0, "max": 6.0, "avgmax": 4.5}


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_the_pooling_that_gives_the_logits_is_found(pool):
    model = Heads()
    head = linear_head(model, FeatureSpec("", classifier="fc"), F, model.fc(POOLS[pool](F)))
    assert head.pool == pool and head.residual < 1e-6 and head.is_exact(torch.float32)
    assert head.weight.data_ptr() == model.fc.weight.data_ptr() and head.bias is model.fc.bias


def test_the_residual_is_the_largest_error_over_the_largest_logit():
    model = Heads()
    logits = model.fc(F.mean((2, 3))).detach()
    scale = logits.abs().max()
    off = logits.clone()
    off[1, 2] += 0.01 * torch.sign(off[1, 2]) * scale
    head = linear_head(model, FeatureSpec("", classifier="fc", pool="avg"), F, off)
    assert head.residual == pytest.approx(float(0.01 * scale / off.abs().max()), rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.float64, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)],
)
def test_what_counts_as_exact_follows_the_precision(dtype, tolerance):
    model = Heads()
    logits = model.fc(F.mean((2, 3))).detach()
    spec = FeatureSpec("", classifier="fc")
    for factor, exact in ((0.8, True), (1.3, False)):
        head = linear_head(model, spec, F, logits * (1 + factor * tolerance))
        assert head.is_exact(dtype) is exact
        assert head.is_exact(torch.float32, dtype) is exact  # the coarser of the two


@pytest.mark.parametrize("name", ["small", "wide", "none", None])
def test_claims_that_cannot_be(name):
    model = Heads()
    assert linear_head(model, FeatureSpec("", classifier=name), F, torch.randn(2, 3)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_not_exact(value):
    model, f = Heads(), F.clone()
    f[0, 0, 0, 0] = value
    assert linear_head(model, FeatureSpec("", classifier="fc"), f, torch.randn(2, 3)).residual == float("inf")


def test_weights_of_a_convolution_without_bias():
    model = Heads()
    weight, bias = classifier_weights(model, FeatureSpec("", classifier="conv"), F)
    assert bias is None and torch.equal(weight, model.conv.weight[:, :, 0, 0])
    weight.sum().backward()
    assert torch.equal(model.conv.weight.grad, torch.ones(3, 4, 1, 1))


def test_weights_where_features_are_the_maps():
    weight, bias = classifier_weights(Heads(), FeatureSpec("", pool="identity"), F.half())
    assert bias is None and weight.dtype is torch.float16 and torch.equal(weight, torch.eye(4).half())


def test_head_gradient_by_hand():
    """logit_k = sum_c (k + 1) c F_c^2 / 2, so d logit_k / dF_c = (k + 1) c F_c."""
    f = F.clone().requires_grad_()
    channel = torch.arange(4.0)
    logits = torch.stack([(k + 1) * (channel[:, None, None] * f.square() / 2).sum((1, 2, 3)) for k in range(3)], 1)
    gradient = head_gradient(f, logits, torch.tensor([[2, 0], [1, 1]]))
    want = channel[:, None, None] * F
    torch.testing.assert_close(gradient[0], torch.stack([3 * want[0], want[0]]))
    torch.testing.assert_close(gradient[1], torch.stack([2 * want[1], 2 * want[1]]))
    assert not gradient.requires_grad
    assert head_gradient(f, logits, torch.tensor([[0], [0]]), create_graph=True).requires_grad


@pytest.mark.parametrize("requires_grad", [False, True])
def test_head_gradient_of_logits_without_a_way_back(requires_grad):
    f, logits = F.clone().requires_grad_(), torch.randn(2, 3, requires_grad=requires_grad)
    with pytest.raises(ModelError, match="the logits do not depend on the features through autograd"):
        head_gradient(f, logits, torch.tensor([[0], [0]]))


def test_repr():
    found = Decomposition(
        True, 2.34e-7, "layer4", "output", Layout.NCHW, "avg pooling + Linear(2048, 1000)", "timm", 2048, (7, 7)
    )
    assert repr(found) == (
        "Decomposition(exact, residual=2.3e-07, layer=output of 'layer4', layout=NCHW, features=2048 x 7 x 7, "
        "head='avg pooling + Linear(2048, 1000)', adapter='timm')"
    )
    found = Decomposition(False, None, "", "input", Layout.NLC, "attention", "generic", 192, (14, 14))
    assert repr(found) == (
        "Decomposition(linearised, layer=input of the model, layout=NLC, features=192 x 14 x 14, "
        "head='attention', adapter='generic')"
    )


def test_of_a_model(make_tiny):
    model = make_tiny(num_classes=3, channels=4)
    found = wrap(model).locate(torch.randn(1, 3, 16, 24))
    assert found.exact and found.residual < 1e-6
    assert (found.layer, found.side, found.layout, found.adapter) == ("relu", "output", Layout.NCHW, "generic")
    assert (found.channels, found.grid, found.head) == (4, (4, 6), "avg pooling + Linear(4, 3)")


def test_a_wrong_claim_costs_nothing_but_the_exact_form(tiny):
    """`other` has the classifier's shape and is not it."""
    tiny.other = nn.Linear(4, 3)
    x = torch.randn(2, 3, 16, 16)
    cam_model = wrap(tiny, spec=FeatureSpec("relu", classifier="other", head="who knows"))
    maps = cam_model.maps(x)
    assert not cam_model.decomposition.exact and cam_model.decomposition.residual > 0.01
    assert cam_model.decomposition.head == "who knows"
    torch.testing.assert_close(maps, wrap(tiny).maps(x))
