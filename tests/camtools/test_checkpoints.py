"""Weights from files: what is read, what is refused, and what is said then."""

import argparse
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from camtools.checkpoints import class_count, fit, match_prefix, read_checkpoint, write_tensors
from camtools.errors import WeightsError


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin", "w.misleading"])
def test_reads_both_formats_whatever_the_suffix(tmp_path, tiny, name):
    path = tmp_path / name
    save_file(tiny.state_dict(), path) if "safe" in name else torch.save(tiny.state_dict(), path)
    assert same(read_checkpoint(path), tiny.state_dict())


def test_reads_old_style_torch_files(tmp_path, tiny):
    torch.save(tiny.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(str(tmp_path / "old.pth")), tiny.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema", "state_dict_ema", "module", "net"])
def test_opens_nested_checkpoints(tmp_path, tiny, key):
    args = argparse.Namespace(lr=0.1)
    torch.save({"epoch": 3, "args": args, "optimizer": {"state": {}}, key: tiny.state_dict()}, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), tiny.state_dict())


def test_prefers_the_averaged_copy_and_drops_its_bookkeeping(tmp_path, tiny, make_tiny):
    average = {f"module.{k}": v * 2 for k, v in tiny.state_dict().items()} | {"n_averaged": torch.tensor(5)}
    torch.save({"model": tiny.state_dict(), "model_ema": average}, tmp_path / "w.pth")
    read = match_prefix(read_checkpoint(tmp_path / "w.pth"), list(tiny.state_dict()))
    assert same(read, {k: v * 2 for k, v in tiny.state_dict().items()})


def test_an_empty_averaged_copy_is_passed_over(tmp_path, tiny):
    torch.save({"model": tiny.state_dict(), "model_ema": None}, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), tiny.state_dict())


def test_keeps_the_versions_that_old_modules_need(tmp_path):
    model = nn.BatchNorm2d(2)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth")._metadata == model.state_dict()._metadata


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data))])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, save):
    proof = tmp_path / "executed"
    save({"state_dict": Bomb(proof)}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "evil.pth")
    assert "holds Python objects beside tensors" in str(caught.value)
    assert "torch.save(model.state_dict(), FILE)" in str(caught.value)
    assert not proof.exists()


def test_a_whole_pickled_model_is_refused_naming_its_class(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "model.pth")


def test_a_damaged_safetensors_file(tmp_path, tiny):
    save_file(tiny.state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "body.safetensors").write_bytes(whole[:-20])
    (tmp_path / "head.safetensors").write_bytes(whole[:40])
    with pytest.raises(WeightsError, match=r"body\.safetensors is damaged: .*Copy or download it again"):
        read_checkpoint(tmp_path / "body.safetensors")
    with pytest.raises(WeightsError, match=r"head\.safetensors is cut short"):
        read_checkpoint(tmp_path / "head.safetensors")


def test_a_truncated_torch_file(tmp_path, tiny):
    torch.save(tiny.state_dict(), tmp_path / "w.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"cut\.pth cannot be read as a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (
            b"<!DOCTYPE html><html>",
            "neither a safetensors file nor a PyTorch checkpoint: it starts with b'<!DOC",
        ),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert words in str(caught.value)
    assert str(tmp_path / "w.pth") in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"epoch": 1, "best": 0.5}, "holds no state dict, but a dictionary with 'epoch', 'best'"),
        ({}, "holds no state dict, but nothing"),
        ([1, 2], "holds no state dict, but a list"),
    ],
)
def test_checkpoints_without_tensors(tmp_path, data, words):
    torch.save(data, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert words in str(caught.value)


def test_missing_files_and_folders(tmp_path, tiny):
    save_file(tiny.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(
        WeightsError, match=r"no weights file .*weight\.safetensors\. Did you mean .*weights\.safetensors\?"
    ):
        read_checkpoint(tmp_path / "weight.safetensors")
    with pytest.raises(WeightsError, match="is a folder, not a checkpoint"):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="no weights file"):
        read_checkpoint(tmp_path / "nowhere" / "w.pth")


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model._orig_mod.module."]
)
def test_prefixes_come_off(tiny, prefix):
    state = {prefix + k: v for k, v in tiny.state_dict().items()}
    assert same(match_prefix(state, list(tiny.state_dict())), tiny.state_dict())


