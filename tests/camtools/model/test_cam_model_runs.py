"""The ways people run their models: containers of outputs, wrappers, compiled, frozen, half precision, grad modes."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import camtools
from camtools import ModelError, wrap
from camtools.model import FeatureSpec

X = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(3))
EXACT, LINEARISED = "exact", "linearised"


@pytest.fixture(params=[EXACT, LINEARISED])
def model(request, make_tiny):
    """A `TinyNet`, as it is or with a hidden layer."""
    found = make_tiny()
    if request.param == LINEARISED:
        found.fc = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    return found


@pytest.fixture
def want(model):
    """The model's maps, worked out without camtools."""
    f = model.relu(model.conv(X)).detach()
    if isinstance(model.fc, nn.Linear):
        return torch.einsum("kc,bchw->bkhw", model.fc.weight, f).detach()
    weights = [torch.autograd.functional.jacobian(model.fc, one.mean((1, 2))) for one in f]
    return torch.einsum("bkc,bchw->bkhw", torch.stack(weights), f)


def check(cam_model, want, x=X, **tolerances):
    """Compare twice: before and after the head is known."""
    tolerances = tolerances or {"atol": 1e-6, "rtol": 1e-4}
    for _ in range(2):
        torch.testing.assert_close(cam_model.maps(x).to(want), want, **tolerances)


# Outputs


class Output(nn.Module):
    def __init__(self, model, make):
        super().__init__()
        self.model = model
        self.make = make

    def forward(self, x):
        return self.make(self.model(x))


class Object:
    def __init__(self, logits):
        self.loss, self.logits = None, logits


