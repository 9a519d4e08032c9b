"""Finding F by watching a forward: toy nets of every layout, and the things that are not F."""

import gc
import weakref

import pytest
import torch
from torch import nn

from camtools import ModelError, wrap
from camtools.model import Layout
from camtools_adapters.observe import observe

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Toy(nn.Module):
    """A forward written as a function of the image and some layers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.eval()

    def forward(self, x):
        return self.function(self, x)


def toy(function, **layers):
    return Toy(function, **{"conv": nn.Conv2d(3, 6, 4, 4), "fc": nn.Linear(6, 3), **layers})


def mean(f):
    return f.mean((2, 3))


def place(spec):
    return spec.layer, spec.side, spec.layout, spec.prefix_tokens


def maps_of(model, f, x=X):
    """W F, for comparison with what camtools finds: (B, K, h, w)."""
    torch.testing.assert_close(
        wrap(model).maps(x), torch.einsum("kc,bchw->bkhw", model.fc.weight, f), atol=1e-5, rtol=1e-4
    )


def test_nchw():
    model = toy(lambda m, x: m.fc(mean(m.relu(m.conv(x)))), relu=nn.ReLU())
    spec = observe(model, X)
    assert place(spec) == ("relu", "output", Layout.NCHW, 0)
    assert (spec.classifier, spec.activation, spec.pool) == ("fc", None, None)
    maps_of(model, model.conv(X).relu())


def test_nhwc():
    model = toy(lambda m, x: m.fc(m.norm(m.conv(x).permute(0, 2, 3, 1)).mean((1, 2))), norm=nn.LayerNorm(6))
    spec = observe(model, X)
    assert place(spec) == ("norm", "output", Layout.NHWC, 0) and spec.classifier == "fc"
    maps_of(model, model.norm(model.conv(X).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_tokens():
    model = toy(lambda m, x: m.fc(m.norm(m.conv(x).flatten(2).transpose(1, 2)).mean(1)), norm=nn.LayerNorm(6))
    spec = observe(model, X)
    assert place(spec) == ("norm", "output", Layout.NLC, 0) and spec.classifier == "fc"
    maps_of(model, model.norm(model.conv(X).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=True)[0]


@pytest.mark.parametrize("prefix", [1, 5])
def test_class_and_register_tokens(prefix):
    """After the last attention only the class token counts: F is what enters it."""

    def forward(m, x):
        tokens = torch.cat([m.prefix.expand(len(x), -1, -1), m.conv(x).flatten(2).transpose(1, 2)], 1)
        return m.fc(m.norm(m.blocks(tokens))[:, 0])

    model = toy(forward, prefix=nn.Parameter(torch.randn(1, prefix, 6)), blocks=nn.Sequential(Block(), Block()))
    model.norm = nn.LayerNorm(6)
    spec = observe(model, X)
    assert place(spec) == ("blocks.1.norm", "output", Layout.NLC, prefix) and spec.classifier is None
    tokens = torch.cat([model.prefix, model.conv(X).flatten(2).transpose(1, 2)], 1)
    f = model.blocks[1].norm(model.blocks[0](tokens))[:, prefix:].transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(wrap(model).features(X), f)


def test_transposed_tokens_are_not_taken_for_rows_and_columns_the_right_way_round():
    """F comes out with rows and columns exchanged; the tensor before, which is right, is taken instead."""

    def forward(m, x):
        return m.fc(m.late(m.conv(x).transpose(2, 3)).flatten(2).mean(2))

    model = toy(forward, late=nn.Conv2d(6, 6, 1))
    assert place(observe(model, X)) == ("conv", "output", Layout.NCHW, 0)


def test_attention_maps_are_not_space():
    """(B, heads, L, L) looks like a grid of a large image."""

    def forward(m, x):
        f = m.conv(x).flatten(2).transpose(1, 2)
        attention = m.softmax(f @ f.transpose(1, 2)[:, :, :])[:, None]
        return m.fc(m.drop(attention)[:, 0].matmul(f).mean(1))

    model = toy(forward, softmax=nn.Softmax(-1), drop=nn.Dropout(0.1))
    model.conv = nn.Conv2d(3, 6, 8, 8)
    spec = observe(model, X)
    assert place(spec) == ("conv", "output", Layout.NCHW, 0)


def test_channels_that_look_like_a_grid():
    """8 channels at 8 x 8: neither (8, 8) of an NHWC reading nor tokens."""
    model = toy(lambda m, x: m.fc(mean(m.conv(x))), conv=nn.Conv2d(3, 8, 4, 4), fc=nn.Linear(8, 3))
    assert place(observe(model, X)) == ("conv", "output", Layout.NCHW, 0)
    maps_of(model, model.conv(X))


def test_a_side_branch_does_not_hold_everything():
    """`branch` comes last and is on the way to the logits; the trunk goes round it."""

    def forward(m, x):
        f = m.conv(x)
        return m.fc(mean(f) + mean(m.branch(f)))

    model = toy(forward, branch=nn.Conv2d(6, 6, 1))
    assert place(observe(model, X)) == ("conv", "output", Layout.NCHW, 0)


def test_squeeze_and_excitation_gates_are_no_features():
    def forward(m, x):
        f = m.conv(x)
        return m.fc(mean(m.last(f * m.gate(f.mean((2, 3), keepdim=True)).sigmoid())))

    model = toy(forward, gate=nn.Conv2d(6, 6, 1), last=nn.Hardswish())
    assert place(observe(model, X)) == ("last", "output", Layout.NCHW, 0)


def test_adaptive_pooling_to_a_grid_is_after_the_features():
    model = toy(lambda m, x: m.fc(m.pool(m.conv(x)).flatten(1)), pool=nn.AdaptiveAvgPool2d(2), fc=nn.Linear(24, 3))
    assert place(observe(model, X)) == ("conv", "output", Layout.NCHW, 0)


def test_a_sum_is_named_by_what_it_enters():
    model = toy(lambda m, x: m.fc(m.pool(m.conv(x) + m.other(x)).flatten(1)), other=nn.Conv2d(3, 6, 4, 4))
    model.pool = nn.AdaptiveAvgPool2d(1)
    assert place(observe(model, X)) == ("pool", "input", Layout.NCHW, 0)
    maps_of(model, model.conv(X) + model.other(X))


def test_features_are_named_by_the_outermost_module_that_made_them():
    model = toy(lambda m, x: m.fc(mean(m.body(x))), body=nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU())))
    assert place(observe(model, X)) == ("body", "output", Layout.NCHW, 0)


def test_class_maps_that_are_pooled():
    model = toy(lambda m, x: mean(m.conv(x).relu()), conv=nn.Conv2d(3, 4, 4, 4))
    spec = observe(model, X)
    assert (spec.layer, spec.pool, spec.activation) == ("conv", None, None)
    model = toy(lambda m, x: mean(m.relu(m.conv(x))), conv=nn.Conv2d(3, 4, 4, 4), relu=nn.ReLU())
    spec = observe(model, X)
    assert (spec.layer, spec.pool) == ("relu", "identity")
    torch.testing.assert_close(wrap(model).maps(X), model.conv(X).relu())


# In-place operations


@pytest.mark.parametrize("inplace", [False, True])
def test_a_function_before_the_pooling(inplace):
    """DenseNet as many have copied it: the last ReLU is a function."""
    model = toy(lambda m, x: m.fc(mean(nn.functional.relu(m.conv(x), inplace=inplace))))
    spec = observe(model, X)
    assert (spec.layer, spec.activation, spec.classifier) == ("conv", torch.relu, "fc")
    maps_of(model, model.conv(X).relu())
    assert wrap(model).decomposition.exact


def test_a_sum_in_place_and_a_relu_in_place():
    """ResNet's last block written into the network: the tensor that `conv` made ends as something else."""

    def forward(m, x):
        f = m.conv(x)
        f += m.shortcut(x)
        return m.fc(mean(m.relu(f)))

    model = toy(forward, shortcut=nn.Conv2d(3, 6, 4, 4), relu=nn.ReLU(inplace=True))
    assert place(observe(model, X)) == ("relu", "output", Layout.NCHW, 0)
    maps_of(model, (model.conv(X) + model.shortcut(X)).relu())
    assert wrap(model).decomposition.exact


