"""`cream`: the bank by hand, in a run, in its file, and after a resumption; weights that are `gap`'s."""

import pytest
import torch

import camtools
from camtools.context_bank import BankUpdates, ContextBank
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError
from camtools.steps import CREAM
from camtools.steps.base import State
from camtools.steps.cream import UnitFeatures, foreground_mask, mean_features
from camtools.training import Recipe
from camtools.training.augment import plain_transform
from camtools.training.trainer import accelerated
from camtools_recipes.cream import CreamConfig, CreamRecipe

OPTIONS = {"epochs": 2, "batch_size": 4, "input_size": 32, "lr": 0.02}
RUN = {"progress": False, "device": "cpu"}


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SceneNet(widths=(4, 4, 8, 8)).eval()


class Told:
    """What the bank asks of a trainer: a classifier that counts channel 0 for class 0, and channel 1 for class 1."""

    classes = 2

    class inner:
        classifier = torch.nn.Linear(2, 2, bias=False)


with torch.no_grad():
    Told.inner.classifier.weight.copy_(torch.eye(2))


@pytest.fixture
def alone():
    """One process, as in a fine-tune."""
    with accelerated("no", "cpu"):
        yield


def test_the_bank_is_of_the_averaged_weights(net):
    data, options = Scenes("train", 8, size=32), {**OPTIONS, "bank_momentum": 0.0}
    result = camtools.finetune("cream", net, data, ema=0.9, **options, **RUN)
    bank = result.pipeline[1].bank
    last = {int(data[i].labels[0]): i for i in range(8)}  # with momentum 0 the last image of each class decides
    for label, i in last.items():
        x = plain_transform(CreamConfig(input_size=32), result.model.preprocess)(data[i].image)[None]
        with torch.no_grad():
            features = result.model.features(x)
        maps = torch.einsum("c,bchw->bhw", result.model.classifier.weight[label].detach(), features)[:, None]
        mean, present = mean_features(features, foreground_mask(maps, 0.2))
        if present:
            torch.testing.assert_close(bank.foreground[label], mean[0, 0])
    assert bank.counts.max() <= 2  # one pass over the images, whose classes have two at most
    assert last
    live = camtools.finetune("cream", net, data, **options, **RUN).pipeline[1].bank
    assert not torch.allclose(bank.foreground, live.foreground)


@pytest.mark.usefixtures("alone")
def test_the_bank_by_hand():
    recipe = CreamRecipe(CreamConfig(bank_momentum=0.75, delta=0.2))
    # Two positions: channel 0 is 10 and 1, so only the first is above 0.2 of the maximum.
    first = torch.tensor([[[[10.0, 1.0]], [[4.0, 2.0]]]])
    second = torch.tensor([[[[2.0, 0.0]], [[8.0, 6.0]]]])
    recipe.remember(Told, Told.inner, first, torch.tensor([0]))
    bank = recipe.bank(torch.nn.Linear(1, 1))
    assert bank.foreground.tolist() == [[10, 4], [0, 0]] and bank.background.tolist() == [[1, 2], [0, 0]]
    assert bank.missing == [1]
    recipe.remember(Told, Told.inner, second, torch.tensor([0]))
    bank = recipe.bank(torch.nn.Linear(1, 1))
    assert bank.foreground[0].tolist() == [0.75 * 10 + 0.25 * 2, 0.75 * 4 + 0.25 * 8]
    assert bank.background[0].tolist() == [0.75 * 1, 0.75 * 2 + 0.25 * 6]
    assert bank.counts.tolist() == [[2, 2], [0, 0]]
    assert (bank.momentum, bank.delta) == (0.75, 0.2)
    unit = CreamRecipe(CreamConfig(unit=True))
    unit.remember(Told, Told.inner, torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]]), torch.tensor([0]))
    assert unit.bank(torch.nn.Linear(1, 1)).foreground[0].tolist() == pytest.approx([0.6, 0.8])
    assert any(isinstance(step, UnitFeatures) for step in unit.pipeline)
    assert not any(isinstance(step, UnitFeatures) for step in recipe.pipeline)


def test_unit_features_by_hand():
    features = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    done = UnitFeatures()(State(features=features))
    assert torch.allclose(done.features, torch.tensor([[[[0.6, 0.0]], [[0.8, 0.0]]]]))
    assert features[0, 0, 0, 0] == 3


def test_weights_are_those_of_gap(net):
    data = Scenes("train", 12, size=32)
    one = camtools.finetune("cream", net, data, **OPTIONS, **RUN)
    other = camtools.finetune("gap", net, data, **OPTIONS, **RUN)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert one.history == other.history


