"""`camtools reproduce`, run in this process with a budget of a few scenes."""

import pytest
from typer.testing import CliRunner

from camtools.cli import app
from camtools_recipes.reproduce import Budget


@pytest.fixture
def camtools(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    tiny = classmethod(lambda cls, seeds: cls(train=6, multi=6, test=4, epochs=1, multi_epochs=1, seeds=seeds))
    monkeypatch.setattr(Budget, "quick", tiny)
    return lambda *words: CliRunner().invoke(app, ["reproduce", *map(str, words)])


def test_a_table_is_printed_and_images_are_written(camtools, tmp_path):
    words = ("scenes", "--quick", "--recipe", "excam", "--seeds", "1", "--device", "cpu", "--out", tmp_path / "runs")
    result = camtools(*words)
    assert result.exit_code == 0, result.output
    table = (tmp_path / "runs" / "table.md").read_text()
    assert result.stdout == table + "\n"
    assert table.startswith("| recipe | read with | top-1 | LocalizationMAP | MaxBoxAccV2 | PxAP |")
    assert "| `wildcat` | sigmoid |" in table and "| `excam` | sigmoid |" in table
    assert "[2/2, " in result.stderr and "excam, seed 0" in result.stderr
    assert (tmp_path / "runs" / "bars.png").exists()
    again = camtools(*words)
    assert again.stdout == result.stdout and "seed 0" not in again.stderr


def test_wrong_use(camtools, tmp_path):
    result = camtools("birds", "--out", tmp_path)
    assert result.exit_code == 2 and "'birds' is unknown, expected scenes" in result.output
    result = camtools("scenes", "--quick", "--recipe", "gapp", "--out", tmp_path / "runs")
    assert result.exit_code == 2 and "expected some of gap, tap" in result.output
    assert not (tmp_path / "runs").exists()
    assert camtools("scenes", "--seeds", "0").exit_code == 2
