"""Checkpoints as they are written and read, and settings compared."""

from pathlib import Path

import pytest
import torch

from camtools.errors import InputError, WeightsError
from camtools.training.checkpoint import TrainingFolder, read_state

CPU = torch.device("cpu")


def test_what_is_written_is_read(tmp_path):
    state = {"x": torch.arange(3), "n": [1, 2.5], "none": None}
    TrainingFolder(tmp_path / "deep", leads=True).write_checkpoint({}, state)
    found = read_state(tmp_path / "deep" / "state.pt", CPU)
    assert torch.equal(found.pop("x"), torch.arange(3))
    assert found == {"settings": "{}", "n": [1, 2.5], "none": None}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state.pt"]


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "state.pt"
    if content is None:
        torch.save({"weights": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match="is no checkpoint of a fine-tune"):
        read_state(path, CPU)


def test_nothing_is_executed(tmp_path):
    torch.save({"settings": "{}", "path": Path("x")}, tmp_path / "state.pt")
    with pytest.raises(WeightsError, match="is no checkpoint"):
        read_state(tmp_path / "state.pt", CPU)


def test_settings_are_compared_by_value(tmp_path):
    folder = TrainingFolder(tmp_path, leads=True)
    folder.write_checkpoint({"lr": 0.1, "augment": ["flip"]}, {})
    assert folder.checkpoint({"augment": ("flip",), "lr": 0.1}, True, CPU) is not None
    folder.write_checkpoint({"lr": 0.1}, {})
    with pytest.raises(InputError, match=r"lr was 0.1, is 0.2; seed was 'absent', is 3"):
        folder.checkpoint({"lr": 0.2, "seed": 3}, True, CPU)
