"""Frozen parts: they stay as they are, and what is kept of them trains the rest to the same numbers."""

import copy

import pytest
import torch
from torch import nn

import camtools
from camtools import InputError, ModelError
from camtools.heads import GAP, replace_head
from camtools.training import make_recipe
from camtools.training.frozen import features_of, split


class Deep(nn.Module):
    """Two stages, each convolution and batch normalisation."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.BatchNorm2d(5), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.pool(self.two(self.one(x))).flatten(1))


@pytest.fixture
def deep():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Deep().eval()


RUN = {"epochs": 3, "batch_size": 8, "lr": 0.05, "freeze": "one", "views": 2, "augment": ("crop", "flip")}


def tuned(model, data, options, **config):
    return camtools.finetune("gap", model, data, **options, **{**RUN, **config})


def test_the_frozen_part_stays_and_the_rest_learns(deep, colours, options):
    result = tuned(deep, colours(), options, cache=None)
    before, after = deep.state_dict(), result.model.body.state_dict()
    changed = {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}
    assert not [name for name in changed if name.startswith("one.")]
    assert {"two.0.weight", "two.1.weight", "two.1.running_mean"} <= changed


@pytest.mark.parametrize("config", [{}, {"cut_after": "one", "conv": 7}, {"ema": 0.5}], ids=["rest", "cut", "ema"])
def test_what_is_kept_trains_to_the_same_numbers(deep, colours, options, tmp_path, config):
    config = {**config, "mixed_precision": "no"}
    kept = tuned(deep, colours(), options, cache=str(tmp_path), **config)
    ran = tuned(deep, colours(), options, cache=None, **config)
    for name, value in ran.model.state_dict().items():  # float16 has 11 bits
        torch.testing.assert_close(kept.model.state_dict()[name], value, rtol=0.01, atol=2e-3)
    assert [row["loss"] for row in kept.history] == pytest.approx([row["loss"] for row in ran.history], abs=2e-3)
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kept.model(x), ran.model(x), rtol=0.01, atol=0.01)  # a whole model, of images


def test_files_are_shared_between_seeds_and_recipes_and_a_killed_one_goes_on(deep, colours, options, tmp_path):
    first = tuned(deep, colours(), options, cache=str(tmp_path))
    (path,) = tmp_path.glob("*/features.f16")
    whole = path.read_bytes()
    assert len(whole) == 24 * 2 * 5 * 6 * 6 * 2
    path.write_bytes(whole[: len(whole) // 2 + 7])  # cut off within a row
    again = tuned(deep, colours(), options, cache=str(tmp_path))
    assert path.read_bytes() == whole
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    before = path.stat().st_mtime_ns
    tuned(deep, colours(), options, cache=str(tmp_path), seed=5)
    camtools.finetune("tap", deep, colours(), **options, **RUN, cache=str(tmp_path), cut_after="one", conv=4)
    assert [one.stat().st_mtime_ns for one in tmp_path.glob("*/features.f16")] == [before]
    tuned(deep, colours(), options, cache=str(tmp_path), views=1)
    assert len(list(tmp_path.glob("*/features.f16"))) == 2


def test_a_resumed_run_ends_as_an_uninterrupted_one(deep, colours, options, tmp_path, same):
    recipe = make_recipe("gap", {**RUN, "cache": str(tmp_path / "kept")})
    once = camtools.finetune(recipe, deep, colours(), **options, out=tmp_path / "a")
    after_epoch = type(recipe).after_epoch

    def stop(self, trainer):
        after_epoch(self, trainer)
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    stopping = type("Stopping", (type(recipe),), {"after_epoch": stop})(recipe.config)
    with pytest.raises(KeyboardInterrupt):
        camtools.finetune(stopping, deep, colours(), **options, out=tmp_path / "b")
    result = camtools.finetune(recipe, deep, colours(), **options, out=tmp_path / "b", resume=True)
    assert same(once.model, result.model)


def test_both_parts_together_are_the_model(deep):
    model = replace_head(deep, GAP(), cut_after="two", conv=4).eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    first, rest = split(model, "body.two.0", x[:1])
    torch.testing.assert_close(rest(features_of(first, "body.two.0", x)), model(x))
    assert rest.neck[0].weight is model.neck[0].weight and first.body.one[0].weight is model.body.one[0].weight
    assert not list(rest.body.one.parameters()) and not list(first.neck.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_frozen_or_kept_is_refused(deep, colours, options, tmp_path):
    with pytest.raises(InputError, match=r"freeze='three': HeadedModel has no such layer\. Expected a name below"):
        tuned(deep, colours(), options, freeze="three")
    with pytest.raises(InputError, match=r"minmaxcam changes images at every step.*cache=none"):
        camtools.finetune("minmaxcam", deep, colours(), **options, **RUN, set_size=2, classes_per_batch=2)
    with torch.no_grad():
        deep.one[1].bias.fill_(1e6)
    with pytest.raises(ModelError, match=r"the outputs of 'body\.one' are beyond half precision"):
        tuned(deep, colours(), options, cache=str(tmp_path))


def test_features_of_another_activation_are_refused(deep, colours, options, tmp_path):
    tuned(deep, colours(), options, cache=str(tmp_path))
    deep.one[2] = nn.Identity()  # the same weights
    with pytest.raises(
        InputError, match=r"features\.f16 holds other features than 'body\.one' gives now, by [\d.]+ on"
    ):
        tuned(deep, colours(), options, cache=str(tmp_path))
