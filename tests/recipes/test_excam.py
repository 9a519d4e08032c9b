"""`excam`: its options' losses by hand, what each builds, and that two classifiers become one."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError, ModelError
from camtools.heads import ADL, ExCAM, SequentialDropout, Wildcat
from camtools.training import Batch
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
    assert not true_regions(maps, torch.zeros(2, 2), 0.01).any()  # no class is true


def test_true_regions_in_pixels_by_hand():
    maps = torch.tensor([[[[3.0, 1 / 3]], [[1 / 3, 3.0]]]]).log()  # sigmoids 3/4 and 1/4
    # Resized to four: 0.75, 0.625, 0.375, 0.25. The sigmoid of the resized logits would be 0.634 at the second.
    assert true_regions(maps, torch.tensor([0]), 0.6, (2, 4)).tolist() == [[[True, True, False, False]] * 2]
    assert true_regions(maps, torch.tensor([0]), 0.63, (1, 4)).tolist() == [[[True, False, False, False]]]
    assert true_regions(maps, torch.tensor([1]), 0.6, (1, 4)).tolist() == [[[False, False, True, True]]]
    assert true_regions(maps, torch.ones(1, 2), 0.6, (1, 4)).all()


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
    batch = Batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))
    found = recipe.loss(Watched, batch)
    assert len(seen) == 1 and not seen[0].any()
    assert found["loss"].item() == pytest.approx(math.log(8) + float(found["second"]), rel=1e-5)


def two_networks(net, **options):
    """Two trained networks that differ in every weight, in eval mode, and the recipe."""
    recipe = ExCamRecipe(ExCamConfig(maps=2, acol="network", **options))
    built = recipe.build(net, None).eval()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    return built, recipe


def test_two_networks_become_one(net, tmp_path):
    built, recipe = two_networks(net)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = (camtools.wrap(one).activations(x) for one in (built, built.second))
    state = {name: value.clone() for name, value in built.state_dict().items()}
    merged = recipe.finished(built)
    found = camtools.wrap(merged).activations(x)
    assert found.decomposition.exact
    mean = (first.maps() + second.maps()) / 2
    torch.testing.assert_close(found.maps(), mean)
    assert not torch.allclose(mean, first.maps(), atol=0.1)
    bias = (built.head.bias + built.second.head.bias)[:, None, None] / 2
    torch.testing.assert_close(found.logits, built.head.map_pool(mean + bias))
    each = [one.head.maps(one.features(x)) for one in (built, built.second)]  # a class's maps, before they become one
    torch.testing.assert_close(merged.head.maps(merged.features(x)), sum(each) / 2)
    assert all(torch.equal(value, state[name]) for name, value in built.state_dict().items())
    assert recipe.finished(merged) is merged and merged.preprocess == built.preprocess
    assert sum(value.numel() for value in merged.parameters()) == sum(map(torch.numel, built.parameters())) - 2 * 8
    with pytest.raises(ModelError, match=r"acol='network': the model is made of two networks already, expected one"):
        recipe.build(merged, None)


def test_two_networks_from_their_start_to_their_file(net, tmp_path):
    data = Scenes("train", 16, size=32, objects=(1, 2))
    result = camtools.finetune(
        "excam", net, data, Scenes("test", 2), out=tmp_path, acol="network", examples=0, **OPTIONS
    )
    assert result.history[-1]["second"] > 0 and "excam/MaxBoxAccV2" in result.history[-1]
    assert not any("second" in name.partition(".")[0] for name, _ in result.model.named_modules())
    loaded = camtools.heads.load_headed(result.paths["best"], net)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), result.model(x))
    assert torch.equal(camtools.wrap(loaded).maps(x), camtools.wrap(result.model).maps(x))
    for pipeline in (result.pipeline, "best"):  # best looks at earlier stages too
        one, other = (camtools.explain(m, data[0].image, pipeline=pipeline, target=3) for m in (loaded, result.model))
        assert torch.equal(one.map, other.map) and one.exact


@pytest.mark.parametrize("labels", [torch.tensor([1, 5]), torch.eye(8)[[1, 5]] + torch.eye(8)[[1, 2]]])
def test_a_second_network_sees_what_the_first_does_not_find(net, labels):
    built, recipe = two_networks(net)
    seen, images = [], torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # about half of the first image has class 1, and of the second classes 2 and 5
        middle = camtools.wrap(built).maps(images).flatten(2).median(2).values
        built.head.conv.bias.copy_(-torch.cat([middle[0, :2], middle[1, 2:]]).repeat_interleave(2))
    built.second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    trainer = SimpleNamespace(model=built, inner=built, shares=False, accelerator=SimpleNamespace(num_processes=1))
    losses = recipe.loss(trainer, Batch(images, labels, torch.arange(2)))
    maps = camtools.wrap(built).maps(images) + built.head.bias[:, None, None]
    fine = torch.zeros(2, 32, 32)
    for image, classes in enumerate([[1], [5, 2]] if labels.ndim == 2 else [[1], [5]]):
        fine[image] = interpolate(maps[image, classes].sigmoid().amax(0)[None, None], (32, 32), mode="bilinear")[0, 0]
    erased = fine > 0.5
    assert all(0.05 < float(one.float().mean()) < 0.95 for one in erased)
    assert len(seen) == 1 and torch.equal(seen[0], torch.where(erased[:, None], 0.0, images))
    second = recipe.losses_of(trainer, built.second(seen[0]), labels)["loss"]
    torch.testing.assert_close(losses["second"], second.detach())


def test_each_network_follows_its_own_loss(net):
    built, recipe = two_networks(net)
    images, labels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 5])
    trainer = SimpleNamespace(model=built, inner=built, shares=False, accelerator=SimpleNamespace(num_processes=1))

    def gradients(recipe):
        built.zero_grad()
        recipe.loss(trainer, Batch(images, labels, torch.arange(2)))["loss"].backward()
        return {name: value.grad for name, value in built.named_parameters()}

    both, alone = gradients(recipe), gradients(ExCamRecipe(ExCamConfig(maps=2)))
    for name, gradient in alone.items():
        if name.startswith("second."):
            assert gradient is None and both[name].any()
        else:
            assert torch.equal(gradient, both[name])
    fast = {id(value) for value in recipe.fast_parameters(built)}
    names = {name for name, value in built.named_parameters() if id(value) in fast}
    assert names == {f"{place}head.conv.{kind}" for place in ("", "second.") for kind in ("weight", "bias")}


def test_a_frozen_part_is_that_of_both_networks(net):
    data = Scenes("train", 8, size=32, objects=(1, 2))
    body = camtools.finetune("excam", net, data, acol="network", freeze="stem", cache=None, **OPTIONS).model.body
    for network in (body.first.body, body.second.body):
        assert all(torch.equal(value, net.stem.state_dict()[key]) for key, value in network.stem.state_dict().items())
        assert not torch.equal(network.blocks[0].conv1.weight, net.blocks[0].conv1.weight)


def test_killed_and_resumed_two_networks_end_with_the_same_weights(net, tmp_path, ended_after_an_epoch):
    data = Scenes("train", 16, size=32, objects=(1, 2))
    settings = {**OPTIONS, "epochs": 2, "acol": "network", "dropout": "adl", "ema": 0.5}
    whole = camtools.finetune("excam", net, data, **settings)
    recipe = ExCamRecipe(ExCamConfig.of({k: v for k, v in settings.items() if k not in ("progress", "device")}))
    ended_after_an_epoch(recipe, net, data, out=tmp_path, progress=False, device="cpu")
    resumed = camtools.finetune("excam", net, data, out=tmp_path, resume=True, **settings)
    assert resumed.history == whole.history
    assert all(torch.equal(value, resumed.model.state_dict()[key]) for key, value in whole.model.state_dict().items())


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
        ({"acol": "network", "compile": True}, r"compile=True: excam looks into the forward by a hook"),
        ({"acol": "network", "augment": ("cutmix",)}, r"augment has cutmix: acol erases"),
        ({"acol": "network", "freeze": "stem", "views": 1}, r"excam changes images at every step.*Say cache=none"),
        ({"learnable": True, "dropout": "adl"}, r"learnable=True with dropout='adl': expected dropout='sequential'"),
        ({"acol": "both"}, r"acol='both'"),
    ],
)
def test_refusals(net, options, message):
    with pytest.raises(InputError, match=message):
        camtools.finetune("excam", net, Scenes("train", 8, size=32), **{**OPTIONS, **options})


@pytest.mark.parametrize("kind", ["image", "network"])
def test_several_processes_are_refused(kind):
    several = SimpleNamespace(inner=None, accelerator=SimpleNamespace(num_processes=2))
    with pytest.raises(InputError, match=rf"acol='{kind}' trains in one process, but there are several"):
        ExCamRecipe(ExCamConfig(acol=kind)).loss(several, None)
