"""Maps of every kind of head against what is worked out by hand or by torch's own Jacobian of the head."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from camtools import ModelError, wrap
from camtools.model import FeatureSpec, Layout


class Net(nn.Module):
    """`body` makes F, `head` makes logits of it."""

    def __init__(self, body, head):
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x):
        return self.head(self.body(x))


class Head(nn.Module):
    """A head written as a function of F and some layers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, f):
        return self.function(self, f)


def net(function, *, channels=4, body=None, **layers):
    return Net(body or nn.Conv2d(3, channels, 4, 4), Head(function, **layers)).eval()


def by_jacobian(head, f):
    """h·w · sum_c dlogit_k / dF_c · F_c, of one image at a time, for F in NCHW: (B, K, h, w)."""
    maps = []
    for one in f.detach().split(1):
        weights = jacobian(lambda t: head(t)[0], one)[:, 0]  # (K, C, h, w)
        maps.append((weights * one).sum(1) * one.shape[2] * one.shape[3])
    return torch.stack(maps)


def mean(f):
    return f.mean((2, 3))


X = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(3))


def test_worked_by_hand():
    """x = [[1, 2], [3, 4]] in the first colour; F = (x, 10 - x); W = [[1, 0], [-1, 2]], b = (5, 7)."""
    model = Net(nn.Conv2d(3, 2, 1), Head(lambda m, f: m.fc(mean(f)), fc=nn.Linear(2, 2))).eval()
    with torch.no_grad():
        model.body.weight.zero_()
        model.body.weight[:, 0, 0, 0] = torch.tensor([1.0, -1.0])
        model.body.bias.copy_(torch.tensor([0.0, 10.0]))
        model.head.fc.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]))
        model.head.fc.bias.copy_(torch.tensor([5.0, 7.0]))
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = wrap(model, spec=FeatureSpec("body", classifier="head.fc")).activations(x)
    assert found.features.tolist() == [[[[1, 2], [3, 4]], [[9, 8], [7, 6]]]]
    assert found.weights().tolist() == [[[1, 0], [-1, 2]]]
    assert found.maps().tolist() == [[[[1, 2], [3, 4]], [[17, 14], [11, 8]]]]
    assert found.maps(1).tolist() == [[[[17, 14], [11, 8]]]]
    assert found.logits.tolist() == [[2.5 + 5, 12.5 + 7]]  # the maps' means plus the bias
    assert found.decomposition.exact and found.decomposition.residual == 0.0


def test_the_map_explains_the_logit(tiny):
    found = wrap(tiny).activations(X)
    assert found.decomposition.exact
    torch.testing.assert_close(found.maps().mean((2, 3)) + tiny.fc.bias, found.logits)


