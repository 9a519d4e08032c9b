"""Files are written whole or not at all."""

import json
import os
import signal
import stat
from pathlib import Path

import pytest
import torch

from camtools.errors import InputError
from camtools.files import LOCK, clear, locked, parse_json, replacing, write_json, write_text


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
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_files_have_the_mode_that_the_umask_says(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as partial:
        partial.touch(mode=0o600)
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_folders_made_for_a_file_that_fails_are_gone(tmp_path):
    with pytest.raises(InputError), replacing(tmp_path / "a" / "b" / "c.txt"):
        raise OSError("full")
    assert not list(tmp_path.iterdir())


HOLD = """
import sys, time
from pathlib import Path
from camtools.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_run_until_it_ends_or_is_killed(tmp_path, popen):
    folder = tmp_path / "out"
    holder = popen("-c", HOLD, folder)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match=rf"out is being written to by process {holder.pid} on .*: two runs would mix"),
        locked(folder),
    ):
        pass
    (folder / "deep").mkdir()
    (folder / "deep" / ".camtools-stage").mkdir()
    (folder / ".part-1-2.x.json").write_text("half")
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate(timeout=60)
    with locked(folder):
        assert (folder / LOCK).exists()
    assert [path.name for path in folder.rglob("*")] == ["deep"], "taken over, and the killed run's leavings are gone"


def test_a_run_that_writes_nothing_locks_nothing():
    with locked(None):
        pass


def test_a_document_nested_too_deeply_is_damaged_like_any_other():
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    with pytest.raises(json.JSONDecodeError, match="nested too deeply"):
        parse_json("[" * 50_000)
