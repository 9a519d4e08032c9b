"""`wrap`: the model's own logits and state, maps of any number of classes from one forward, gradients, targets."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from camtools import CamModel, ModelError, TargetError, wrap
from camtools.classes.targets import target_indices
from camtools.model import FeatureSpec
from camtools.model.cam_model import unwrapped

X = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(3))


def hidden_head(model):
    """A `TinyNet` with a hidden layer: linearised."""
    model.fc = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return model


def test_forward_is_the_models_own(tiny):
    cam_model = wrap(tiny)
    assert isinstance(cam_model, CamModel)
    assert torch.equal(cam_model(X), tiny(X))
    output = wrap(Dict(tiny))(X)
    assert set(output) == {"logits", "hidden"}


def test_wrapping_twice_is_wrapping_once(tiny):
    cam_model = wrap(tiny)
    assert wrap(cam_model) is cam_model
    assert unwrapped(wrap(cam_model, spec=FeatureSpec("conv"))) is tiny


@pytest.mark.parametrize("thing", ["resnet50", nn.ReLU, None, lambda x: x])
def test_what_is_no_module(thing):
    with pytest.raises(ModelError, match=rf"expected a torch.nn.Module, got {type(thing).__name__}"):
        wrap(thing)


# State


def test_state_dict_is_the_wrapped_models_own(tiny, make_tiny):
    cam_model = wrap(tiny)
    assert list(cam_model.state_dict()) == list(tiny.state_dict())
    assert cam_model.state_dict()["fc.weight"].data_ptr() == tiny.fc.weight.data_ptr()
    other = make_tiny()
    nn.init.zeros_(other.fc.weight)
    cam_model.load_state_dict(other.state_dict(), strict=True)
    assert not tiny.fc.weight.any()
    fresh = make_tiny()
    fresh.load_state_dict(cam_model.state_dict(), strict=True)
    assert not fresh.fc.weight.any()


def test_state_dict_of_a_bigger_module(tiny, make_tiny):
    bigger = nn.ModuleDict({"stem": nn.Linear(2, 2), "cam": wrap(tiny)})
    plain = nn.ModuleDict({"stem": nn.Linear(2, 2), "cam": make_tiny()})
    assert list(bigger.state_dict()) == list(plain.state_dict())
    nn.init.constant_(plain["cam"].fc.weight, 3.0)
    bigger.load_state_dict(plain.state_dict(), strict=True)
    assert (tiny.fc.weight == 3).all() and torch.equal(bigger["stem"].weight, plain["stem"].weight)
    nn.init.constant_(tiny.fc.bias, 4.0)
    plain.load_state_dict(bigger.state_dict(), strict=True)
    assert (plain["cam"].fc.bias == 4).all()


def test_state_dict_of_a_model_with_a_part_called_model():
    """Keys `model.fc.weight` and `fc.weight` must not run into each other."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.ModuleDict({"fc": nn.Linear(2, 2), "model": nn.Linear(2, 2)})
            self.fc = nn.Linear(2, 2)

    one, two = Outer(), Outer()
    assert list(wrap(one).state_dict()) == list(one.state_dict())
    for name, value in wrap(one).state_dict().items():
        assert torch.equal(value, one.state_dict()[name]), name
    wrap(two).load_state_dict(one.state_dict(), strict=True)
    for name, value in two.state_dict().items():
        assert torch.equal(value, one.state_dict()[name]), name


def test_strict_loading_still_finds_what_is_missing_and_too_much(tiny):
    state = tiny.state_dict()
    state["more"] = state.pop("fc.bias")
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*fc\.bias.*Unexpected key.*more"):
        wrap(tiny).load_state_dict(state)


def test_checkpoints_through_files(tiny, make_tiny, tmp_path):
    nn.init.constant_(tiny.fc.weight, 3.0)
    torch.save(wrap(tiny).state_dict(), tmp_path / "cam.pt")
    fresh = make_tiny()
    fresh.load_state_dict(torch.load(tmp_path / "cam.pt", weights_only=True), strict=True)
    assert (fresh.fc.weight == 3).all()


def test_a_copy_is_on_its_own(tiny):
    cam_model = wrap(tiny)
    before = cam_model.maps(X)
    twin = copy.deepcopy(cam_model)
    nn.init.zeros_(twin.model.fc.weight)
    assert not twin.maps(X).any()
    assert torch.equal(cam_model.maps(X), before)
    assert list(twin.state_dict()) == list(tiny.state_dict())


# One forward, class weights


@pytest.mark.parametrize("linearised", [False, True])
def test_all_classes_from_one_forward(tiny, linearised):
    cam_model = wrap(hidden_head(tiny) if linearised else tiny)
    cam_model.locate(X)
    calls = []
    tiny.conv.register_forward_hook(lambda *args: calls.append(1))
    maps = cam_model.maps(X)
    assert maps.shape == (2, 3, 4, 5) and len(calls) == 1
    found = cam_model.activations(X)
    found.maps(), found.maps(1), found.weights(2)
    assert len(calls) == 2
    for k in range(3):
        torch.testing.assert_close(cam_model.maps(X, k), maps[:, [k]])