def test_linearised_is_exact_on_an_exact_head(tiny):
    """Without a claim the weights come from the gradient, and are W at every position."""
    exact, linearised = wrap(tiny).activations(X), wrap(tiny, spec=FeatureSpec("relu")).activations(X)
    assert exact.decomposition.exact and not linearised.decomposition.exact
    assert linearised.decomposition.residual is None
    weights = linearised.weights([[2, 0], [1, 1]])
    assert weights.shape == (2, 2, 4, 4, 5)
    want = tiny.fc.weight[torch.tensor([[2, 0], [1, 1]])][..., None, None].expand_as(weights)
    torch.testing.assert_close(weights, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(linearised.maps(), exact.maps())


def test_layer_norm_after_the_pooling():
    """d LN(p)/dp = diag(gamma)/s · (I - 1/C - z z^T/C), with z the normalised p and s its standard deviation."""
    model = net(lambda m, f: m.fc(m.norm(mean(f))), norm=nn.LayerNorm(4), fc=nn.Linear(4, 3))
    with torch.no_grad():
        model.head.norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0]))
    found = wrap(model, spec=FeatureSpec("body", classifier="head.fc")).activations(X)
    assert not found.decomposition.exact
    p = mean(found.features.detach()).double()
    s = (p.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    z = (p - p.mean(1, keepdim=True)) / s
    centre = torch.eye(4) - 0.25 - z[:, :, None] * z[:, None, :] / 4
    norm = model.head.norm.weight.detach().double()[None, :, None] * centre / s[:, :, None]
    want = model.head.fc.weight.detach().double() @ norm  # (B, K, C), the same at all positions
    got = found.weights().double()
    torch.testing.assert_close(got, want[..., None, None].expand_as(got), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        net(lambda m, f: m.fc(f.flatten(1)), fc=nn.Linear(4 * 4 * 5, 3)),
        net(
            lambda m, f: m.last(m.first(nn.functional.adaptive_avg_pool2d(f, (2, 3)).flatten(1)).relu()),
            first=nn.Linear(4 * 2 * 3, 8),
            last=nn.Linear(8, 3),
        ),
        net(lambda m, f: m.last(m.first(mean(f)).tanh()), first=nn.Linear(4, 8), last=nn.Linear(8, 3)),
        net(
            lambda m, f: m.fc((f * m.gate(f).flatten(2).softmax(2).view_as(f[:, :1])).sum((2, 3))),
            gate=nn.Conv2d(4, 1, 1),
            fc=nn.Linear(4, 3),
        ),
        net(lambda m, f: m.fc(f.pow(3).mean((2, 3))), fc=nn.Linear(4, 3)),
    ],
    ids=["flatten", "VGG", "hidden layer", "attention pooling", "generalised mean"],
)
@pytest.mark.parametrize("grad", [False, True])
def test_any_other_head_against_its_jacobian(model, grad):
    cam_model = wrap(model, spec=FeatureSpec("body"))
    with torch.set_grad_enabled(grad):
        maps = cam_model.maps(X)
    torch.testing.assert_close(maps, by_jacobian(model.head, model.body(X)), atol=1e-5, rtol=1e-4)
    assert not cam_model.decomposition.exact


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("max", lambda f: f.amax((2, 3))),
        ("avgmax", lambda f: (f.amax((2, 3)) + f.mean((2, 3))) / 2),
        ("avg", lambda f: f.mean((2, 3))),
    ],
)
def test_poolings_are_told_apart(name, pool):
    model = net(lambda m, f: m.fc(pool(f)), fc=nn.Linear(4, 3))
    cam_model = wrap(model, spec=FeatureSpec("body", classifier="head.fc"))
    torch.testing.assert_close(
        cam_model.maps(X), torch.einsum("kc,bchw->bkhw", model.head.fc.weight, model.body(X)), atol=1e-6, rtol=1e-5
    )
    assert cam_model.decomposition.exact and cam_model.decomposition.head == f"{name} pooling + Linear(4, 3)"


def test_a_pooling_other_than_the_claimed_one_is_not_exact():
    model = net(lambda m, f: m.fc(f.amax((2, 3))), fc=nn.Linear(4, 3))
    assert not wrap(model, spec=FeatureSpec("body", classifier="head.fc", pool="avg")).locate(X).exact


def test_a_convolution_as_classifier():
    model = net(lambda m, f: m.conv(f.mean((2, 3), keepdim=True)).flatten(1), conv=nn.Conv2d(4, 3, 1))
    cam_model = wrap(model, spec=FeatureSpec("body", classifier="head.conv"))
    want = nn.functional.conv2d(model.body(X), model.head.conv.weight)
    torch.testing.assert_close(cam_model.maps(X), want)
    assert cam_model.decomposition.exact
    assert cam_model.class_weights.shape == (3, 4)
    assert cam_model.class_weights.data_ptr() == model.head.conv.weight.data_ptr()


