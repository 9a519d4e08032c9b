"""Calls from several threads on one model queue: results are those of serial calls, and the model is as it was."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch

import camtools
from camtools.model.guard import lock_of

THREADS = 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=7)
    for number, module in enumerate(net.modules()):
        module.training = number % 3 > 0  # a mixture, so that a mode that leaks shows
    return net


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 96 + 32 * (i % 2), 96, generator=generator) for i in range(8)]


def trace_of(model):
    """What a call could leave behind: modes, hooks, gradients, buffers."""
    return [
        (
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            [parameter.grad is None for parameter in module.parameters(recurse=False)],
            [buffer.double().sum().item() for buffer in module.buffers(recurse=False)],
        )
        for module in model.modules()
    ]


def same(first, second):
    return first.label == second.label and torch.equal(first.map, second.map) and torch.equal(first.boxes, second.boxes)


@pytest.mark.parametrize("calls", [24, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("preset", ["cam", "best"])
def test_one_explainer_for_all_threads(model, images, preset, calls):
    explainer = camtools.Explainer(model, preset)
    serial = [explainer(image) for image in images]
    before = trace_of(model)
    with ThreadPoolExecutor(THREADS) as pool:
        threaded = list(pool.map(lambda i: explainer(images[i % len(images)]), range(calls)))
    assert all(same(explanation, serial[i % len(images)]) for i, explanation in enumerate(threaded))
    assert trace_of(model) == before


@pytest.mark.parametrize("calls", [24, pytest.param(500, marks=pytest.mark.slow)])
def test_an_explainer_per_thread_on_one_model(model, images, calls):
    presets = ["cam", "fast", "best", "rcam"]
    serial = {preset: [camtools.explain(model, image, pipeline=preset) for image in images] for preset in presets}
    before = trace_of(model)

    def work(i):
        preset = presets[i % len(presets)]
        return preset, i % len(images), camtools.explain(model, images[i % len(images)], pipeline=preset)

    with ThreadPoolExecutor(THREADS) as pool:
        for preset, number, explanation in pool.map(work, range(calls)):
            assert same(explanation, serial[preset][number]), (preset, number)
    assert trace_of(model) == before


def test_a_segmenter_and_a_wrapped_model_beside_an_explainer(model, images):
    explainer, segmenter = camtools.Explainer(model), camtools.Segmenter(model, "cam", min_score=0.1)
    cam_model = camtools.wrap(model)
    x = torch.stack(images[::2])
    work = [
        lambda: explainer(images[0]).map,
        lambda: segmenter(images[0]).mask,
        lambda: explainer.engine.forward(x).logits,
        lambda: cam_model.locate(x).channels,
    ]
    serial = [call() for call in work]
    before = trace_of(model)
    with ThreadPoolExecutor(THREADS) as pool:
        threaded = list(pool.map(lambda i: work[i % len(work)](), range(40)))
    for i, result in enumerate(threaded):
        expected = serial[i % len(work)]
        assert torch.equal(result, expected) if isinstance(expected, torch.Tensor) else result == expected
    assert trace_of(model) == before


def test_hooks_look_away_from_the_callers_own_threads(tiny):
    """The caller's forward in another thread, while the model is hooked, neither disturbs the maps nor is disturbed."""
    x, other = torch.randn(1, 3, 16, 16), torch.randn(5, 3, 16, 16)
    expected = camtools.wrap(tiny).maps(x)
    own = tiny(other)
    seen = []

    def meanwhile(module, args):
        if len(args[0]) == 1:
            thread = threading.Thread(target=lambda: seen.append(tiny(other)))
            thread.start()
            thread.join(timeout=60)

    handle = tiny.fc.register_forward_pre_hook(meanwhile)
    maps = camtools.wrap(tiny).maps(x)
    handle.remove()
    assert torch.equal(maps, expected) and seen and all(torch.equal(logits, own) for logits in seen)


def test_different_models_do_not_wait_for_each_other(make_tiny):
    first, second = make_tiny(), make_tiny()
    assert lock_of(first) is lock_of(first) and lock_of(first) is not lock_of(second)
    with lock_of(first), ThreadPoolExecutor(1) as pool:
        x = torch.zeros(1, 3, 16, 16)
        assert pool.submit(lambda: camtools.wrap(second).maps(x).shape).result(timeout=60) == (1, 3, 4, 4)


def test_the_compilers_stance_is_given_back_when_the_last_call_ends(make_tiny):
    from torch._dynamo import eval_frame

    before = eval_frame._stance.stance
    models = [make_tiny() for _ in range(THREADS)]
    x = torch.zeros(1, 3, 16, 16)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda i: camtools.wrap(models[i % THREADS]).maps(x), range(60)))
    assert eval_frame._stance.stance == before
