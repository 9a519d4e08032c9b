"""WildcatMaps: the four readings of two maps per class, by hand."""

import pytest
import torch

from camtools.errors import PipelineError
from camtools.heads import ExCAM, Wildcat
from camtools.steps import State, WildcatMaps

WEIGHT = torch.tensor([[[0.0], [0.0]], [[1.0], [-2.0]]])  # 2 classes, 2 maps, 1 channel
BIAS = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
STATE = State(features=torch.tensor([[[[3.0, 0.5, -1.0]]]]), labels=torch.tensor([[1]]))
# maps of class 1: (3, .5, -1) and (-5, 0, 3)


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("mean", [-1.0, 0.25, 1.0]),
        ("first", [3.0, 0.5, -1.0]),
        ("max", [3.0, 0.5, 3.0]),
        ("masked", [1.5, 0.25, 0.0]),  # the second keeps where neither is positive: nowhere
    ],
)
def test_readings(read, expected):
    maps = WildcatMaps(read, WEIGHT, BIAS)(STATE).maps
    torch.testing.assert_close(maps, torch.tensor([[[expected]]]))


def test_the_mean_is_the_heads_own_map_and_masked_is_what_it_pools_in_training():
    torch.manual_seed(0)
    features, labels = torch.randn(2, 5, 4, 4), torch.tensor([[2, 0], [1, 1]])
    head = ExCAM(5, 3, M=4, delta=0.4)
    model = torch.nn.Module()
    model.head = head
    state = State(features=features, labels=labels)
    rows = torch.arange(2)[:, None]
    mean = head.class_pool(head.conv(features))[rows, labels]
    torch.testing.assert_close(WildcatMaps().fitted(model)(state).maps, mean.detach())
    dropped = head.class_pool(head.train().dropout(head.conv(features)))[rows, labels]
    torch.testing.assert_close(WildcatMaps("masked", delta=0.4).fitted(model)(state).maps, dropped.detach())


def test_without_weights_it_says_what_it_needs():
    with pytest.raises(PipelineError, match=r"WildcatMaps\(read='max'\) has no weights yet: call its fitted\(model\)"):
        WildcatMaps("max")(STATE)


def test_refusals():
    with pytest.raises(PipelineError, match=r"read='last'.*'mean', 'first', 'max', 'masked'"):
        WildcatMaps("last")
    with pytest.raises(PipelineError, match=r"weight is \(2, 2\) and bias None"):
        WildcatMaps(weight=torch.zeros(2, 2))
    with pytest.raises(PipelineError, match=r"does not fit features of 1 channels and classes up to 5"):
        WildcatMaps(weight=WEIGHT)(STATE.replace(labels=torch.tensor([[5]])))
    with pytest.raises(PipelineError, match=r"Linear has no head with several maps"):
        WildcatMaps().fitted(torch.nn.Linear(1, 1))
    assert repr(WildcatMaps("max", WEIGHT)) == "WildcatMaps(read='max', weight=(2, 2, 1))"
    fitted = WildcatMaps("first").fitted(torch.nn.ModuleDict({"head": Wildcat(3, 2, M=2)}))
    assert (
        fitted.read == "first" and fitted.weight.shape == (2, 2, 3) and fitted.fitted(torch.nn.Linear(1, 1)) is fitted
    )
