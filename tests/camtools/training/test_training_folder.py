"""What a run's folder holds, and which process writes it."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from camtools.errors import InputError
from camtools.training.checkpoint import TrainingFolder, beside

CPU = torch.device("cpu")


def fill(folder):
    folder.write_settings({"lr": 0.5})
    folder.write_model("best.safetensors", nn.Linear(2, 1), {"bank.txt": lambda path: path.write_text("bank")})
    folder.write_checkpoint({"lr": 0.5}, {"history": [{"epoch": 0.0}]})
    folder.write("examples.png", Image.new("RGB", (4, 4)).save)


def test_files_and_what_they_are_called(tmp_path):
    folder = TrainingFolder(tmp_path / "run", leads=True)
    assert folder.written and "examples" not in folder.paths({})
    fill(folder)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best.bank.txt", "best.safetensors", "config.json", "examples.png", "state.pt"]
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"lr": 0.5}
    assert load_file(tmp_path / "run" / "best.safetensors").keys() == {"weight", "bias"}
    paths = folder.paths({"bank.txt": print})
    assert paths["bank"].read_text() == "bank" and paths["examples"].name == "examples.png"
    assert set(paths) == {"best", "last", "state", "csv", "tensorboard", "bank", "config", "examples"}
    assert beside("last.safetensors", "bank.txt") == "last.bank.txt"


@pytest.mark.parametrize(("inside", "leads"), [(True, False), (False, True)])
def test_others_write_nothing(tmp_path, inside, leads):
    folder = TrainingFolder(tmp_path / "run" if inside else None, leads)
    fill(folder)
    assert not folder.written and list(tmp_path.iterdir()) == []
    assert bool(folder.paths({})) == inside and folder.checkpoint({}, True, CPU) is None


def test_a_run_goes_on_with_the_same_settings_only(tmp_path):
    folder = TrainingFolder(tmp_path, leads=True)
    assert folder.checkpoint({"lr": 0.5}, False, CPU) is None
    fill(folder)
    assert folder.checkpoint({"lr": 0.5}, True, CPU)["history"] == [{"epoch": 0.0}]
    with pytest.raises(InputError, match=r"holds a run already: .*--resume"):
        folder.checkpoint({"lr": 0.5}, False, CPU)
    with pytest.raises(InputError, match=r"lr was 0.5, is 0.1"):
        folder.checkpoint({"lr": 0.1}, True, CPU)
