"""`untouched`: whatever a forward does to a model, nothing of it is left."""

import pytest
import timm
import torch
from torch import nn

from camtools.model.guard import untouched


class Restless(nn.Module):
    """Changes in its forward everything a forward can change."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("later", None)
        self.cache = {"kept": torch.zeros(1)}
        self.log = ["before"]
        self.seen = {1}
        self.last = None

    def forward(self, x):
        self.calls += 1
        self.bn.running_mean = self.bn.running_mean + 1  # another tensor object
        self.bn.running_var.data.mul_(2)  # an edit that autograd's version counter does not see
        self.later = torch.ones(2)
        if "made" not in self._buffers:
            self.register_buffer("made", torch.ones(2))
        self.cache["new"] = x
        self.log.append("after")
        self.seen.add(2)
        self.last = x
        self.extra = x
        self.register_forward_hook(lambda *args: None)
        return self.bn(x)


def snapshot(model):
    """Everything of a model that must stay, values and identities."""
    modules = dict(model.named_modules())
    return {
        "training": {name: m.training for name, m in modules.items()},
        "hooks": {name: (list(m._forward_hooks), list(m._forward_pre_hooks)) for name, m in modules.items()},
        "attributes": {
            name: {k: id(v) for k, v in m.__dict__.items() if k != "training"} for name, m in modules.items()
        },
        "buffers": {name: (id(b), b.clone()) for name, b in model.named_buffers()},
        "buffer_names": {name: list(m._buffers) for name, m in modules.items()},
        "parameters": {name: (id(p), p.detach().clone(), id(p.grad)) for name, p in model.named_parameters()},
    }


def assert_same(before, after):
    for part in ("training", "hooks", "attributes", "buffer_names"):
        assert before[part] == after[part], part
    for part in ("buffers", "parameters"):
        assert before[part].keys() == after[part].keys()
        for name, old in before[part].items():
            new = after[part][name]
            assert old[0] == new[0], name
            assert torch.equal(old[1], new[1]), name
            assert old[2:] == new[2:], name


@pytest.mark.parametrize("fails", [False, True])
def test_everything_a_forward_changed_is_put_back(fails):
    model = Restless().train()
    before = snapshot(model)
    try:
        with untouched(model):
            model(torch.randn(2, 3, 4, 4))
            if fails:
                raise KeyError("the forward raised")
    except KeyError:
        assert fails
    assert_same(before, snapshot(model))
    assert list(model.cache) == ["kept"] and model.log == ["before"] and model.seen == {1} and model.last is None
    assert not hasattr(model, "extra") and not hasattr(model, "made") and model.later is None


def test_the_callers_own_containers_are_refilled_not_exchanged():
    model = Restless()
    cache, log = model.cache, model.log
    with untouched(model):
        model(torch.randn(2, 3, 4, 4))
        model.cache, model.log = {}, []
    assert model.cache is cache and model.log is log
    assert list(cache) == ["kept"] and log == ["before"]


def test_training_flags_may_be_mixed_and_are_all_eval_inside():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()), nn.ReLU())
    model.train()
    model[1][0].eval()  # frozen statistics, as detectors have
    model[2].eval()
    flags = [m.training for m in model.modules()]
    assert flags == [True, True, True, False, True, False]
    with untouched(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == flags


def test_train_and_eval_of_the_model_are_not_called():
    class Loud(nn.Module):
        def train(self, mode=True):
            raise AssertionError("train() has side effects here")

    model = Loud()
    with untouched(model):
        assert model.training is False
    assert model.training is True


def test_hooks_keep_their_number_and_order():
    calls = []
    model = nn.Sequential(nn.ReLU())
    handles = [model[0].register_forward_hook(lambda *args, n=n: calls.append(n)) for n in range(3)]
    with untouched(model):
        handles[1].remove()
        model[0].register_forward_hook(lambda *args: calls.append("stray"))
        model[0].register_forward_pre_hook(lambda *args: calls.append("stray"))
    model(torch.ones(1))
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("filled", [False, True])
def test_gradients_of_parameters_stay(tiny, filled):
    if filled:
        tiny(torch.randn(2, 3, 8, 8)).sum().backward()
    grads = {name: p.grad for name, p in tiny.named_parameters()}
    values = {name: g.clone() for name, g in grads.items() if g is not None}
    with untouched(tiny):
        for p in tiny.parameters():
            p.grad = torch.full_like(p, 9.0)
    for name, p in tiny.named_parameters():
        assert p.grad is grads[name]
        assert not filled or torch.equal(p.grad, values[name])


def test_buffers_made_under_inference_mode_are_put_back():
    with torch.inference_mode():
        model = nn.BatchNorm2d(3)
    with untouched(model), torch.inference_mode():
        model.running_mean.fill_(5)
    assert model.running_mean.tolist() == [0, 0, 0]


def test_unchanged_buffers_are_not_written():
    """A write would spoil the graph of a caller who is between forward and backward."""
    model = nn.BatchNorm2d(3)
    version = model.running_mean._version
    with untouched(model):
        model(torch.randn(2, 3, 4, 4))
    assert model.running_mean._version == version


@pytest.mark.parametrize("name", ["levit_128s", "efficientformer_l1"])
def test_attention_bias_caches_do_not_outlive_the_call(name):
    """These models fill a cache in eval mode and use it until train() is called, which the guard does not call."""
    model = timm.create_model(name)  # in train mode
    caches = {n: m.attention_bias_cache for n, m in model.named_modules() if hasattr(m, "attention_bias_cache")}
    assert caches and not any(caches.values())
    with untouched(model), torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
        assert any(m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache"))
    for n, cache in caches.items():
        assert model.get_submodule(n).attention_bias_cache is cache and not cache
