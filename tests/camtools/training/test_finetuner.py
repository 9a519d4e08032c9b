"""`finetune` from end to end on tiny images: what is learnt, written, refused, and left alone."""

import csv
import json

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Subset

import camtools
from camtools.errors import InputError, ModelError, TargetError
from camtools.training import Recipe
from camtools.training import checkpoint as checkpoint_module


def test_it_learns_and_reports(net, colours, plain, options, tmp_path):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    result = camtools.finetune(
        plain(epochs=4, lr=0.1, best="MaxBoxAccV2"), net, colours(48), colours(12), out=tmp_path / "run", **options
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()) and not net.training
    assert all(p.grad is None for p in net.parameters())
    history = result.history
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4]
    assert history[-1]["loss"] < history[1]["loss"] < 1.5
    assert history[-1]["val_accuracy"] == 100
    assert {"cam/MaxBoxAccV2", "cam/GT-known@own"} <= history[-1].keys()
    best = max(history[1:], key=lambda row: row["cam/MaxBoxAccV2"])
    assert result.best_epoch == best["epoch"]
    again = camtools.evaluate(
        result.model, colours(12), protocol="native", bootstrap=0, progress=False,
        transform=options["transform"], class_names=options["class_names"],
    )  # fmt: skip
    assert again.metrics["cam"]["MaxBoxAccV2"].value == pytest.approx(best["cam/MaxBoxAccV2"], abs=1e-6)


def test_files_of_a_run(net, colours, plain, options, tmp_path):
    run = tmp_path / "run"
    result = camtools.finetune(plain(log_every=1), net, colours(), colours(6), out=run, **options)
    assert set(result.paths) == {"best", "last", "state", "csv", "tensorboard", "config", "examples"}
    assert all(path.exists() for path in result.paths.values())
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    for row, truth in zip(rows, result.history, strict=True):
        assert {k: float(v) for k, v in row.items() if v} == pytest.approx(truth, rel=1e-5)
    config = json.loads((run / "config.json").read_text())
    assert (config["recipe"], config["lr"], config["classes"]) == ("plain", 0.05, ["red", "green", "blue"])
    with Image.open(run / "examples.png") as image:
        assert image.width > 3 * 160 and image.height > 6 * 160
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [one.step for one in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars("epoch/loss")[-1].value == pytest.approx(result.history[-1]["loss"], rel=1e-6)
    from safetensors.torch import load_file

    saved = load_file(run / "best.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in result.model.state_dict().items())


def test_shuffled_boxes_change_nothing(net, colours, plain, options, same):
    one = camtools.finetune(plain(), net, colours(), **options)
    other = camtools.finetune(plain(), net, colours(shift=7), **options)
    assert not torch.equal(colours()[0].boxes, colours(shift=7)[0].boxes)
    assert same(one.model, other.model) and not same(one.model, net)


def test_workers_and_processes_of_reading_change_nothing(net, colours, plain, options, same):
    alone = camtools.finetune(plain(augment="resized_crop,flip,has"), net, colours(), **options)
    helped = camtools.finetune(plain(augment="resized_crop,flip,has", workers=2), net, colours(), **options)
    assert same(alone.model, helped.model)
    other = camtools.finetune(plain(augment="resized_crop,flip,has", seed=1), net, colours(), **options)
    assert not same(alone.model, other.model)


def test_accumulated_gradients_are_those_of_the_whole_batch(net, colours, plain, options):
    net.bn, net.drop = nn.Identity(), nn.Identity()  # both see the batch
    whole = camtools.finetune(plain(batch_size=8, mixed_precision="no"), net, colours(), **options).model.state_dict()
    halves = plain(batch_size=4, accumulate=2, mixed_precision="no")
    parts = camtools.finetune(halves, net, colours(), **options).model.state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_one_step_is_sgd_by_hand(net, colours, plain, options):
    net.drop = nn.Identity()
    config = {"epochs": 1, "augment": (), "momentum": 0.0, "weight_decay": 0.0, "head_lr_factor": 10.0, "lr": 0.01}
    config["mixed_precision"] = "no"
    data = colours(6)
    found = camtools.finetune(plain(**config), net, data, **options).model
    x = torch.stack([options["transform"](camtools.images.read.read_image(data[i].image))[0] for i in range(6)])
    net.train()
    loss = nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 2, 0, 1, 2]))
    loss.backward()
    expected = net.fc.weight - 0.1 * net.fc.weight.grad
    torch.testing.assert_close(found.fc.weight, expected)
    torch.testing.assert_close(found.conv.weight, net.conv.weight - 0.01 * net.conv.weight.grad)