def test_a_sum_in_place_that_no_module_sees():
    """Nothing after the sum can be captured, and `conv` alone does not hold everything: a trunk before it does."""

    def forward(m, x):
        s = m.stem(x)
        f = m.conv(s)
        f += m.shortcut(s)
        return m.fc(mean(f))

    model = toy(forward, stem=nn.Conv2d(3, 3, 1), shortcut=nn.Conv2d(3, 6, 4, 4))
    assert place(observe(model, X)) == ("stem", "output", Layout.NCHW, 0)


def test_a_model_that_normalises_its_input_in_place():
    model = toy(lambda m, x: m.fc(mean(m.conv(x.sub_(0.5)))))
    x = X.clone()
    assert observe(model, x).layer == "conv"
    assert torch.equal(x, X)


# Modules that are called several times


def test_one_relu_for_all_layers():
    """LeNet: the last call of `relu` is in the head, so F cannot be named by it."""

    def forward(m, x):
        f = m.relu(m.second(m.relu(m.conv(x))))
        return m.fc(m.relu(m.hidden(f.flatten(1))))

    layers = {"second": nn.Conv2d(6, 5, 3), "hidden": nn.Linear(5 * 36, 6), "relu": nn.ReLU()}
    model = toy(forward, **layers)
    assert place(observe(model, X)) == ("second", "output", Layout.NCHW, 0)
    maps = wrap(model).maps(X)
    f = model.second(model.conv(X).relu()).detach()
    weights = torch.autograd.functional.jacobian(lambda t: model.fc(model.hidden(t.relu().flatten(1)).relu())[0], f)
    torch.testing.assert_close(maps[0], (weights[:, 0] * f).sum(1) * 36, atol=1e-5, rtol=1e-4)