def test_prefixes_that_are_the_models_own_stay(tiny):
    model = nn.ModuleDict({"model": tiny})
    assert same(match_prefix(model.state_dict(), list(model.state_dict())), model.state_dict())


def test_prefixes_whose_loss_would_merge_two_tensors_stay():
    state = {"model.w": torch.zeros(1), "w": torch.ones(1), "model.b": torch.zeros(1), "model.c": torch.zeros(1)}
    assert match_prefix(state, ["w", "b", "c"]) is state


@pytest.mark.parametrize(("classes", "expected"), [(200, (3, 200)), (3, None)])
def test_class_count(tiny, make_tiny, classes, expected):
    assert class_count(tiny, make_tiny(classes).state_dict()) == expected


def test_class_count_is_not_guessed_from_another_architecture(tiny, make_tiny):
    assert class_count(tiny, make_tiny(5, channels=6).state_dict()) is None
    assert class_count(tiny, make_tiny(3, channels=6).state_dict()) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fit_casts_to_the_models_precision(tiny, make_tiny, dtype):
    state = {k: v.to(dtype) for k, v in tiny.state_dict().items()}
    model = make_tiny()
    nn.init.zeros_(model.fc.weight)
    fit(model, state, source="w.pth", name="tiny")
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, tiny.fc.weight.to(dtype).float())


def test_fit_does_not_need_batch_counters():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    state = OrderedDict((k, v + 1) for k, v in model.state_dict().items() if "num_batches" not in k)
    fit(model, state, source="w.pth", name="bn")
    assert torch.equal(model[1].running_mean, torch.ones(2))


def test_fit_names_the_first_few_misfits(tiny, make_tiny):
    with pytest.raises(WeightsError) as caught:
        fit(tiny, {f"x{i}": torch.zeros(1) for i in range(5)} | {"fc.bias": tiny.fc.bias}, source="w.pth", name="tiny")
    assert str(caught.value) == (
        "w.pth does not fit tiny: 3 keys missing (conv.weight, conv.bias, fc.weight); "
        "5 keys unexpected (x0, x1, x2, ...). Name the model that these weights were made for."
    )
    with pytest.raises(WeightsError) as caught:
        fit(tiny, make_tiny(3, channels=6).state_dict(), source="w.pth", name="tiny")
    assert "3 tensors of another kind (conv.weight (file (6, 3, 4, 4) float32, model (4, 3, 4, 4) float32)" in str(
        caught.value
    )


def test_fit_refuses_quantised_values(tiny):
    state = dict(tiny.state_dict(), **{"fc.bias": torch.zeros(3, dtype=torch.int8)})
    with pytest.raises(WeightsError, match=r"fc\.bias \(file \(3,\) int8, model \(3,\) float32\)"):
        fit(tiny, state, source="w.pth", name="tiny")


def test_written_tensors_are_the_same_bytes_and_read_by_the_library(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = {
        "b": torch.arange(6.0).reshape(2, 3).T,
        "a": torch.tensor([1, 2]),
        "é": torch.zeros(0, dtype=torch.float16),
    }
    metadata = {name: "x" * i for i, name in enumerate(("z", "format", "ä", "a", "q"))}
    first, second = tmp_path / "1.safetensors", tmp_path / "deep" / "2.safetensors"
    write_tensors(first, tensors, metadata)
    write_tensors(second, dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert first.read_bytes() == second.read_bytes()
    read = load_file(first)
    assert set(read) == set(tensors) and all(torch.equal(read[key], tensors[key]) for key in tensors)
    with safe_open(first, "pt") as opened:
        assert opened.metadata() == metadata
    (tmp_path / "plain").touch()
    assert first.stat().st_mode == (tmp_path / "plain").stat().st_mode
