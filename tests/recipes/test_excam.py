"""`excam`: its options' losses by hand, what each builds, and that two classifiers become one."""

import copy
import math

import pytest
import torch

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError
from camtools.heads import ADL, ExCAM, SequentialDropout, Wildcat
from camtools_recipes.excam import ExCamConfig, ExCamRecipe, exclusivity, true_regions

OPTIONS = {"epochs": 1, "batch_size": 8, "input_size": 32, "progress": False, "device": "cpu", "maps": 2}


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SceneNet(widths=(4, 4, 8, 8)).eval()


def test_exclusivity_by_hand():
    maps = torch.zeros(2, 1, 3, 1, 2)
    maps[0, 0] = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[1.0, 1.0]]])
    # Ordered pairs: |(1, -2)|^2 = 5, |(0, -1)|^2 = 1, |(-1, 1)|^2 = 2, each twice; the second image's are 0.
    assert float(exclusivity(maps)) == pytest.approx(2 * (5 + 1 + 2) / 2)
    shifted = maps + 7
    assert float(exclusivity(shifted)) == pytest.approx(8, rel=1e-5)
    random = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    pairs = (random[:, :, :, None] - random[:, :, None]).square().sum((2, 3, 4, 5)).mean()
    assert float(exclusivity(random)) == pytest.approx(float(pairs), rel=1e-5)


def test_true_regions_by_hand():
    maps = torch.tensor([[[[2.0, -1.0]], [[-1.0, 2.0]]], [[[2.0, -1.0]], [[0.0, 0.1]]]])
    assert true_regions(maps, torch.tensor([0, 1]), 0.5).tolist() == [[[True, False]], [[False, True]]]
    both = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert true_regions(maps, both, 0.5).tolist() == [[[True, True]], [[False, False]]]
    assert not true_regions(maps, both, 0.9).any()  # sigmoid(2) is 0.88


def test_what_options_build(net):
    plain = ExCamRecipe().build(net, None)
    assert isinstance(plain.head, ExCAM) and isinstance(plain.head.dropout, SequentialDropout)
    assert plain.head.M == 8 and plain.head.dropout.delta == 0.5
    learnt = ExCamRecipe(ExCamConfig(learnable=True, delta=0.25)).build(net, None)
    assert learnt.head.dropout.delta.item() == pytest.approx(0.25)
    adl = ExCamRecipe(ExCamConfig(dropout="adl", adl_rate=0.4, adl_gamma=0.7)).build(net, None).head
    assert type(adl) is Wildcat and isinstance(adl.dropout, ADL)
    assert (adl.dropout.drop_rate, adl.dropout.gamma, adl.dropout.per_map) == (0.4, 0.7, True)
    none = ExCamRecipe(ExCamConfig(dropout="none")).build(net, 5).head
    assert type(none) is Wildcat and isinstance(none.dropout, torch.nn.Identity) and none.classes == 5


def test_the_exclusivity_is_subtracted(net):
    data = Scenes("train", 8, size=32, objects=(1, 2))
    recipe = ExCamRecipe(ExCamConfig.of({k: v for k, v in OPTIONS.items() if k not in ("progress", "device")}))
    runs = {}
    for weight in (0.0, 0.125):
        options = {**recipe.config.to_dict(), "exclusivity": weight, "augment": ()}
        made = ExCamRecipe(ExCamConfig.of(options))
        runs[weight] = camtools.finetune(made, net, data, progress=False, device="cpu").history[-1]
    # One batch, so both losses are those of the same fresh head.
    extra = 0.125 * runs[0.125]["exclusivity"]
    assert extra > 0 and runs[0.125]["loss"] == pytest.approx(runs[0.0]["loss"] - extra, rel=1e-5)


@pytest.mark.parametrize("kind", ["image", "features"])
def test_two_classifiers_become_one(net, tmp_path, kind):
    recipe = ExCamRecipe(ExCamConfig(maps=2, acol=kind, dropout="none"))
    built = recipe.build(net, None).eval()
    first, second = built.head, built.head.second
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = built.features(x)
        mean = (first.class_pool(first.conv(features)) + second.class_pool(second.conv(features))) / 2
        state = copy.deepcopy(built.state_dict())
        merged = recipe.finished(built)
        torch.testing.assert_close(merged.head.class_pool(merged.head.conv(features)), mean)
        torch.testing.assert_close(merged(x), first.map_pool(mean))
    assert all(torch.equal(value, state[name]) for name, value in built.state_dict().items())
    assert recipe.finished(merged) is merged
    data = Scenes("train", 16, size=32, objects=(1, 2))
    result = camtools.finetune("excam", net, data, out=tmp_path, acol=kind, **OPTIONS)
    assert not hasattr(result.model.head, "second") and result.history[-1]["second"] > 0
    loaded = camtools.heads.load_headed(result.paths["best"], net)
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))


def test_a_second_classifier_learns_from_what_is_left(net):
    recipe = ExCamRecipe(
        ExCamConfig(maps=1, acol="features", dropout="none", k_max=1.0, k_min=0, batch_size=2, epochs=1)
    )
    seen = []
    built = recipe.build(net, None)

    class Watched:
        model, inner, shares = built, built, False

        class accelerator:
            num_processes = 1

    with torch.no_grad():
        built.head.conv.weight.zero_()
        built.head.conv.bias.fill_(9.0)  # the first finds everything
    built.head.second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    from camtools.training import Batch

    batch = Batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))
    found = recipe.loss(Watched, batch)
    assert len(seen) == 1 and not seen[0].any()
    assert found["loss"].item() == pytest.approx(math.log(8) + float(found["second"]), rel=1e-5)


def test_runs_repeat_on_both_kinds_of_data(net):
    for objects in (1, (1, 3)):
        data = Scenes("train", 16, size=32, objects=objects)
        one, again = (camtools.finetune("excam", net, data, learnable=True, **OPTIONS) for _ in range(2))
        assert one.history == again.history
        assert one.model.head.dropout.delta.item() != pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclusivity": 0.1, "maps": 1}, r"exclusivity=0.1 with maps=1: expected 2 maps at least"),
        ({"acol": "image", "compile": True}, r"compile=True: excam looks into the forward by a hook"),
        ({"acol": "image", "augment": ("cutmix",)}, r"augment has cutmix: acol erases"),
        ({"learnable": True, "dropout": "adl"}, r"learnable=True with dropout='adl': expected dropout='sequential'"),
        ({"acol": "both"}, r"acol='both'"),
    ],
)
def test_refusals(net, options, message):
    with pytest.raises(InputError, match=message):
        camtools.finetune("excam", net, Scenes("train", 8, size=32), **{**OPTIONS, **options})
