"""`i2c`: seeds and centres by hand, pairs in every batch, and a resumed run."""

import math
from types import SimpleNamespace

import pytest
import torch

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError
from camtools_recipes.i2c import I2cConfig, I2cRecipe, seed_features


def test_seeds_are_strong_positions():
    features = torch.arange(36.0).view(1, 1, 6, 6)
    maps = torch.zeros(1, 6, 6)
    maps[0, 0, :] = 0.8
    maps[0, 1, 0] = 1.0
    found = seed_features(features, maps, 0.7, 64)
    assert found.shape == (1, 64, 1) and set(found.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0}
    maps[0, 1, 0] = 2.0  # fewer than 30 above .7: those above .7 of the maximum
    assert set(seed_features(features, maps, 0.7, 64).flatten().tolist()) == {6.0}
    everywhere = seed_features(features, torch.zeros(1, 6, 6), 0.7, 512)  # nothing is strong
    assert len(set(everywhere.flatten().tolist())) > 30
    wide = torch.full((1, 6, 6), 0.75)
    wide[0, 5] = 0.5  # 30 above .7
    assert max(seed_features(features, wide, 0.7, 512).flatten().tolist()) < 30


def test_centres_follow_ever_more_slowly():
    recipe = I2cRecipe()
    classes = torch.tensor([2, 0])
    first, second = torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(recipe._towards(first, classes, 3), first)  # nothing to be drawn to yet
    torch.testing.assert_close(recipe._towards(second, classes, 3), first)
    rate = math.exp(-0.002)
    moved = (1 - rate) * first + rate * second
    torch.testing.assert_close(recipe._centres, torch.stack([moved[1], torch.zeros(2), moved[0]]))
    assert recipe._counts.tolist() == [2, 0, 2]


def test_every_batch_has_pairs():
    labels = [[0], [1], [0], [2], [1], [2], [0], [1]]
    for batch in I2cRecipe(I2cConfig(batch_size=4)).batches(labels, 0):
        own = [labels[i][0] for i in batch]
        assert len(batch) == 4 and own[0] == own[1] != own[2] == own[3]
    assert {len(batch) for batch in I2cRecipe(I2cConfig(batch_size=32)).batches(labels, 0)} == {6}


def test_killed_and_resumed_it_ends_with_the_same_weights(tmp_path, ended_after_an_epoch):
    torch.manual_seed(1)
    net, data = SceneNet(widths=(4, 4, 8, 8)).eval(), Scenes("train", 24, size=64)
    settings = {"batch_size": 8, "stochastic": 1.0, "centres": 1.0, "epochs": 2}
    whole = camtools.finetune("i2c", net, data, progress=False, device="cpu", **settings)
    assert whole.history[-1]["stochastic"] > 0 and whole.history[-1]["centre"] > 0
    recipe = I2cRecipe(I2cConfig(**settings))
    ended_after_an_epoch(recipe, net, data, out=tmp_path, progress=False, device="cpu")
    resumed = camtools.finetune("i2c", net, data, out=tmp_path, resume=True, progress=False, device="cpu", **settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_refusals():
    several = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2))
    with pytest.raises(InputError, match=r"centres in one process, but there are several"):
        I2cRecipe().before_training(several)
    with pytest.raises(InputError, match=r"i2c needs pairs of images"):
        I2cRecipe(I2cConfig(batch_size=1)).check([], [])
    with pytest.raises(InputError, match=r"i2c needs one class per image"):
        I2cRecipe(I2cConfig(augment=("cutmix",))).check([], [])