def test_maps_that_are_pooled_as_they_are():
    """SqueezeNet: 1 x 1 convolution to K channels, ReLU, pooling."""
    model = net(lambda m, f: mean(m.conv(f).relu()), conv=nn.Conv2d(4, 3, 1))
    cam_model = wrap(model, spec=FeatureSpec("head.conv", activation=torch.relu, pool="identity"))
    want = model.head.conv(model.body(X)).relu()
    torch.testing.assert_close(cam_model.maps(X), want)
    torch.testing.assert_close(cam_model.maps(X, 2), want[:, 2:])
    torch.testing.assert_close(cam_model.class_weights, torch.eye(3))
    assert cam_model.decomposition.head == "avg pooling of 3 class maps"


def test_a_function_before_the_pooling():
    """DenseNet: F, then a ReLU that is no module and works in place."""
    model = net(lambda m, f: m.fc(mean(torch.relu_(f))), fc=nn.Linear(4, 3))
    spec = FeatureSpec("body", activation=torch.relu, classifier="head.fc")
    want = torch.einsum("kc,bchw->bkhw", model.head.fc.weight, model.body(X).relu())
    for grad in (False, True):
        cam_model = wrap(model, spec=spec)
        for _ in range(2):  # before and after the head is known
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(cam_model.maps(X), want, atol=1e-6, rtol=1e-5)
            assert cam_model.decomposition.exact


def test_a_function_before_the_pooling_of_a_linearised_head():
    """The weights are at the captured tensor, so the maps are those of the tensor before the function."""
    model = net(lambda m, f: m.last(m.first(mean(torch.relu_(f))).relu()), first=nn.Linear(4, 8), last=nn.Linear(8, 3))
    want = by_jacobian(lambda f: model.head(f.clone()), model.body(X))
    for activation in (None, torch.relu):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                maps = wrap(model, spec=FeatureSpec("body", activation=activation)).maps(X)
            torch.testing.assert_close(maps, want, atol=1e-5, rtol=1e-4)


class Patches(nn.Module):
    """An image into tokens, a class token in front."""

    def __init__(self, channels=8, prefix=1):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, prefix, channels))

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1)


class Block(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Transformer(nn.Module):
    def __init__(self, prefix=1):
        super().__init__()
        self.patches = Patches(prefix=prefix)
        self.blocks = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(8, 3)

    def tail(self, x):
        return self.fc(self.blocks[1](x)[:, 0])

    def forward(self, x):
        return self.fc(self.blocks(self.patches(x))[:, 0])


@pytest.mark.parametrize("prefix", [1, 3])
@pytest.mark.parametrize("grad", [False, True])
def test_class_token(prefix, grad):
    model = Transformer(prefix).eval()
    spec = FeatureSpec("blocks.0", layout=Layout.NLC, prefix_tokens=prefix)
    with torch.set_grad_enabled(grad):
        found = wrap(model, spec=spec).activations(X)
        maps = found.maps([[0], [2]])
    tokens = model.blocks[0](model.patches(X)).detach()
    for image, target in enumerate((0, 2)):
        one = tokens[image : image + 1]
        weights = jacobian(lambda t, k=target: model.tail(t)[0, k], one)
        want = (weights * one).sum(2)[0, prefix:].unflatten(0, (4, 5)) * 20
        torch.testing.assert_close(maps[image, 0], want, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.features, tokens[:, prefix:].transpose(1, 2).unflatten(2, (4, 5)))
    assert not found.decomposition.exact


class ClassAttention(nn.Module):
    """CaiT: the class token reads the same patch tokens in two layers."""

    def __init__(self):
        super().__init__()
        self.patches = Patches(prefix=0)
        self.first = nn.MultiheadAttention(8, 2, batch_first=True)
        self.second = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.fc = nn.Linear(8, 3)

    def tail(self, tokens):
        token = self.cls.expand(len(tokens), -1, -1)
        for layer in (self.first, self.second):
            token = token + layer(token, tokens, value=tokens, need_weights=False)[0]
        return self.fc(token[:, 0])

    def forward(self, x):
        return self.tail(self.patches(x))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("spec", [FeatureSpec("patches"), FeatureSpec("first", "input", index=1)])
def test_features_with_two_readers_have_the_total_gradient(spec, grad):
    model = ClassAttention().eval()
    spec = FeatureSpec(spec.layer, spec.side, Layout.NLC, index=spec.index)
    with torch.set_grad_enabled(grad):
        maps = wrap(model, spec=spec).maps(X[:1])
    tokens = model.patches(X[:1]).detach()
    weights = jacobian(lambda t: model.tail(t)[0], tokens)[:, 0]
    torch.testing.assert_close(maps[0], (weights * tokens).sum(2).unflatten(1, (4, 5)) * 20, atol=1e-6, rtol=1e-4)


def test_channels_last_features():
    class Swin(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 4, 4)
            self.norm = nn.LayerNorm(4)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.norm(self.body(x).permute(0, 2, 3, 1)).mean((1, 2)))

    model = Swin().eval()
    cam_model = wrap(model, spec=FeatureSpec("norm", layout=Layout.NHWC, classifier="fc"))
    f = model.norm(model.body(X).permute(0, 2, 3, 1))
    torch.testing.assert_close(cam_model.maps(X), (f @ model.fc.weight.T).permute(0, 3, 1, 2), atol=1e-6, rtol=1e-5)
    assert cam_model.decomposition.exact
    linearised = wrap(model, spec=FeatureSpec("norm", layout=Layout.NHWC))
    torch.testing.assert_close(linearised.maps(X), cam_model.maps(X), atol=1e-6, rtol=1e-5)


