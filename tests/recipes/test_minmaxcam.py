"""MinMaxCAM: both regularisers by hand, what each update moves, batches, and refusals."""

import pytest
import torch
from torch import nn

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError, ModelError
from camtools.heads import GAP, replace_head
from camtools.heads.layers import zero_to_one as minmax
from camtools.training import Batch
from camtools_recipes.minmaxcam import (
    MinMaxCamConfig,
    MinMaxCamRecipe,
    class_weight,
    common_region,
    frozen,
    full_region,
)


def test_common_region_by_hand():
    f = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, 5.0]])
    labels = torch.tensor([0, 0, 1, 1])
    # Class 0: both ordered pairs have 4, so 8 / (2 * 1) = 4; class 1: 16. Their mean is 10, 5 as a mean of 2 channels.
    assert common_region(f, labels, mean=False) == pytest.approx(10)
    assert common_region(f, labels) == pytest.approx(5)
    order = torch.tensor([2, 0, 3, 1])
    assert common_region(f[order], labels[order]) == pytest.approx(5)


def test_common_region_of_three_and_of_unequal_sets():
    f = torch.tensor([[0.0], [1.0], [3.0], [5.0], [9.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    # Class 0: (1 + 9 + 4) * 2 / (3 * 2) = 14 / 3; class 1: 2 * 16 / 2 = 16.
    assert float(common_region(f, labels)) == pytest.approx((14 / 3 + 16) / 2)
    alone = torch.tensor([0, 0, 0, 1, 2])
    assert float(common_region(f, alone)) == pytest.approx(14 / 3)
    assert common_region(f, torch.arange(5)) == 0


def test_full_region_by_hand():
    f, whole = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert full_region(f, whole, mean=False) == pytest.approx((4 + 10) / 2)
    assert full_region(f, whole) == pytest.approx((2 + 5) / 2)


def test_maps_go_from_zero_to_one():
    maps = torch.tensor([[[-1.0, 3.0]], [[2.0, 2.0]]])
    assert torch.equal(minmax(maps), torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]]))


class Grid(nn.Module):
    """F is the image itself, 2 channels; logits = W · mean(F)."""

    def __init__(self):
        super().__init__()
        self.pick = nn.Conv2d(3, 2, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.pick.weight.copy_(torch.eye(2, 3)[:, :, None, None])
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.5, 1.0]]))

    def forward(self, x):
        return self.fc(self.pool(self.pick(x)).flatten(1))


def test_regularisers_by_hand_and_their_gradient():
    model = replace_head(Grid().eval(), GAP())
    weight = class_weight(model)
    x = torch.zeros(2, 3, 2, 2)
    x[0, 0] = torch.tensor([[1.0, 3.0], [5.0, 1.0]])  # class 0's map, 0 to 1: 0, .5, 1, 0
    x[0, 1] = 4.0
    x[1, 0] = torch.tensor([[0.0, 1.0], [2.0, 4.0]])  # 0, .25, .5, 1
    x[1, 1] = torch.tensor([[4.0, 0.0], [1.0, 2.0]])
    batch = Batch(x, torch.tensor([0, 0]), torch.arange(2))
    # f: (1.5 + 5) / 4 and 4 * 1.5 / 4; (.25 + 1 + 4) / 4 and (.5 + 2) / 4. f0: 2.5 and 4; 1.75 and 1.75.
    common = ((1.625 - 1.3125) ** 2 + (1.5 - 0.625) ** 2) / 2
    full = ((1.625 - 2.5) ** 2 + (1.5 - 4) ** 2 + (1.3125 - 1.75) ** 2 + (0.625 - 1.75) ** 2) / 4
    recipe = MinMaxCamRecipe()
    with frozen(model, weight):
        found = recipe.regularisers(model, weight, batch)
        assert [float(one) for one in found] == pytest.approx([common, full])
        (gradient,) = torch.autograd.grad(found[1], [weight])
        moved = []
        for delta in (1e-2, -2e-2):  # to one side, then to the other
            with torch.no_grad():
                weight[0, 1] += delta
                moved.append(float(recipe.regularisers(model, weight, batch)[1]))
    assert abs(float(gradient[0, 1])) > 0.05
    assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(float(gradient[0, 1]), rel=0.02)
    assert float(gradient[0, 0]) == pytest.approx(0, abs=1e-5)  # a scaled map is the same when normalised
    assert torch.equal(gradient[1], torch.zeros(2))