def test_one_relu_and_one_pool_for_all_layers():
    def forward(m, x):
        f = m.pool(m.relu(m.conv(x)))
        f = m.pool(m.relu(m.second(f)))
        return m.fc(m.relu(m.hidden(f.flatten(1))))

    layers = {"second": nn.Conv2d(6, 5, 3, padding=1), "hidden": nn.Linear(5 * 4, 6), "pool": nn.MaxPool2d(2)}
    model = toy(forward, **layers, relu=nn.ReLU())
    assert place(observe(model, X)) == ("pool", "output", Layout.NCHW, 0)
    assert wrap(model).maps(X).shape == (1, 3, 2, 2)


# What has no map


def test_no_positions():
    model = toy(lambda m, x: m.fc(x.mean((2, 3))), fc=nn.Linear(3, 2))
    words = r"Toy has no tensor with image positions that all reach the class scores.*wrap\(model, spec="
    with pytest.raises(ModelError, match=words):
        observe(model, X)


def test_positions_that_are_dropped_at_once():
    model = toy(lambda m, x: m.fc(m.conv(x)[:, :, 0, 0]))
    with pytest.raises(ModelError, match="mixes or drops positions before any layer"):
        observe(model, X)


@pytest.mark.parametrize("how", ["no_grad", "numpy"])
def test_a_forward_without_autograd(how):
    def forward(m, x):
        if how == "numpy":
            return torch.from_numpy(x.detach().numpy().mean((2, 3)))
        with torch.no_grad():
            return m.fc(mean(m.conv(x)))

    words = "scores of Toy do not depend on the image through autograd.*register an adapter for it"
    with pytest.raises(ModelError, match=words):
        observe(toy(forward), X)


def test_a_head_of_zeros_is_seen_through():
    model = toy(lambda m, x: m.fc(mean(m.conv(x))))
    nn.init.zeros_(model.fc.weight)
    spec = observe(model, X)
    assert (spec.layer, spec.side, spec.classifier) == ("conv", "output", "fc")


def test_scores_that_do_not_change():
    model = toy(lambda m, x: m.fc(0 * mean(m.conv(x))))
    with pytest.raises(ModelError, match=r"scores of Toy do not change with the image.*Load trained weights"):
        observe(model, X)


def test_scores_that_are_not_numbers():
    model = toy(lambda m, x: m.fc(mean(m.conv(x))) / 0 * 0)
    with pytest.raises(ModelError, match=r"Toy returned NaN or infinite class scores.*Check its weights"):
        observe(model, X)


def test_no_class_scores():
    with pytest.raises(ModelError, match="Give camtools a classifier"):
        observe(toy(lambda m, x: m.conv(x)), X)


# Sizes, modes, traces


@pytest.mark.parametrize("size", [(32, 64), (48, 32), (40, 40)])
def test_other_sizes(size):
    model = toy(lambda m, x: m.fc(m.norm(m.conv(x).flatten(2).transpose(1, 2)).mean(1)), norm=nn.LayerNorm(6))
    x = torch.randn(2, 3, *size)
    assert place(observe(model, x[:1])) == ("norm", "output", Layout.NLC, 0)
    maps_of(model, model.norm(model.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(tiny, mode):
    with mode():
        spec = observe(tiny, X.clone())
    assert (spec.layer, spec.classifier) == ("relu", "fc")


def test_parameters_made_under_inference_mode(make_tiny):
    with torch.inference_mode():
        model = make_tiny()
    assert observe(model, X).classifier == "fc"


def test_compiled_parts_run_eagerly(tiny):
    def backend(graph, inputs):
        raise AssertionError("compiled")

    tiny.compile(backend=backend)
    assert observe(tiny, X).classifier == "fc"


def test_the_model_is_left_as_it_was(make_tiny):
    model = make_tiny()
    model.relu = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    observe(model, X)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_memory_does_not_grow(tiny):
    def once():
        x = X.clone()
        observe(tiny, x)
        return weakref.ref(x)

    once()
    gc.collect()
    gc.disable()  # reference counts alone must free it all
    try:
        before = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        kept = [once() for _ in range(20)]
        after = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    finally:
        gc.enable()
    assert after == before and not any(ref() is not None for ref in kept)
