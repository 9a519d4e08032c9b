"""`spg`: the guidance by hand, whom it teaches, and how a saved model is read."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError
from camtools.heads import SPG
from camtools.steps import HeadMaps, State
from camtools_recipes.spg import SpgConfig, SpgRecipe, guidance


def test_guidance_by_hand():
    teacher = torch.zeros(1, 1, 10, 10)
    teacher[..., :4, :] = 0.9  # 40 pixels of object, 50 of background, and 10 between
    teacher[..., 4, :] = 0.3
    logits = torch.randn(1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    known = torch.cat([logits[..., :4, :].flatten(), logits[..., 5:, :].flatten()])
    target = torch.cat([torch.ones(40), torch.zeros(50)])
    torch.testing.assert_close(guidance(logits, teacher, 0.7, 0.1), binary_cross_entropy_with_logits(known, target))


def test_few_pixels_above_the_threshold_count_from_the_maximum_on():
    teacher = torch.full((1, 1, 4, 4), 0.3)
    teacher[0, 0, 0] = 0.4  # nowhere above .7: above .28, .7 of the maximum, everywhere; background has precedence
    logits = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    every = binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    torch.testing.assert_close(guidance(logits, teacher, 0.7, 0.1), every)
    low = torch.cat([torch.ones(1, 1, 1, 4), torch.zeros(1, 1, 3, 4)], 2)
    torch.testing.assert_close(guidance(logits, teacher, 0.7, 0.35), binary_cross_entropy_with_logits(logits, low))
    assert guidance(logits, torch.full_like(teacher, 0.5), 1.0, 0.0) > 0  # a constant is above .7 of itself
    assert guidance(logits, torch.zeros_like(teacher), 0.7, 0.0) == 0  # nothing above 0, nothing below it


def test_branches_share_what_the_scores_are_made_of():
    torch.manual_seed(0)
    head, features = SPG(3, 2, width=4), torch.randn(2, 3, 5, 5)
    found = head.branches(features)
    torch.testing.assert_close(head(features), found["maps"].mean((2, 3)))
    maps = HeadMaps(head)(State(features=features, labels=torch.tensor([[1], [0]]))).maps
    torch.testing.assert_close(maps[:, 0], found["maps"][[0, 1], [1, 0]].detach())
    for name, reached in (("b1", set()), ("b2", {"a2"}), ("c", {"a2", "a3"})):
        head.zero_grad()
        head.branches(features)[name].sum().backward()
        got = {key.split(".")[0] for key, value in head.named_parameters() if value.grad is not None}
        assert got & {"a2", "a3", "a4"} == reached


def test_a_run_from_its_start_to_its_file(tmp_path):
    torch.manual_seed(1)
    net, data = SceneNet(widths=(4, 4, 8, 8)).eval(), Scenes("train", 12, size=64)
    options = {"epochs": 1, "batch_size": 6, "conv": 5, "progress": False, "device": "cpu"}
    result = camtools.finetune("spg", net, data, out=tmp_path, **options)
    row = result.history[-1]
    assert row["b1"] > 0 and row["b2"] > 0 and row["loss"] > row["b1"] + row["b2"] + row["c"]
    loaded = camtools.heads.load_headed(tmp_path / "best.safetensors", net)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(x), result.model(x), rtol=0, atol=0)
    camtools.explain(loaded, data[0].image, pipeline="HeadMaps", target=3)
    with pytest.raises(InputError, match=r"spg needs one class per image"):
        SpgRecipe(SpgConfig(augment=("cutmix",))).check([], [])
