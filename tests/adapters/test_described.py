import pytest
import torch
from torch import nn

import camtools
from camtools import ModelError, Preprocess, wrap
from camtools.model import FeatureSpec
from camtools.model.adapter import find_adapter
from camtools_adapters.described import DescribedAdapter

X = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class Described(nn.Module):
    preprocess = Preprocess(input_size=(16, 24), resize=None)
    class_names = ["a", "b", "c"]

    def __init__(self, spec):
        super().__init__()
        self.conv, self.fc, self.spec = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3), spec

    def feature_spec(self):
        return self.spec

    def forward(self, x):
        f = self.conv(x)
        if isinstance(self.spec, FeatureSpec) and self.spec.map_pool is not None:
            return self.spec.map_pool(torch.einsum("kc,bchw->bkhw", self.fc.weight, f) + self.fc.bias[:, None, None])
        return self.fc(median(f))


def median(f):
    return f.flatten(2).median(2).values


def smallest(maps):
    return maps.amin((2, 3))


def test_it_is_asked_first():
    model = Described(FeatureSpec("conv", classifier="fc", pool=median))
    adapter = find_adapter(model)
    assert isinstance(adapter, DescribedAdapter) and not adapter.matches(nn.Linear(1, 1))
    assert adapter.data_config(model) is model.preprocess and adapter.class_names(model) == ["a", "b", "c"]
    assert wrap(model).example().shape == (1, 3, 16, 24)


def test_a_pooling_of_ones_own_is_exact():
    model = Described(FeatureSpec("conv", classifier="fc", pool=median)).eval()
    found = wrap(model).activations(X)
    assert found.decomposition.exact and found.decomposition.head == "median pooling + Linear(8, 3)"
    torch.testing.assert_close(found.maps(), torch.einsum("kc,bchw->bkhw", model.fc.weight, model.conv(X)))


def test_a_pooling_of_maps_is_exact():
    model = Described(FeatureSpec("conv", classifier="fc", map_pool=smallest)).eval()
    found = wrap(model).decomposition
    assert found.exact and found.head == "Linear(8, 3) at every position + smallest"


def test_a_false_claim_costs_the_exact_form():
    class Other(Described):
        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)))

    for spec in (
        FeatureSpec("conv", classifier="fc", pool=median),
        FeatureSpec("conv", classifier="fc", map_pool=smallest),
    ):
        found = wrap(Other(spec).eval()).decomposition
        assert not found.exact and found.residual > 1e-3


def test_something_else_is_refused():
    with pytest.raises(
        ModelError, match=r"Described.feature_spec\(\) returned 'conv': expected a camtools.model.FeatureSpec"
    ):
        wrap(Described("conv")).decomposition


def test_names_of_another_kind_do_not_count():
    model = Described(FeatureSpec("conv"))
    model.class_names = "abc"
    assert DescribedAdapter().class_names(model) is None
    assert camtools.model.adapter.find_adapter(nn.Linear(1, 1)).name == "generic"
