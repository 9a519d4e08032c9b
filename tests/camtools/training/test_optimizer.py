"""Parameter groups and the schedule, by hand."""

import re

import pytest
import torch
from torch import nn

from camtools.errors import InputError
from camtools.training import TrainConfig
from camtools.training.optimizer import build_optimizer, head_parameters, rate_factor


def test_the_head_is_the_classifier(net):
    found = head_parameters(net)
    assert {id(p) for p in found} == {id(net.fc.weight), id(net.fc.bias)}


def test_groups_and_their_rates(net):
    config = TrainConfig(lr=0.02, head_lr_factor=10, momentum=0.8, weight_decay=0.3)
    net.conv.bias.requires_grad_(False)
    optimizer = build_optimizer(net, head_parameters(net), config)
    slow, fast = optimizer.param_groups
    assert {id(p) for p in slow["params"]} == {id(net.conv.weight), id(net.bn.weight), id(net.bn.bias)}
    assert {id(p) for p in fast["params"]} == {id(net.fc.weight), id(net.fc.bias)}
    assert (slow["lr"], fast["lr"], slow["momentum"], slow["weight_decay"]) == (0.02, 0.2, 0.8, 0.3)
    assert isinstance(optimizer, torch.optim.SGD) and slow["nesterov"]
    assert not build_optimizer(net, [], TrainConfig(momentum=0.0)).param_groups[0]["nesterov"]
    assert isinstance(build_optimizer(net, [], TrainConfig(optimizer="adamw")), torch.optim.AdamW)


def test_layers_with_a_rate_of_their_own(net):
    config = TrainConfig(lr=0.02, head_lr_factor=10, fast_layers=(r"^bn\.=5", "bias=0.5"))
    groups = build_optimizer(net, head_parameters(net), config).param_groups
    rates = {id(parameter): group["base"] for group in groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in net.named_parameters()}
    expected = {"conv.weight": 0.02, "conv.bias": 0.01, "bn.weight": 0.1, "bn.bias": 0.1, "fc.weight": 0.2}
    assert found == pytest.approx(expected | {"fc.bias": 0.01})


@pytest.mark.parametrize(
    ("entry", "message"),
    [("layer4", "'layer4': expected REGEX=FACTOR"), ("=3", "'=3': expected"), ("a=-1", "'a=-1': expected"),
     ("(=2", "expected REGEX=FACTOR, such as"), ("a=much", "could not convert")],
)  # fmt: skip
def test_entries_that_are_no_rate_are_refused(entry, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TrainConfig(fast_layers=(entry,))


def test_expressions_that_fit_nothing_are_refused(net):
    with pytest.raises(InputError, match=r"'layer4' is in no parameter's name, such as conv\.weight"):
        build_optimizer(net, [], TrainConfig(fast_layers=("layer4=10",)))


def test_nothing_to_train_is_refused():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(InputError, match="Linear has no parameter that needs a gradient"):
        build_optimizer(model, [], TrainConfig())


def test_cosine_falls_from_one_to_zero():
    config = TrainConfig(epochs=4)
    values = [rate_factor(step, 10, config) for step in range(40)]
    assert values[0] == 1 and values[20] == pytest.approx(0.5) and 0 < values[39] < 0.01
    assert values == sorted(values, reverse=True)


def test_warmup_rises_then_the_cosine_begins():
    config = TrainConfig(epochs=3, warmup=1)
    values = [rate_factor(step, 4, config) for step in range(12)]
    assert values[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert values[4] == 1 and values[8] == pytest.approx(0.5)


def test_steps_and_constant():
    config = TrainConfig(epochs=6, schedule="step", step_epochs=2, step_gamma=0.1)
    assert [rate_factor(3 * e + 1, 3, config) for e in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert {rate_factor(s, 3, TrainConfig(schedule="constant")) for s in range(30)} == {1.0}
