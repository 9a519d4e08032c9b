"""`adl`: what is dropped where, and that nothing is left of it."""

import pytest
import torch
from torch import nn

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError
from camtools.heads import ADL, GAP, replace_head
from camtools_recipes.adl import AdlConfig, AdlRecipe, dropping


@pytest.fixture
def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SceneNet(widths=(4, 4, 8, 8)).eval()


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_the_layer_that_is_f_loses_its_regions_and_the_hooks_come_off(small):
    headed = replace_head(small, GAP()).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = headed(x)
    with dropping(headed, ["feature_map"], Zero()):
        torch.testing.assert_close(headed(x), headed.classifier.bias.expand(2, -1))
    with dropping(headed, [f"body.{headed.origin.spec.layer}"], Zero()):  # before the hook that captures F
        torch.testing.assert_close(headed.features(x), torch.zeros_like(headed.features(x)))
    with pytest.raises(KeyError), dropping(headed, ["body.stem"], Zero()):
        raise KeyError
    torch.testing.assert_close(headed(x), whole, rtol=0, atol=0)


def test_the_loss_is_that_of_what_is_left(small, monkeypatch):
    recipe = AdlRecipe(AdlConfig(drop_rate=1.0, gamma=0.5))
    headed = replace_head(small, GAP()).train()
    x, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2])

    class Told:
        inner = model = headed

    from camtools.training import Batch

    found = recipe.loss(Told, Batch(x, labels, torch.arange(3)))["loss"]
    left = ADL(1.0, 0.5)(headed.features(x))
    expected = nn.functional.cross_entropy(headed.logits_of(left), labels)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, nn.functional.cross_entropy(headed(x), labels))


def test_a_run_and_refusals(small):
    run = {"epochs": 1, "batch_size": 6, "progress": False, "device": "cpu"}
    result = camtools.finetune("adl", small, Scenes("train", 12, size=64), layers=("stem", "blocks.0"), **run)
    assert not [m for m in result.model.modules() if m._forward_hooks and m is not result.model.body.blocks]
    with pytest.raises(InputError, match=r"has no such layer"):
        camtools.finetune("adl", small, Scenes("train", 12, size=64), layers=("stom",), **run)
    with pytest.raises(InputError, match=r"compile=True: adl looks into the forward"):
        camtools.finetune("adl", small, Scenes("train", 12, size=64), compile=True, **run)
