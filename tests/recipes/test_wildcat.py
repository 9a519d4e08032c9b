"""`wildcat`: its losses by hand, its head, how its maps are read, and runs on data of both kinds."""

import math

import pytest
import torch

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError, PipelineError
from camtools.steps.base import State
from camtools.steps.sigmoid import ScoreThreshold, Sigmoid
from camtools.steps.wildcat_maps import WildcatMaps
from camtools_recipes.wildcat import WildcatConfig, WildcatRecipe

OPTIONS = {"epochs": 1, "batch_size": 8, "input_size": 32, "progress": False, "device": "cpu"}


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SceneNet(widths=(4, 4, 8, 8)).eval()


class Told:
    """What a recipe asks of a trainer."""

    def __init__(self, shares):
        self.shares = shares


def test_losses_by_hand():
    recipe, logits = WildcatRecipe(), torch.tensor([[0.0, math.log(3)]])
    # sigmoid: 1/2 and 3/4; the first is true: (-log 1/2 - log 1/4) / 2
    found = recipe.losses_of(Told(True), logits, torch.tensor([[1.0, 0.0]]))
    assert found.keys() == {"loss"} and float(found["loss"]) == pytest.approx((math.log(2) + math.log(4)) / 2)
    # softmax: 1/4 and 3/4
    found = recipe.losses_of(Told(False), logits, torch.tensor([0]))
    assert float(found["loss"]) == pytest.approx(math.log(4)) and found["accuracy"] == 0
    # shares of single-label data, as CutMix makes them, stay with the softmax
    found = recipe.losses_of(Told(False), logits, torch.tensor([[0.5, 0.5]]))
    assert float(found["loss"]) == pytest.approx((math.log(4) - math.log(0.75)) / 2) and "accuracy" not in found


def test_head_and_rates(net):
    config = WildcatConfig(maps=3, k_max=0.5, k_min=0.25, alpha=0.1, halve=True)
    recipe = WildcatRecipe(config)
    built = recipe.build(net, None)
    pool = built.head.map_pool
    assert (built.head.M, pool.k_max, pool.k_min, pool.alpha, pool.halve) == (3, 0.5, 0.25, 0.1, True)
    assert built.head.conv.weight.shape == (24, 8, 1, 1)
    assert {id(p) for p in recipe.fast_parameters(built)} == {id(p) for p in built.head.parameters()}
    assert (
        WildcatRecipe().config.maps == 8 and WildcatRecipe().config.k_max == 0.2 and WildcatRecipe().config.alpha == 0.6
    )


def test_maps_are_read_as_scores_with_the_models_bias(net):
    recipe = WildcatRecipe(WildcatConfig(maps=2, cut=0.6))
    built = recipe.build(net, None).eval()
    with torch.no_grad():
        built.head.conv.bias.copy_(torch.arange(16.0))
    assert recipe.finished(built) is built
    assert recipe.pipeline[0].fitted(built).bias.tolist() == [[2.0 * k, 2 * k + 1] for k in range(8)]
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = built.features(x)
        maps = built.head.class_pool(built.head.conv(features))[:, [3, 1]]
    state = State(
        features=features, weights=built.head.weight.detach()[[3, 1]][None], labels=torch.tensor([[3, 1]] * 2)
    )
    done = recipe.pipeline.fitted(built)(state)
    torch.testing.assert_close(done.maps, maps.sigmoid(), atol=1e-5, rtol=1e-4)
    assert torch.equal(done.masks, done.maps > 0.6)


def test_steps_by_hand():
    maps = torch.tensor([[[[0.0, math.log(3)]], [[math.nan, 1.0]]]])
    state = State(maps=maps, labels=torch.tensor([[1, 0]]))
    assert torch.allclose(Sigmoid()(state).maps, torch.tensor([[[[0.5, 0.75]], [[0.0, 0.0]]]]))
    shifted = Sigmoid([5.0, -math.log(3)])(state)
    assert torch.allclose(shifted.maps[0, 0], torch.tensor([[0.25, 0.5]]))
    done = ScoreThreshold(0.3)(shifted)
    assert done.masks[0, 0].tolist() == [[False, True]] and not done.masks[0, 1].any()
    assert done.thresholds.tolist() == [[pytest.approx(0.3)] * 2]
    with pytest.raises(PipelineError, match=r"Sigmoid has the bias of 1 classes, which does not fit labels"):
        Sigmoid([1.0])(state)
    with pytest.raises(PipelineError, match=r"bias must be finite numbers"):
        Sigmoid([math.inf])
    with pytest.raises(PipelineError, match=r"SceneNet has no head that scores maps"):
        Sigmoid.of(SceneNet())
    for wrong in (1.0, -0.1, True, "a"):
        with pytest.raises(PipelineError, match=r"ScoreThreshold\(value=.*0 <= value < 1"):
            ScoreThreshold(wrong)
    assert WildcatMaps in map(type, WildcatRecipe().pipeline)


@pytest.mark.parametrize("objects", [1, (1, 3)])
def test_a_run_whose_boxes_do_not_matter(net, tmp_path, objects):
    class Moved(Scenes):
        def record(self, index):
            found = super().record(index)
            found.boxes[:] = torch.tensor([0.0, 0.0, 1.0, 1.0])
            found.masks[:] = False
            return found

    args = {"n": 16, "size": 32, "objects": objects}
    one = camtools.finetune("wildcat", net, Scenes("train", **args), out=tmp_path / "a", maps=2, **OPTIONS)
    other = camtools.finetune("wildcat", net, Moved("train", **args), maps=2, **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert ("accuracy" in one.history[-1]) == (objects == 1)
    loaded = camtools.heads.load_headed(one.paths["best"], net)
    again, trained = WildcatMaps().fitted(loaded), one.pipeline[0].fitted(one.model)
    assert torch.equal(again.weight, trained.weight) and torch.equal(again.bias, trained.bias)
    result = camtools.evaluate(
        loaded, Scenes("val", 4, size=32, objects=objects), one.pipeline, protocol="native", bootstrap=0, progress=False
    )
    (values,) = result.metrics.values()
    assert ("LocalizationMAP" in values) == (objects != 1)


def test_refusals():
    with pytest.raises(InputError, match=r"maps=0: expected a whole number of at least 1"):
        WildcatConfig(maps=0)
    with pytest.raises(InputError, match=r"k_max=1.5"):
        WildcatConfig(k_max=1.5)