def test_the_bank_in_the_file_is_the_one_recomputed(net, tmp_path, monkeypatch):
    data, seen = Scenes("train", 12, size=32), []
    original = Recipe.loss

    def watch(self, trainer, batch):
        inner = trainer.inner
        with torch.no_grad():
            running = {name: value.clone() for name, value in inner.named_buffers()}
            features = inner.features(batch.images)
            for name, value in inner.named_buffers():
                value.copy_(running[name])
        seen.append((features, inner.classifier.weight.detach().clone(), batch.labels))
        return original(self, trainer, batch)

    monkeypatch.setattr(Recipe, "loss", watch)
    result = camtools.finetune("cream", net, data, out=tmp_path, **OPTIONS, **RUN, mixed_precision="no")
    values = {part: {} for part in ("foreground", "background")}
    for features, weight, labels in seen:
        for f, label in zip(features, labels.tolist(), strict=True):
            cam = (weight[label][:, None, None] * f).sum(0)
            mask = cam > 0.2 * cam.max() if cam.max() > 0 else torch.zeros_like(cam, dtype=torch.bool)
            for part, inside in (("foreground", mask), ("background", ~mask)):
                if inside.any():
                    mean, old = f[:, inside].mean(1), values[part].get(label)
                    values[part][label] = mean if old is None else 0.8 * old + 0.2 * mean
    bank = ContextBank.load(result.paths["bank"], result.model)  # checked against the model
    assert result.paths["bank"].name == "best.bank.safetensors" and (tmp_path / "last.bank.safetensors").exists()
    for part, found in values.items():
        assert found
        for label, value in found.items():
            torch.testing.assert_close(getattr(bank, part)[label], value, atol=1e-5, rtol=1e-4)
    step = next(one for one in result.pipeline if isinstance(one, CREAM))
    assert torch.equal(step.bank.foreground, bank.foreground) and repr(step.bank) == repr(bank)


def test_the_best_epochs_bank_is_handed_out(net, tmp_path):
    data = Scenes("train", 12, size=32)
    two = camtools.finetune("cream", net, data, data, out=tmp_path, val_limit=4, examples=0, **OPTIONS, **RUN)
    bank = ContextBank.load(two.paths["bank"], two.model)
    step = next(one for one in two.pipeline if isinstance(one, CREAM))
    assert torch.equal(step.bank.foreground, bank.foreground)
    assert {"cream/MaxBoxAccV2", "cam/PxAP"} <= two.history[0].keys()


def test_a_resumed_run_ends_with_the_same_bank(net, tmp_path):
    class Stop(Exception):
        pass

    data, config = Scenes("train", 12, size=32), CreamConfig.of({**OPTIONS, "save_every": 1})
    stopped, count = CreamRecipe(config), []
    step = stopped.step

    def stops(trainer, batch):
        count.append(1)
        if len(count) == 5:
            raise Stop
        return step(trainer, batch)

    stopped.step = stops
    with pytest.raises(Stop):
        camtools.finetune(stopped, net, data, out=tmp_path / "a", **RUN)
    resumed = camtools.finetune(CreamRecipe(config), net, data, out=tmp_path / "a", resume=True, **RUN)
    whole = camtools.finetune(CreamRecipe(config), net, data, out=tmp_path / "b", **RUN)
    banks = [ContextBank.load(one.paths["bank"], one.model) for one in (resumed, whole)]
    assert torch.equal(banks[0].foreground, banks[1].foreground) and torch.equal(banks[0].counts, banks[1].counts)


@pytest.mark.usefixtures("alone")
def test_the_state_comes_back():
    recipe = CreamRecipe()
    assert recipe.state_dict() == {} and recipe.files(torch.nn.Linear(1, 1)) == {}
    recipe.remember(Told, Told.inner, torch.rand(1, 2, 3, 3), torch.tensor([1]))
    other = CreamRecipe()
    other.load_state_dict(recipe.state_dict())
    assert torch.equal(other.state_dict()["values"], recipe.state_dict()["values"])
    assert isinstance(other._updates, BankUpdates)
    other.load_state_dict({})
    assert other.state_dict() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": ("cutmix",)}, r"augment has cutmix: cream needs one class per image"),
        ({"compile": True}, r"compile=True: cream looks into the forward by a hook"),
        ({"delta": 1.0}, r"delta=1.0"),
    ],
)
def test_refusals(net, options, message):
    with pytest.raises(InputError, match=message):
        camtools.finetune("cream", net, Scenes("train", 8, size=32), **{**OPTIONS, **options}, **RUN)


def test_several_classes_per_image_are_refused(net):
    with pytest.raises(InputError, match="cream learns one class per image"):
        camtools.finetune("cream", net, Scenes("train", 8, size=32, objects=(2, 3)), **OPTIONS, **RUN)
