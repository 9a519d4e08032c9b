from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch

from camtools.classes.targets import top_scores
from camtools.errors import ModelError
from camtools.model.outputs import class_scores, replace_tensor, tensors_in

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [9.0, 7.0, 8.0]])
OTHER = torch.zeros(2, 5)
Aux = namedtuple("Aux", ["logits", "aux_logits2", "aux_logits1"])
Plain = namedtuple("Plain", ["scores", "hidden"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"loss": OTHER, "logits": LOGITS},
        OrderedDict(hidden=OTHER, logits=LOGITS),
        SimpleNamespace(logits=LOGITS, hidden=OTHER),
        Aux(LOGITS, OTHER, None),
        Plain(LOGITS, OTHER),
        (LOGITS, OTHER),
        [LOGITS],
    ],
    ids=["tensor", "dict", "ordered dict", "object", "aux", "namedtuple", "tuple", "list"],
)
def test_class_scores(output):
    assert class_scores(output) is LOGITS
    assert class_scores(output, batch_size=2) is LOGITS


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, "the model returned NoneType without logits; expected class scores of shape (batch, classes)"),
        ({"out": LOGITS}, "the model returned dict without logits"),
        ((), "the model returned tuple without logits"),
        ((None, LOGITS), "the model returned tuple without logits"),
        (torch.zeros(2, 8, 7, 7), "the model returned a torch.float32 tensor of shape (2, 8, 7, 7)"),
        (torch.zeros(3), "the model returned a torch.float32 tensor of shape (3,)"),
        (torch.zeros(3, 4), "shape (3, 4); expected class scores of shape (batch, classes) with batch 2"),
        (torch.zeros(2, 4, dtype=torch.long), "the model returned a torch.int64 tensor of shape (2, 4)"),
        (torch.zeros(2, 0), "the model has 0 classes"),
    ],
)
def test_what_is_no_class_scores(output, words):
    with pytest.raises(ModelError) as caught:
        class_scores(output, batch_size=2)
    assert words in str(caught.value)
    assert "Give camtools a classifier (timm: num_classes > 0), or wrap the model so that" in str(caught.value)


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