def test_freezing_is_undone_after_an_error():
    model = replace_head(Grid(), GAP()).train()
    model.body.pick.weight.requires_grad_(False)
    with pytest.raises(KeyError), frozen(model, class_weight(model)):
        assert not model.training and not model.feature_map.training
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["classifier.weight"]
        raise KeyError
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["classifier.weight"]


@pytest.fixture
def scenes_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SceneNet(widths=(4, 4, 8, 8)).eval()


def config(**options):
    return {"epochs": 1, "set_size": 2, "classes_per_batch": 3, "input_size": 32, "lr": 0.05, **options}


def test_stage_two_moves_the_class_weights_only(scenes_net):
    data = Scenes("train", 20, size=32)
    recipe = MinMaxCamRecipe(MinMaxCamConfig(**config(crr=3.0, frr=3.0)))
    moved, modes = [], []
    original = recipe.regularisers

    def watch(model, weight, batch):
        modes.append((model.training, [n for n, p in model.named_parameters() if p.requires_grad]))
        moved.append({name: value.clone() for name, value in model.state_dict().items()})
        return original(model, weight, batch)

    recipe.regularisers = watch
    step, after = recipe.step, []

    def both(trainer, batch):
        assert len(batch.labels) == 6 and sorted(batch.labels.unique(return_counts=True)[1].tolist()) == [2, 2, 2]
        found = step(trainer, batch)
        after.append({name: value.clone() for name, value in trainer.inner.state_dict().items()})
        assert trainer.inner.training and all(p.requires_grad for p in trainer.inner.parameters())
        return found

    recipe.step = both
    camtools.finetune(recipe, scenes_net, data, progress=False, device="cpu")
    assert len(moved) == len(after) > 1 and all(mode == (False, ["classifier.weight"]) for mode in modes)
    for one, other in zip(moved, after, strict=True):
        changed = [name for name in one if not torch.equal(one[name], other[name])]
        assert changed == ["classifier.weight"]


def test_losses_are_logged_and_runs_repeat(scenes_net):
    data = Scenes("train", 20, size=32)
    one = camtools.finetune("minmaxcam", scenes_net, data, progress=False, device="cpu", **config())
    again = camtools.finetune("minmaxcam", scenes_net, data, progress=False, device="cpu", **config())
    assert {"loss", "accuracy", "crr", "frr"} <= one.history[0].keys()
    assert one.history == again.history
    without = camtools.finetune("minmaxcam", scenes_net, data, progress=False, device="cpu", **config(crr=0.0, frr=0.0))
    assert not torch.equal(without.model.classifier.weight, one.model.classifier.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes_per_batch": 9}, "classes_per_batch=9, but the training images are of 8 classes"),
        ({"accumulate": 2}, "accumulate=2: minmaxcam makes two updates of every batch, expected 1"),
        ({"augment": ("cutmix",)}, "minmaxcam needs one class per image"),
        ({"set_size": 1}, "set_size=1: expected a whole number of at least 2"),
    ],
)
def test_refusals(scenes_net, options, message):
    with pytest.raises(InputError, match=message):
        camtools.finetune(
            "minmaxcam", scenes_net, Scenes("train", 60), progress=False, device="cpu", **config(**options)
        )


def test_several_classes_per_image_are_refused(scenes_net):
    data = Scenes("train", 10, objects=(2, 3))
    with pytest.raises(InputError, match="minmaxcam learns one class per image"):
        camtools.finetune("minmaxcam", scenes_net, data, progress=False, device="cpu", **config())


def test_a_class_with_too_few_images_repeats_them(scenes_net):
    recipe = MinMaxCamRecipe(MinMaxCamConfig(**config(set_size=5, classes_per_batch=2)))
    (batch,) = recipe.batches([[0]] * 2 + [[1]] * 5, epoch=0)
    assert sorted(batch).count(0) + sorted(batch).count(1) == 5 and set(batch) == set(range(7))


def test_a_model_without_a_linear_classifier_is_refused():
    with pytest.raises(ModelError, match="moves the weight of a linear classifier, which Conv2d lacks"):
        class_weight(nn.Conv2d(3, 2, 1))