def test_a_layer_that_is_called_several_times():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 4, 4)
            self.layer = nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(mean(self.layer(self.layer(self.stem(x)))))

    model = Recurrent().eval()
    want = torch.einsum("kc,bchw->bkhw", model.fc.weight, model.layer(model.layer(model.stem(X))))
    for classifier in ("fc", None):
        maps = wrap(model, spec=FeatureSpec("layer", classifier=classifier)).maps(X)
        torch.testing.assert_close(maps, want, atol=1e-6, rtol=1e-5)


def test_features_as_keyword_argument_in_a_dict():
    class Pooler(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, mask, *, states):
            return self.fc(mean(states["hidden"] * mask))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 4, 4)
            self.pooler = Pooler()

        def forward(self, x):
            return self.pooler(torch.ones(1), states={"hidden": self.body(x), "other": x})

    model = Model().eval()
    want = torch.einsum("kc,bchw->bkhw", model.pooler.fc.weight, model.body(X))
    for classifier in ("pooler.fc", None):
        maps = wrap(model, spec=FeatureSpec("pooler", "input", index=1, classifier=classifier)).maps(X)
        torch.testing.assert_close(maps, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", ["body", ""])
@pytest.mark.parametrize("grad", [False, True])
def test_the_input_itself_as_features_stays_as_it_was(layer, grad):
    model = net(lambda m, f: m.fc(f.square().mean((2, 3))), body=nn.Identity(), fc=nn.Linear(3, 2))
    x = X.clone()
    with torch.set_grad_enabled(grad):
        maps = wrap(model, spec=FeatureSpec(layer, "input")).maps(x)
    torch.testing.assert_close(maps, by_jacobian(model.head, X), atol=1e-6, rtol=1e-5)
    assert torch.equal(x, X) and not x.requires_grad and x.grad is None


@pytest.mark.parametrize("detach", [False, True])
def test_a_head_without_gradient(detach):
    def function(m, f):
        with torch.set_grad_enabled(detach):
            return m.last(m.first(mean(f.detach() if detach else f)).relu())

    model = net(function, first=nn.Linear(4, 4), last=nn.Linear(4, 3))
    with pytest.raises(ModelError, match=r"the logits do not depend on the features through autograd.*adapter"):
        wrap(model, spec=FeatureSpec("body")).maps(X)