def test_class_weights_are_the_parameter(tiny):
    cam_model = wrap(tiny)
    assert cam_model.class_weights.data_ptr() == tiny.fc.weight.data_ptr()
    assert torch.equal(cam_model.class_weights, tiny.fc.weight)
    cam_model.class_weights.square().sum().backward()
    torch.testing.assert_close(tiny.fc.weight.grad, 2 * tiny.fc.weight.detach())


def test_a_linearised_head_has_no_class_weights(tiny):
    cam_model = wrap(hidden_head(tiny))
    with pytest.raises(ModelError, match=r"Decomposition\(linearised.*has no fixed class weights.*maps\(x, targets\)"):
        cam_model.class_weights


def test_decomposition_of_a_model_that_takes_other_inputs():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
    cam_model = wrap(model)
    words = r"Sequential cannot be run on a random input of shape \(1, 1, 224, 224\).*Show it one of its own"
    with pytest.raises(ModelError, match=words):
        cam_model.decomposition
    assert not cam_model.locate(torch.randn(1, 1, 12, 12)).exact
    x = torch.randn(2, 1, 12, 12)
    want = torch.einsum("kchw,bchw->bkhw", model[3].weight.view(3, 4, 10, 10), model[1](model[0](x))) * 100
    torch.testing.assert_close(cam_model.maps(x), want, atol=1e-4, rtol=1e-4)


# Heads that change after wrapping


def test_a_new_linear_head_is_noticed(tiny):
    cam_model = wrap(tiny)
    cam_model.maps(X)
    tiny.fc = nn.Linear(4, 5)
    want = torch.einsum("kc,bchw->bkhw", tiny.fc.weight, cam_model.features(X))
    torch.testing.assert_close(cam_model.maps(X), want, atol=1e-6, rtol=1e-5)
    assert cam_model.decomposition.exact and cam_model.decomposition.head == "avg pooling + Linear(4, 5)"
    assert cam_model.class_weights.data_ptr() == tiny.fc.weight.data_ptr()


@pytest.mark.parametrize("training", [False, True])
def test_a_head_with_dropout_is_noticed(tiny, training):
    cam_model = wrap(tiny)
    cam_model.maps(X)
    tiny.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 5))
    tiny.train(training)
    assert cam_model.class_weights.data_ptr() == tiny.fc[1].weight.data_ptr()
    want = torch.einsum("kc,bchw->bkhw", tiny.fc[1].weight, cam_model.features(X))
    torch.testing.assert_close(cam_model.maps(X), want, atol=1e-6, rtol=1e-5)
    assert cam_model.decomposition.exact


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_hidden_layer_is_noticed(tiny, training, grad):
    cam_model = wrap(tiny)
    cam_model.maps(X)
    hidden_head(tiny).train(training)
    with torch.set_grad_enabled(grad):
        maps = cam_model.maps(X)
    torch.testing.assert_close(maps, wrap(tiny, spec=FeatureSpec("relu")).maps(X), atol=1e-6, rtol=1e-5)
    assert not cam_model.decomposition.exact
    with pytest.raises(ModelError, match="no fixed class weights"):
        cam_model.class_weights


def test_a_layer_that_is_gone(tiny):
    cam_model = wrap(tiny, spec=FeatureSpec("conv"))
    cam_model.maps(X)
    tiny.conv, tiny.body = nn.Identity(), tiny.conv
    cam_model._located = replace(cam_model._located, spec=FeatureSpec("missing"))
    with pytest.raises(ModelError, match="TinyNet has no layer 'missing'"):
        cam_model.maps(X)


# Targets


@pytest.mark.parametrize(
    ("targets", "indices"),
    [
        (None, [[0, 1, 2], [0, 1, 2]]),
        (1, [[1], [1]]),
        ([2, 0], [[2], [0]]),
        ((2, 0), [[2], [0]]),
        (torch.tensor([2, 0]), [[2], [0]]),
        (torch.tensor([2, 0], dtype=torch.uint8), [[2], [0]]),
        ([[0, 1], [2, 2]], [[0, 1], [2, 2]]),
        (torch.tensor(2), [[2], [2]]),
    ],
)
def test_targets(tiny, targets, indices):
    assert target_indices(targets, 2, 3).tolist() == indices
    every = wrap(tiny).maps(X)
    for model in (tiny, hidden_head(tiny)):
        every = wrap(model).maps(X)
        want = torch.stack([one[rows] for one, rows in zip(every, indices, strict=True)])
        torch.testing.assert_close(wrap(model).maps(X, targets), want)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (3, "class index 3 is out of range: the model has 3 classes, 0 to 2"),
        (-1, "class index -1 is out of range"),
        ([0, 5], "class index 5 is out of range"),
        (
            [0, 1, 2],
            "targets of shape (3,) do not go with 2 images; pass one index, one per image (2,), or several",
        ),
        ([[0, 1, 2]], "targets of shape (1, 3) do not go with 2 images"),
        ([[], []], "targets of shape (2, 0) do not go with 2 images"),
        ([], "targets of shape (0,) do not go with 2 images"),
        ([[[0]], [[1]]], "targets of shape (2, 1, 1) do not go with 2 images"),
        (1.0, "targets must be whole numbers, got torch.float32; pass class indices"),
        (torch.tensor([True, False]), "targets must be whole numbers, got torch.bool"),
        ("tabby", "targets must be whole numbers, got 'tabby'"),
        ([[0], [1, 2]], "targets must be whole numbers, got [[0], [1, 2]]"),
    ],
)
def test_wrong_targets(tiny, targets, words):
    for model in (tiny, hidden_head(tiny)):
        with pytest.raises(TargetError) as caught:
            wrap(model).maps(X, targets)
        assert words in str(caught.value)


