"""`acol`: what is erased by hand, what the losses reach, and how a saved model is read."""

import pytest
import torch
from torch import nn

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError, ModelError
from camtools.heads import ACoL
from camtools.steps import HeadMaps, State
from camtools_recipes.acol import AcolConfig, AcolRecipe

F = torch.zeros(1, 1, 9, 9)
F[..., 1:4, 1:4] = 9.0  # around (2, 2), where the head's 3 x 3 mean is 9
F[..., 6:9, 6:9] = 4.5  # around (7, 7), where it is 4.5


@pytest.fixture
def head():
    """Both classifiers: class 0's map is the smoothed feature, class 1's its negative."""
    made = ACoL(1, 2, width=1, delta=0.7)
    with torch.no_grad():
        for branch in (made.first, made.second):
            for layer in branch:
                if isinstance(layer, nn.Conv2d):
                    layer.weight.zero_()
                    layer.weight[0, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1.0
            branch[4].weight[1] = -1.0
    return made


def test_the_second_sees_what_the_first_left(head):
    first, second = head.both(F, torch.tensor([0]))
    assert first[0, 0, 2, 2] == 9 and first[0, 0, 7, 7] == 4.5
    torch.testing.assert_close(second[0, 0], torch.where(first[0, 0] >= 0.7 * 9, 0.0, first[0, 0]))
    torch.testing.assert_close(head(F), torch.stack([first[0, 0].mean(), -first[0, 0].mean()])[None])
    _, other = head.both(F, torch.tensor([1]))  # class 1's map is highest where F is lowest
    torch.testing.assert_close(other[0, 0], torch.where(first[0, 0] <= 0.3 * 9, 0.0, first[0, 0]))


def test_the_map_is_the_larger_of_both(head):
    maps = HeadMaps(head)(State(features=F, labels=torch.tensor([[0, 0]]))).maps
    first, second = head.both(F, torch.tensor([0]))
    expected = torch.maximum(first[0, 0] / 9, second[0, 0] / second[0, 0].max())
    torch.testing.assert_close(maps, expected.expand(1, 2, -1, -1))
    other = HeadMaps(head)(State(features=F, labels=torch.tensor([[1]]))).maps
    both = HeadMaps(head)(State(features=F, labels=torch.tensor([[0, 1]]))).maps
    torch.testing.assert_close(both, torch.cat([maps[:, :1], other], 1))  # each class has its own erased features
    assert maps[0, 0, 2, 2] == 1 and maps[0, 0, 7, 7] > 0.5  # the second object has come up


def test_a_run_from_its_start_to_its_file(tmp_path):
    torch.manual_seed(1)
    net, data = SceneNet(widths=(4, 4, 8, 8)).eval(), Scenes("train", 12, size=64)
    options = {"epochs": 1, "batch_size": 6, "conv": 5, "progress": False, "device": "cpu"}
    result = camtools.finetune("acol", net, data, out=tmp_path, delta=0.6, **options)
    assert result.model.head.width == 5 and 0 < result.history[-1]["erased"] < result.history[-1]["loss"]
    loaded = camtools.heads.load_headed(tmp_path / "best.safetensors", net)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(x), result.model(x), rtol=0, atol=0)
    assert loaded.head.delta == 0.6
    found = camtools.explain(loaded, data[0].image, pipeline="HeadMaps", target=3)
    assert found.map.min() == 0 and found.map.max() == 1


def test_refusals():
    with pytest.raises(InputError, match=r"acol needs one class per image"):
        AcolRecipe(AcolConfig(augment=("cutmix",))).check([], [])
    with pytest.raises(ModelError, match=r"ACoL.*delta"):
        ACoL(1, 2, delta=0.0)