def test_the_moving_average_is_the_result(net, colours, plain, options):
    config = {"epochs": 1, "batch_size": 24, "ema": 0.75, "momentum": 0.0, "schedule": "constant"}
    plainly = camtools.finetune(plain(**{**config, "ema": 0.0}, weight_decay=0.0), net, colours(), **options).model
    averaged = camtools.finetune(plain(**config, weight_decay=0.0), net, colours(), **options).model
    # torch's average begins with a copy of the first update's weights.
    torch.testing.assert_close(averaged.fc.weight, plainly.fc.weight)
    two = {**config, "batch_size": 12, "weight_decay": 0.0}
    recipe = plain(**two)
    seen = []
    step = recipe.step

    def watch(trainer, batch):
        found = step(trainer, batch)
        seen.append(trainer.inner.fc.weight.detach().clone())
        return found

    recipe.step = watch
    averaged = camtools.finetune(recipe, net, colours(), **options).model
    torch.testing.assert_close(averaged.fc.weight, 0.75 * seen[0] + 0.25 * seen[1])


def test_frozen_statistics_stay(net, colours, plain, options):
    kept = camtools.finetune(plain(freeze_bn=True), net, colours(), **options).model
    assert torch.equal(kept.bn.running_mean, net.bn.running_mean)
    moved = camtools.finetune(plain(), net, colours(), **options).model
    assert not torch.equal(moved.bn.running_mean, net.bn.running_mean)


def test_bf16_and_clipping_run_and_keep_float32_weights(net, colours, plain, options):
    result = camtools.finetune(plain(mixed_precision="bf16", clip_grad=1.0), net, colours(), colours(6), **options)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert result.model(torch.zeros(1, 3, 24, 24)).dtype == torch.float32
    again = camtools.finetune(plain(mixed_precision="no"), net, colours(), **options)  # accelerate forgot the precision
    assert again.settings["mixed_precision"] == "no"


@pytest.mark.parametrize(("has", "found"), [(True, "bf16"), (False, "no")])
def test_the_precision_is_the_processors(net, colours, plain, options, monkeypatch, tmp_path, has, found):
    monkeypatch.setattr("camtools.training.trainer.has_bf16", lambda device: has)
    result = camtools.finetune(plain(epochs=1), net, colours(), **options, out=tmp_path)
    assert result.settings["mixed_precision"] == found
    asked = camtools.finetune(plain(epochs=1, mixed_precision=found), net, colours(), **options)
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), asked.model.parameters(), strict=True))
    monkeypatch.setattr("camtools.training.trainer.has_bf16", lambda device: not has)  # goes on on another machine
    with pytest.raises(InputError, match=f"mixed_precision.*{found}"):
        camtools.finetune(plain(epochs=1), net, colours(), **options, out=tmp_path, resume=True)
    recipe = plain(epochs=1, mixed_precision=found)
    camtools.finetune(recipe, net, colours(), **options, out=tmp_path, resume=True)


def test_a_callers_accelerator_says_the_precision(net, colours, plain, options, monkeypatch):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    monkeypatch.setattr("camtools.training.trainer.has_bf16", lambda device: False)
    Accelerator(mixed_precision="bf16", cpu=True)
    try:
        assert camtools.finetune(plain(epochs=1), net, colours(), **options).settings["mixed_precision"] == "bf16"
    finally:
        AcceleratorState._reset_state(True)