@pytest.mark.parametrize(
    "make",
    [lambda y: {"loss": y.sum(), "logits": y}, Object, lambda y: (y, y.sum()), lambda y: [y]],
    ids=["dict", "object", "tuple", "list"],
)
def test_outputs_in_containers(model, want, make):
    cam_model = wrap(Output(model, make))
    check(cam_model, want)
    assert torch.equal(cam_model.activations(X).logits, model(X))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda y: {"loss": y.sum()}, "the model returned dict without logits"),
        (lambda y: y[:, :, None].repeat(1, 1, 2), r"a torch.float32 tensor of shape \(1, 3, 2\)"),
        (lambda y: y.sum(0), r"a torch.float32 tensor of shape \(3,\)"),
        (lambda y: y[:, :0], "the model has 0 classes"),
        (lambda y: y.argmax(1, keepdim=True), "a torch.int64 tensor"),
    ],
)
def test_outputs_without_class_scores(tiny, make, words):
    with pytest.raises(ModelError, match=f"{words}.*Give camtools a classifier"):
        wrap(Output(tiny, make)).maps(X)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads(name, training):
    """Aux logits come out in train mode only; maps are those of the main head."""
    model = getattr(torchvision.models, name)(weights=None, init_weights=False, num_classes=5, aux_logits=True)
    for m in model.modules():  # so that train and eval mode give the same
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
        elif isinstance(m, nn.Dropout):
            m.p = 0.0
    if name == "inception_v3":  # its own needs images of 299 x 299
        model.AuxLogits = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 5))
    model.train(training)
    x = torch.randn(2, 3, 128, 128)
    cam_model = wrap(model)
    with torch.no_grad():
        found = cam_model.activations(x)
        maps = found.maps()
        last = model.inception5b if name == "googlenet" else model.Mixed_7c
        seen = []
        last.register_forward_hook(lambda m, args, out: seen.append(out))
        output = model(x)
    assert isinstance(output, tuple) is training  # with the auxiliary scores
    logits = output.logits if training else output
    torch.testing.assert_close(maps, torch.einsum("kc,bchw->bkhw", model.fc.weight, seen[0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-4)
    assert cam_model.decomposition.exact


# Wrappers


def test_data_parallel(model, want):
    parallel = nn.DataParallel(model)
    cam_model = wrap(parallel)
    check(cam_model, want)
    assert torch.equal(cam_model(X), model(X))
    assert list(cam_model.state_dict()) == list(parallel.state_dict())


def counting_backend(calls):
    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    return backend


def test_torch_compile(model, want):
    calls = []
    cam_model = wrap(torch.compile(model, backend=counting_backend(calls)))
    check(cam_model, want)
    assert not calls  # maps come from the eager module
    torch.testing.assert_close(cam_model(X), model(X))
    assert calls  # plain calls go through the wrapper
    check(cam_model, want)


def test_compiled_in_place(model, want):
    calls = []
    model.compile(backend=counting_backend(calls))
    cam_model = wrap(model)
    check(cam_model, want)
    assert not calls
    cam_model(X)
    assert calls
    check(cam_model, want)


def test_a_compiled_part(model, want):
    calls = []
    model.conv = torch.compile(model.conv, backend=counting_backend(calls))
    check(wrap(model), want)
    assert not calls


# Grad modes and frozen parameters


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_grad_modes(model, want, mode, frozen):
    model.requires_grad_(not frozen)
    cam_model = wrap(model)
    with mode():
        check(cam_model, want)
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        cam_model.maps(X)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        check(cam_model, want, X.clone())  # an inference tensor in inference mode
    assert all(p.grad is None and p.requires_grad is not frozen for p in model.parameters())


def test_no_graph_of_the_backbone_without_gradients(model):
    cam_model = wrap(model)
    with torch.no_grad():
        for _ in range(2):  # before and after the head is known
            assert not cam_model.maps(X).requires_grad
            assert not cam_model.features(X).requires_grad
            assert not torch.is_grad_enabled()
    assert cam_model.features(X).requires_grad


def test_maps_made_under_inference_mode_can_be_used(model, want):
    with torch.inference_mode():
        maps = wrap(model).maps(X)
    torch.testing.assert_close(maps * 1, want, atol=1e-6, rtol=1e-4)


def test_parameters_made_under_inference_mode(model, want):
    with torch.inference_mode():
        for m in model.modules():
            for name, p in list(m._parameters.items()):
                m._parameters[name] = nn.Parameter(p.clone(), requires_grad=False)
    assert all(p.is_inference() for p in model.parameters())
    check(wrap(model), want)
    with torch.inference_mode():
        check(wrap(model), want)


def test_a_partly_frozen_model(model, want):
    model.conv.requires_grad_(False)
    cam_model = wrap(model)
    check(cam_model, want)
    cam_model.maps(X, 0).sum().backward()
    assert model.conv.weight.grad is None
    assert any(p.grad is not None for p in model.fc.parameters())


# Precision and memory layout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(model, want, dtype):
    cam_model = wrap(model.to(dtype))
    maps = cam_model.maps(X.to(dtype))
    assert maps.dtype is dtype
    check(cam_model, want, X.to(dtype), atol=0.03, rtol=0.05)
    assert cam_model.decomposition.exact is isinstance(model.fc, nn.Linear)


def test_double_precision(model, want):
    check(wrap(model.double()), want.double(), X.double())


def test_autocast(model, want):
    cam_model = wrap(model)
    with torch.autocast("cpu", torch.bfloat16):
        check(cam_model, want, atol=0.03, rtol=0.05)
    assert cam_model.decomposition.exact is isinstance(model.fc, nn.Linear)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_training_step_in_the_same_autocast_block(model, mode):
    """Autocast keeps casts of weights: those made without gradients must not be served to the training step."""
    with torch.autocast("cpu", torch.bfloat16):
        with mode():
            wrap(model).maps(X)
        model(X).float().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.conv.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_channels_last(model, want):
    check(wrap(model.to(memory_format=torch.channels_last)), want, X.to(memory_format=torch.channels_last))


def test_a_batch_is_its_images_one_at_a_time(model):
    cam_model = wrap(model)
    x = torch.randn(5, 3, 24, 16)
    one_at_a_time = torch.cat([cam_model.maps(one) for one in x.split(1)])
    torch.testing.assert_close(cam_model.maps(x), one_at_a_time, atol=1e-6, rtol=1e-5)
    targets = [[0, 1], [2, 1], [1, 1], [0, 2], [2, 2]]
    rows = torch.stack([maps[k] for maps, k in zip(one_at_a_time, targets, strict=True)])
    torch.testing.assert_close(cam_model.maps(x, targets), rows, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (12, 40), (64, 20), (224, 224)])
def test_any_size_after_any_other(model, size):
    cam_model = wrap(model)
    cam_model.maps(X)
    maps = cam_model.maps(torch.randn(1, 3, *size))
    assert maps.shape == (1, 3, size[0] // 4, size[1] // 4)
    assert cam_model.decomposition.grid == (size[0] // 4, size[1] // 4)


@pytest.mark.gpu
def test_cuda(model, want, cuda):
    cam_model = wrap(model.to(cuda))
    maps = cam_model.maps(X.to(cuda))
    assert maps.device.type == "cuda" and cam_model.example().device.type == "cuda"
    torch.backends.cudnn.allow_tf32 = False
    check(cam_model, want, X.to(cuda), atol=1e-4, rtol=1e-3)
    assert cam_model.maps(X.to(cuda), torch.tensor([0, 2], device=cuda)).shape == (2, 1, 4, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_autocast_and_half_precision(model, want, cuda, dtype):
    model.to(cuda)
    with torch.autocast("cuda", dtype):
        with torch.no_grad():
            check(wrap(model), want, X.to(cuda), atol=0.03, rtol=0.05)
        model(X.to(cuda)).float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    check(wrap(model.to(dtype)), want, X.to(cuda, dtype), atol=0.03, rtol=0.05)


@pytest.mark.gpu
def test_cuda_data_parallel_and_compile(model, want, cuda):
    torch.backends.cudnn.allow_tf32 = False
    x = X.to(cuda)
    model.to(cuda)
    check(wrap(nn.DataParallel(model)), want, x, atol=1e-4, rtol=1e-3)
    check(wrap(torch.compile(model, backend="eager")), want, x, atol=1e-4, rtol=1e-3)


def test_a_spec_of_ones_own(tiny):
    found = wrap(tiny, spec=FeatureSpec("conv")).activations(X)
    assert torch.equal(found.features, tiny.conv(X))


# Located once, whatever came first


@pytest.mark.parametrize(
    ("make", "small"),
    [
        (lambda: timm.create_model("test_resnet", num_classes=5), (3, 8, 8)),
        (lambda: torchvision.models.resnet18(num_classes=5), (3, 8, 8)),
        (lambda: torchvision.models.mobilenet_v2(num_classes=5), (3, 1, 64)),
    ],
    ids=["test_resnet", "resnet18", "mobilenet_v2"],
)
@pytest.mark.parametrize("preset", ["cam", "fast"])
def test_the_first_image_decides_nothing(make, small, preset):
    torch.manual_seed(0)
    model = make().eval()
    first, second = camtools.Explainer(model, preset), camtools.Explainer(model, preset)
    x = torch.randn(3, 128, 128)
    first(torch.randn(small))
    after, alone = first(x), second(x)
    assert after.layer == alone.layer and after.exact == alone.exact and torch.equal(after.map, alone.map)


class Unknown(nn.Module):
    """Takes one channel, so that no example of the usual kind can be run; the adapter has to look at what comes."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU()]
        self.blocks, self.fc = nn.Sequential(*layers), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.blocks(x).mean((2, 3)))


def test_a_small_first_input_is_looked_at_again_when_a_larger_one_comes():
    torch.manual_seed(0)
    model = Unknown().eval()
    x = torch.randn(1, 1, 32, 32)
    cam_model = wrap(model)
    cam_model.maps(torch.randn(1, 1, 4, 4))
    expected = wrap(model)
    assert torch.equal(cam_model.maps(x), expected.maps(x))
    assert cam_model.decomposition == expected.decomposition and cam_model.decomposition.layer == "blocks"
