"""Getting hold of F: the right tensor, the right gradient, and no trace afterwards."""

import pytest
import torch
from torch import nn

from camtools.errors import ModelError
from camtools.model.adapter import FeatureSpec
from camtools.model.capture import Capture


class Net(nn.Module):
    """conv -> `middle` -> sum of squares per channel: logits whose gradient with respect to F is 2 F."""

    def __init__(self, middle=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.middle = middle or nn.Identity()

    def forward(self, x):
        return self.middle(self.conv(x)).square().sum((2, 3))


class Returns(nn.Module):
    """Wraps its input in some container."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


class Unpacks(nn.Module):
    def __init__(self, make, get):
        super().__init__()
        self.body = Returns(make)
        self.get = get

    def forward(self, x):
        return self.get(self.body(x)).square().sum((2, 3))


X = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]]]).repeat(1, 2, 1, 1)


def run(model, spec, x, *, cut=True):
    """Return features, logits and d (sum of logits) / d features."""
    with Capture(model, spec, cut=cut) as capture:
        logits = model(x)
    gradient = torch.autograd.grad(logits.sum(), capture.features)[0] if cut else None
    return capture.features, logits, gradient


@pytest.mark.parametrize("spec", [FeatureSpec("conv"), FeatureSpec("middle", "input"), FeatureSpec("middle")])
def test_features_and_their_gradient(spec):
    model = Net()
    x = torch.randn(2, 3, 4, 4)
    features, logits, gradient = run(model, spec, x)
    assert torch.equal(features, model.conv(x))
    assert torch.equal(logits, model(x))
    torch.testing.assert_close(gradient, 2 * features)


@pytest.mark.parametrize("side", ["input", "output"])
def test_the_backbone_has_no_graph_under_no_grad(side):
    model = Net()
    with torch.no_grad(), Capture(model, FeatureSpec("middle", side), cut=True) as capture:
        logits = model(torch.randn(1, 3, 4, 4))
        assert torch.is_grad_enabled()  # from F on
    assert capture.features.is_leaf and logits.requires_grad
    assert torch.is_grad_enabled()


def test_grad_mode_is_put_back_after_an_error():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("no")

    model = Net(Fails())
    with torch.no_grad():
        with pytest.raises(KeyError), Capture(model, FeatureSpec("conv"), cut=True):
            model(torch.randn(1, 3, 4, 4))
        assert not torch.is_grad_enabled()
    assert not model.conv._forward_hooks and not model.conv._forward_pre_hooks


def test_a_trainers_graph_is_not_cut():
    model = Net()
    with Capture(model, FeatureSpec("conv"), cut=True) as capture:
        logits = model(torch.randn(1, 3, 4, 4))
    assert capture.features.grad_fn is not None
    for result in (capture.features, logits):
        (gradient,) = torch.autograd.grad(result.sum(), model.conv.weight, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("grad", [False, True])
def test_without_cut_nothing_changes(grad):
    model = Net()
    with torch.set_grad_enabled(grad), Capture(model, FeatureSpec("conv"), cut=False) as capture:
        logits = model(torch.randn(1, 3, 4, 4))
    assert logits.requires_grad is capture.features.requires_grad is grad


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_in_place_operations_right_after(cut, grad):
    """DenseNet: F, then an in-place ReLU. F is what came before it, whatever the grad mode."""
    weight = nn.Parameter(torch.ones(1))
    model = Unpacks(lambda x: x * weight, torch.relu_)
    with torch.set_grad_enabled(grad), Capture(model, FeatureSpec("body"), cut=cut) as capture:
        logits = model(X)
    assert torch.equal(capture.features, X)
    assert logits.tolist() == [[10.0, 10.0]]
    if cut:
        (gradient,) = torch.autograd.grad(logits.sum(), capture.features)
        assert gradient[0, 0].tolist() == [[2.0, 0.0], [6.0, 0.0]]


def test_a_layer_that_changes_its_input_is_refused_as_input():
    model = Net(nn.ReLU(inplace=True))
    with pytest.raises(ModelError, match=r"layer 'middle' changes its input in place.*side=\"output\""):
        Capture(model, FeatureSpec("middle", "input"), cut=True)
    features, _, gradient = run(model, FeatureSpec("middle"), torch.randn(1, 3, 4, 4))
    assert features.min() >= 0
    torch.testing.assert_close(gradient, 2 * features)


@pytest.mark.parametrize(
    ("make", "get", "index"),
    [
        (lambda x: (x.sum(), x * 2), lambda out: out[1], 1),
        (lambda x: [x * 2], lambda out: out[0], 0),
        (lambda x: {"a": x.sum(), "b": (None, x * 2)}, lambda out: out["b"][1], 1),
    ],
    ids=["tuple", "list", "nested dict"],
)
def test_one_tensor_of_several(make, get, index):
    features, logits, gradient = run(Unpacks(make, get), FeatureSpec("body", index=index), X)
    assert torch.equal(features, 2 * X)
    assert logits.tolist() == [[120.0, 120.0]]
    assert torch.equal(gradient, 4 * X)


def test_keyword_arguments_are_inputs_too():
    class Inner(nn.Module):
        def forward(self, first, *, second):
            return (first * second).sum((2, 3))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x * 1.0, second=x * 3.0)

    features, _, gradient = run(Outer(), FeatureSpec("inner", "input", index=1), X)
    assert torch.equal(features, 3 * X)
    assert torch.equal(gradient, X)


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_tensor_with_two_readers_has_the_sum_of_their_gradients(side):
    """Class attention (CaiT) reads its tokens twice."""

    class TwoReaders(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(2, 2, 1)
            self.reader = nn.Identity()

        def forward(self, x):
            f = self.body(x)
            return (self.reader(f) * 3).sum((2, 3)) + f.square().sum((2, 3))

    model = TwoReaders()
    spec = FeatureSpec("body") if side == "output" else FeatureSpec("reader", "input")
    with torch.no_grad(), Capture(model, spec, cut=True) as capture:
        logits = model(X)
    (gradient,) = torch.autograd.grad(logits.sum(), capture.features)
    torch.testing.assert_close(gradient, 3 + 2 * capture.features)


def test_of_several_calls_the_last_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Returns(lambda x: x * 2)

        def forward(self, x):
            return self.layer(self.layer(x)).square().sum((2, 3))

    model = Twice()
    for grad in (False, True):
        with torch.set_grad_enabled(grad), Capture(model, FeatureSpec("layer"), cut=True) as capture:
            logits = model(X)
        assert torch.equal(capture.features, 4 * X)
        assert torch.equal(torch.autograd.grad(logits.sum(), capture.features)[0], 8 * X)


def test_inference_tensors():
    with torch.inference_mode():
        x = torch.randn(1, 3, 4, 4)
        model = Net()
        model.conv = nn.Identity()
    features, _, gradient = run(model, FeatureSpec("middle", "input"), x)
    torch.testing.assert_close(gradient, 2 * features)


def test_unknown_layer():
    with pytest.raises(ModelError, match=r"Net has no layer 'nowhere'.*wrap it again"):
        Capture(Net(), FeatureSpec("nowhere"), cut=False)


def test_a_layer_that_does_not_run():
    model = Net()
    model.unused = nn.Conv2d(1, 1, 1)
    with Capture(model, FeatureSpec("unused"), cut=False) as capture:
        model(torch.randn(1, 3, 2, 2))
    with pytest.raises(ModelError, match=r"layer 'unused' did not run in the model's forward"):
        capture.features


@pytest.mark.parametrize(("side", "count"), [("input", 1), ("output", 0)])
def test_fewer_tensors_than_asked_for(side, count):
    model = Unpacks(lambda x: ["no tensor"], lambda out: out)
    with (
        pytest.raises(ModelError, match=rf"the {side} of layer 'body' holds {count} tensors.*asked for number 3"),
        Capture(model, FeatureSpec("body", side, index=3), cut=True),
    ):
        model(X)