def test_cutmix_and_label_smoothing_reach_the_loss(net, colours, plain, options):
    recipe, seen = plain(augment="flip,cutmix", label_smoothing=0.3, batch_size=24), []
    loss = recipe.loss

    def watch(trainer, batch):
        found = loss(trainer, batch)
        seen.append((batch.labels.clone(), found["loss"].item()))
        return found

    recipe.loss = watch
    logits = []
    recipe.classification_loss = lambda x, y: logits.append(x.detach()) or Recipe.classification_loss(recipe, x, y)
    result = camtools.finetune(recipe, net, colours(), **options)
    assert "accuracy" not in result.history[0]
    for (labels, value), scores in zip(seen, logits, strict=True):
        torch.testing.assert_close(labels.sum(1), torch.ones(24))
        assert ((labels > 0) & (labels < 1)).any()
        smooth = 0.7 * labels + 0.3 / 3
        assert value == pytest.approx(float(-(smooth * scores.log_softmax(1)).sum(1).mean()), rel=1e-5)


def test_other_classes_get_a_fresh_classifier(net, colours, plain, options, capsys):
    data = colours(24, classes=("red", "green", "blue", "none"))
    result = camtools.finetune(plain(), net, data, data, **{**options, "progress": True})
    said = capsys.readouterr().err
    assert "the model has 3 classes, the data 4: a fresh linear classifier takes the old one's place" in said
    assert "1 classes have no training image (none)" in said
    assert result.model.fc.out_features == 4 and result.class_names == ("red", "green", "blue", "none")
    renamed = camtools.finetune(plain(epochs=1), net, colours(classes=("a", "b", "c")), **{**options, "progress": True})
    assert "have other names than the data's" in capsys.readouterr().err
    assert renamed.class_names == ("a", "b", "c")


def test_classes_in_another_order_keep_the_models(net, colours, plain, options, capsys):
    labels = [[(i + 1) % 3] for i in range(24)]  # the square's colour is the class after it
    data = colours(24, classes=("green", "blue", "red"), labels=labels)
    result = camtools.finetune(plain(), net, data, **{**options, "progress": True})
    assert "the model's own classifier is kept" in capsys.readouterr().err
    assert result.class_names == ("red", "green", "blue")


def test_a_subset_and_no_validation(net, colours, plain, options):
    result = camtools.finetune(plain(), net, Subset(colours(), range(12)), **options)
    assert result.best_epoch == 2 and result.settings["images"] == 12
    assert set(result.history[0]) == {"epoch", "lr", "loss", "accuracy"}


def test_validation_now_and_then(net, colours, plain, options):
    result = camtools.finetune(plain(epochs=3, validate_every=2), net, colours(), colours(6), **options)
    assert ["val_accuracy" in row for row in result.history] == [True, False, True, True]


@pytest.mark.parametrize("validated", [False, True])
def test_the_epoch_of_the_lowest_loss_is_the_best(net, colours, plain, options, same, validated):
    recipe = plain(epochs=3, best="loss", schedule="constant")
    loss, val = recipe.loss, colours(3) if validated else None

    def rising(trainer, batch):
        losses = loss(trainer, batch)
        return {**losses, "loss": losses["loss"] + 2 * trainer.epoch}

    recipe.loss = rising
    result = camtools.finetune(recipe, net, colours(), val, **options)
    rows = [row for row in result.history if row["epoch"]]
    assert rows[0]["loss"] < rows[1]["loss"] < rows[2]["loss"] and result.best_epoch == 1
    first = camtools.finetune(plain(epochs=1, schedule="constant"), net, colours(), **options)
    assert same(result.model, first.model)


def test_a_former_name_of_a_metric_still_chooses(plain):
    with pytest.warns(DeprecationWarning, match="'GT-known' is now called 'GT-known@own'"):
        assert plain(best="GT-known").config.best == "GT-known@own"


class Diverges(Recipe):
    """Learns until it doesn't."""

    name = "diverges"

    def build(self, model, classes):
        return nn.Sequential(model.conv, model.pool, nn.Flatten())

    def fast_parameters(self, model):
        return []

    def loss(self, trainer, batch):
        found = super().loss(trainer, batch)
        if trainer.epoch == 1:
            found["loss"] = found["loss"] * float("nan")
        return found


