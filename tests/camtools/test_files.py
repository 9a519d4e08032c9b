"""Files are written whole or not at all."""

from pathlib import Path

import pytest
import torch

from camtools.errors import InputError
from camtools.files import remove_partial, replacing, write_json, write_text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("write failed"), KeyError("x")])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    expected = KeyError if isinstance(error, KeyError) else InputError
    with pytest.raises(expected) as caught, replacing(path) as partial:
        partial.write_text("ne")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    if expected is InputError:
        assert f"{path} cannot be written: {error}" in str(caught.value) and "--resume" in str(caught.value)


def test_a_writer_sees_the_suffix(tmp_path):
    with replacing(tmp_path / "a.png") as partial:
        assert (partial.suffix, partial.parent) == (".png", tmp_path)
        partial.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(InputError, match="No space left on device"), replacing(tmp_path / "a") as partial:
        partial.symlink_to("/dev/full")
        with partial.open("wb") as file:
            torch.save({"x": torch.zeros(100_000)}, file)
    assert not list(tmp_path.iterdir())


def test_json_is_readable_text(tmp_path):
    write_json({"name": "Kürbis"}, tmp_path / "deep" / "a.json")
    assert (tmp_path / "deep" / "a.json").read_text(encoding="utf-8") == '{\n "name": "Kürbis"\n}\n'


def test_what_a_killed_process_left_can_be_removed(tmp_path):
    write_text(tmp_path / "a.txt", "kept")
    with pytest.raises(InputError), replacing(tmp_path / "b.txt") as partial:
        (tmp_path / partial.name.replace("b.txt", "c.txt")).write_text("half")
        raise OSError
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
