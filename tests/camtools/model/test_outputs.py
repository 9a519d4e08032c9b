import math
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch

from camtools.classes.targets import top_scores
from camtools.errors import ModelError
from camtools.model.outputs import (
    AmbiguousOutputError,
    Reading,
    Tap,
    class_scores,
    find_reading,
    probabilities,
    replace_tensor,
    tensors_in,
)

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [9.0, 7.0, 8.0]])
OTHER = torch.zeros(2, 5)
Aux = namedtuple("Aux", ["logits", "aux_logits2", "aux_logits1"])
Plain = namedtuple("Plain", ["scores", "hidden"])


@pytest.mark.parametrize(
    ("output", "path"),
    [
        (LOGITS, ()),
        ({"loss": OTHER, "logits": LOGITS}, ("logits",)),
        (OrderedDict(hidden=OTHER, logits=LOGITS), ("logits",)),
        (SimpleNamespace(logits=LOGITS, hidden=OTHER), ("logits",)),
        (Aux(LOGITS, OTHER, None), ("logits",)),
        ([LOGITS], (0,)),
        ((None, LOGITS), (1,)),
        ({"features": torch.zeros(2, 8, 7, 7), "out": LOGITS}, ("out",)),
        ((torch.zeros(2, 5), {"heads": [LOGITS]}), (1, "heads", 0)),
    ],
    ids=["tensor", "dict", "ordered dict", "object", "aux", "list", "the only one", "the only rows", "by count"],
)
def test_find_reading(output, path):
    reading = find_reading(output, 2, Tap(), classes=3)
    assert reading == Reading(path) and reading.activation == "softmax"
    assert reading.logits(output, 2, None) is LOGITS


def test_without_evidence_it_is_ambiguous():
    for output in ((LOGITS, OTHER), Plain(LOGITS, OTHER)):
        with pytest.raises(AmbiguousOutputError, match=r"2 tensors could be the class scores: .* Say which: output="):
            find_reading(output, 2, Tap())


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, "the model returned NoneType without logits; expected class scores of shape (batch, classes)"),
        ({"loss": torch.zeros(())}, "the model returned dict without logits"),
        ((), "the model returned tuple without logits"),
        (torch.zeros(2, 8, 7, 7), "the model returned a torch.float32 tensor of shape (2, 8, 7, 7)"),
        (torch.zeros(3), "the model returned a torch.float32 tensor of shape (3,)"),
        (torch.zeros(3, 4), "shape (3, 4); expected class scores of shape (batch, classes) with batch 2"),
        (torch.zeros(2, 4, dtype=torch.long), "the model returned a torch.int64 tensor of shape (2, 4)"),
        (torch.zeros(2, 0), "the model has 0 classes"),
    ],
)
def test_what_is_no_class_scores(output, words):
    with pytest.raises(ModelError) as caught:
        find_reading(output, 2, Tap())
    assert words in str(caught.value)
    assert "Give camtools a classifier (timm: num_classes > 0), or say where its logits are" in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "want"),
    [
        (LOGITS, LOGITS),
        (LOGITS[:, 0], LOGITS[:, :1]),
    ],
)
def test_squeezed_scores(tensor, want):
    assert torch.equal(class_scores(tensor, 2), want)
    assert torch.equal(class_scores(LOGITS[0], 1), LOGITS[:1])


def test_a_tap_sees_every_spelling_and_lets_go():
    z = torch.randn(2, 3)
    for ending, function in (
        ("softmax", torch.nn.Softmax(1)),
        ("softmax", lambda z: torch.special.softmax(z, 1)),
        ("softmax", torch.nn.LogSoftmax(1)),
        ("sigmoid", torch.nn.Sigmoid()),
        ("sigmoid", torch.special.expit),
        ("sigmoid", lambda z: z.clone().sigmoid_()),
        ("sigmoid", lambda z: z.sigmoid().view(3, 2).view(2, 3)),
    ):
        with Tap() as tap:
            scores = function(z)
        found = tap.behind(scores)
        assert found is not None and found[0] == ending and torch.equal(found[1], z)
        assert tap.behind(z) is None
        tap.clear()
        assert tap.behind(scores) is None


@pytest.mark.parametrize(
    ("activation", "want"),
    [("softmax", [0.25, 0.75]), ("sigmoid", [0.5, 0.75]), ("none", [0.0, math.log(3)])],
)
def test_probabilities(activation, want):
    assert probabilities(torch.tensor([[0.0, math.log(3)]]), activation)[0].tolist() == pytest.approx(want)
    one = 0.5 if activation != "none" else 0.0
    assert probabilities(torch.tensor([[0.0]]), activation).tolist() == [[one]]


def test_tensors_in_order_of_nested_containers():
    a, b, c, d = (torch.zeros(1) for _ in range(4))
    found = list(tensors_in(((a, "text", None), {"x": [b, 3], "y": Plain(c, {"z": d})})))
    assert [id(t) for t in found] == [id(t) for t in (a, b, c, d)]


def test_replace_tensor_rebuilds_the_containers_on_the_way():
    old, new, other = torch.zeros(1), torch.ones(1), torch.zeros(1)
    value = (other, {"x": [old, "text"], "y": Plain(other, old)}, old)
    first, middle, last = replace_tensor(value, old, new)
    assert first is other and last is new
    assert middle["x"][0] is new and middle["x"][1] == "text"
    assert type(middle["y"]) is Plain and middle["y"].scores is other and middle["y"].hidden is new
    assert value[2] is old and value[1]["x"][0] is old  # the caller's are as they were


def test_top_scores():
    assert top_scores(LOGITS, 2).tolist() == [[1, 2], [0, 2]]
    assert top_scores(LOGITS.bfloat16().requires_grad_(), 1).tolist() == [[1], [0]]