# Gradients


@pytest.mark.parametrize("linearised", [False, True])
def test_gradients_of_maps_are_right(make_tiny, linearised):
    """Finite differences in float64, through backbone and head parameters and the image."""
    model = make_tiny().double()
    model.relu = nn.Softplus()
    if linearised:
        hidden_head(model).double()
    cam_model = wrap(model)
    x = X[:1, :, :8, :8].double().requires_grad_()
    cam_model.locate(x.detach())
    assert cam_model.decomposition.exact is not linearised
    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cam_model

        def forward(self, x):
            return self.inner.maps(x, [[0, 2]])

    def maps(x, *values):
        state = {f"inner.model.{n}": v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(Maps(), state, (x,))

    assert torch.autograd.gradcheck(maps, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("linearised", [False, True])
def test_gradients_reach_backbone_and_class_weights(tiny, linearised):
    model = hidden_head(tiny) if linearised else tiny
    wrap(model).maps(X, 1).square().sum().backward()
    assert model.conv.weight.grad.abs().sum() > 0
    head = model.fc[2] if linearised else model.fc
    per_class = head.weight.grad.abs().sum(1)
    assert per_class[1] > 0 and per_class[0] == per_class[2] == 0


@pytest.mark.parametrize("linearised", [False, True])
def test_nothing_has_a_graph_under_no_grad(tiny, linearised):
    cam_model = wrap(hidden_head(tiny) if linearised else tiny)
    with torch.no_grad():
        for _ in range(2):  # before and after the head is known
            found = cam_model.activations(X)
            for tensor in (found.logits, found.features, found.maps(), found.weights(), cam_model.features(X)):
                assert not tensor.requires_grad or tensor is tiny.fc.weight or tensor._base is tiny.fc.weight
            found.logits.numpy(), found.features.numpy(), found.maps().numpy()


# The caller's model


class Raises(nn.Module):
    def forward(self, x):
        raise ValueError("this forward fails")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("grads", [False, True])
def test_the_model_is_left_as_it_was(make_tiny, fails, grads):
    model = make_tiny()
    model.relu = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
    model.train()
    model.relu[0].eval()
    if grads:
        model(X).sum().backward()
    if fails:
        model.pool = Raises()
    calls = []
    model.conv.register_forward_hook(lambda *args: calls.append("mine"))
    state = {name: (id(v), v.clone()) for name, v in [*model.named_parameters(), *model.named_buffers()]}
    flags = [m.training for m in model.modules()]
    grad = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
    hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()]
    attributes = [set(m.__dict__) for m in model.modules()]
    if fails:
        with pytest.raises(ValueError, match="this forward fails"):
            wrap(model).locate(X)
    else:
        wrap(model).locate(X)
    assert calls
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert id(value) == state[name][0] and torch.equal(value, state[name][1]), name
    assert [m.training for m in model.modules()] == flags
    assert [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert [set(m.__dict__) for m in model.modules()] == attributes
    for p, before in zip(model.parameters(), grad, strict=True):
        assert (p.grad is None) if before is None else torch.equal(p.grad, before)


def test_train_mode_is_the_models_own(make_tiny):
    """Maps of a model in train mode are of that forward: batch statistics, updated once, and dropout."""
    model = make_tiny()
    model.relu = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    model.train()
    cam_model = wrap(model)
    maps = cam_model.maps(X)
    assert model.training and model.relu[0].num_batches_tracked == 1
    f = model.relu(model.conv(X))
    torch.testing.assert_close(maps, torch.einsum("kc,bchw->bkhw", model.fc.weight, f), atol=1e-6, rtol=1e-5)
    assert cam_model.decomposition.exact  # checked in eval mode


@pytest.mark.parametrize("linearised", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_memory_does_not_grow(tiny, linearised, grad):
    cam_model = wrap(hidden_head(tiny) if linearised else tiny)

    def once():
        with torch.set_grad_enabled(grad):
            return cam_model.maps(X)

    once()
    gc.collect()
    gc.disable()  # reference counts alone must free it all
    try:
        kept = [weakref.ref(once()) for _ in range(20)]
        before = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        kept += [weakref.ref(once()) for _ in range(20)]
        after = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    finally:
        gc.enable()
    assert after == before and not any(ref() is not None for ref in kept)


class Dict(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return {"hidden": x, "logits": self.inner(x)}