def test_a_loss_that_is_nan_stops_the_run_and_spares_the_checkpoint(net, colours, options, tmp_path):
    recipe = Diverges(Diverges.Config(epochs=3, batch_size=8))
    with pytest.raises(ModelError, match=r"the loss is nan in epoch 2 by batch 3: expected finite numbers. Lower lr"):
        camtools.finetune(recipe, net, colours(), out=tmp_path, **options)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["trainer"]["place"] == [1, 0, 3]
    assert all(torch.isfinite(value).all() for value in state["trainer"]["model"].values())


def test_a_full_disk_says_so_and_spares_the_checkpoint(net, colours, plain, options, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(state, file, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(state, file, *args, **kwargs)

    monkeypatch.setattr(checkpoint_module.torch, "save", full)
    with pytest.raises(InputError, match=r"state.pt cannot be written: .*No space left on device.*--resume"):
        camtools.finetune(plain(), net, colours(), out=tmp_path, **options)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["trainer"]["place"] == [1, 0, 3]
    assert not [path for path in tmp_path.iterdir() if "part" in path.name]


def test_mistakes(net, colours, plain, options, tmp_path):
    several = colours(6, labels=[[0]] * 5 + [[1, 2]])
    with pytest.raises(InputError, match=r"plain learns one class per image, but 005 has 2: .* wildcat or excam"):
        camtools.finetune(plain(), net, several, **options)
    with pytest.raises(InputError, match="002 has no class: expected at least one"):
        camtools.finetune(plain(), net, colours(6, labels=[[0], [1], [], [0], [1], [2]]), **options)
    with pytest.raises(InputError, match="a training image cannot be read: 003: OSError: image file is truncated"):
        camtools.finetune(plain(), net, colours(broken=3), **options)
    with pytest.raises(InputError, match="a training image cannot be read: 003: OSError"):
        camtools.finetune(plain(workers=1), net, colours(broken=3), **options)
    with pytest.raises(InputError, match="best='PxAP' needs a validation set"):
        camtools.finetune(plain(best="PxAP"), net, colours(), **options)
    with pytest.raises(InputError, match="best='f1': expected accuracy, loss, last, or one of MaxBoxAcc"):
        camtools.finetune(plain(best="f1"), net, colours(), colours(), **options)
    with pytest.raises(
        InputError, match="best='PxAP': the validation set has no truth for it, only for GT-known@own, Max"
    ):
        camtools.finetune(plain(best="PxAP"), net, colours(), colours(6), **options)
    with pytest.raises(TargetError, match="of the data's 3 classes are not among the model's 3"):
        camtools.finetune(plain(), net, colours(), colours(6, classes=("x", "y", "z")), **options)
    with pytest.raises(InputError, match="resume needs the run's folder"):
        camtools.finetune(plain(), net, colours(), resume=True, **options)
    with pytest.raises(InputError, match="weights go with a model's name"):
        camtools.finetune(plain(), net, colours(), weights="x.pth", **options)
    with pytest.raises(InputError, match="device='tpu': expected cpu"):
        camtools.finetune(plain(), net, colours(), **{**options, "device": "tpu"})
    from torchvision.transforms import ToTensor

    with pytest.raises(InputError, match="training needs the model's mean, std and input size"):
        camtools.finetune(plain(), net, colours(), **{**options, "transform": ToTensor()})
    camtools.finetune(plain(epochs=1), net, colours(), out=tmp_path, **options)
    with pytest.raises(InputError, match="holds a run already: expected an empty folder"):
        camtools.finetune(plain(epochs=1), net, colours(), out=tmp_path, **options)
    with pytest.raises(InputError, match=r"other settings \(lr was 0.05, is 0.1\)"):
        camtools.finetune(plain(epochs=1, lr=0.1), net, colours(), out=tmp_path, resume=True, **options)
