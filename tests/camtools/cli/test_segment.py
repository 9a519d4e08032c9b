"""`camtools segment`, run in this process on a tiny model of known weights."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from camtools.cli import app
from camtools.drawing.colours import voc_colour

NETS = '''
import camtools
import torch
from torch import nn

class Net(nn.Module):
    """Class k is channel k: logits are 40 times the means of red, green and blue, less 1."""
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])
            self.fc.weight.copy_(40 * torch.eye(3))
            self.fc.bias.fill_(-1)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))

def colours():
    print("a library that prints")
    as_it_is = camtools.Preprocess(input_size=(64, 64), resize=None, mean=(0, 0, 0), std=(1, 1, 1))
    return {"model": Net(), "transform": as_it_is, "class_names": ["red", "green", "blue"]}
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and images 64 x 64: squares at rows 8:24 (red) and 40:56 (blue); one is black."""
    (tmp_path / "nets.py").write_text(NETS)
    for name, channels in (("pics/both.png", (0, 2)), ("pics/deep/red.png", (0,)), ("pics/black.png", ())):
        pixels = np.zeros((64, 64, 3), np.uint8)
        for channel in channels:
            pixels[8 + 16 * channel : 24 + 16 * channel, 40:56, channel] = 255
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args):
    base = ["--model", "nets.py:colours", "--device", "cpu", "--activation", "sigmoid"]
    return CliRunner().invoke(app, ["segment", *map(str, args), *base], env={"COLUMNS": "300"})


def document(*args):
    result = run(*args, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def names(found):
    return {entry["source"]: [one["name"] for one in entry["classes"]] for entry in found["images"]}


def test_results_are_files(place):
    found = document("pics", "--out", "out")
    assert names(found) == {"pics/black.png": [], "pics/both.png": ["red", "blue"], "pics/deep/red.png": ["red"]}
    assert (found["failed"], found["complete"], found["settings"]["command"]) == ([], True, "segment")
    red, blue = found["images"][1]["classes"]
    assert (red["box"], red["pixels"], red["value"]) == ([40, 8, 56, 24], 256, 1)
    assert (blue["box"], blue["pixels"], blue["value"]) == ([40, 40, 56, 56], 256, 3)
    folder = place / "out" / "both"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "mask.png", "overlay.jpg"]
    mask = Image.open(folder / "mask.png")
    assert (mask.mode, mask.convert("RGB").getpixel((41, 41))) == ("P", voc_colour(3))
    values = np.asarray(mask)
    assert (values[8:24, 40:56] == 1).all() and (values[40:56, 40:56] == 3).all() and (values > 0).sum() == 512
    assert not np.asarray(Image.open(place / "out" / "black" / "mask.png")).any()
    assert json.loads((place / "out" / "manifest.json").read_text()).items() >= found.items()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["classes"] == [red, blue]
    assert (manifest["height"], manifest["source"]) == (64, "pics/both.png")
    assert not list(place.glob("out/**/.*"))


def test_a_table_by_default(place):
    result = run("pics")
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if "pics/" in line or "blue" in line]
    assert len(rows) == 4
    assert "background only" in rows[0]
    assert all(words in rows[1] for words in ("pics/both.png", "red (0)", "6.2%", "40, 8, 56, 24"))
    assert "blue (2)" in rows[2] and "pics" not in rows[2]
    assert "a library that prints" in result.stderr and "3 images in " in result.stderr
    assert not (place / "out").exists()


def test_classes_of_the_users_choice(place):
    found = document("pics", "--class", "BLUE", "--class", "0")
    assert set(map(tuple, names(found).values())) == {("blue", "red")}
    assert [one["pixels"] for one in found["images"][0]["classes"]] == [0, 0]
    assert [one["pixels"] for one in found["images"][2]["classes"]] == [0, 256]
    assert set(map(tuple, names(document("pics", "--min-score", "0")).values())) >= {("red", "blue", "green")}


def test_settings_reach_the_segmenter(place):
    grey = np.asarray(Image.open("pics/deep/red.png")).copy()
    grey[40:56, 8:24, 0] = 102  # .4 of the maximum
    Image.fromarray(grey).save("grey.png")

    def red(*args):
        (one,) = document("grey.png", *args)["images"][0]["classes"]
        return one["pixels"], round(one["background"], 4)

    assert red("--background", "0.5") == (256, 0.5)
    assert red("--background", "0.35") == (512, 0.35)
    assert red("--background", "pipeline", "--pipeline", "cam") == (512, 0.2)
    document("grey.png", "--crf", "--out", "out")
    manifest = json.loads((place / "out" / "grey" / "manifest.json").read_text())
    assert manifest["crf"].startswith("CRF(") and manifest["pipeline"] == "rcam"


class TestResume:
    def test_leaves_out_what_is_whole(self, place):
        first = document("pics", "--out", "out")
        before = (place / "out" / "both" / "mask.png").stat().st_mtime_ns
        (place / "out" / "deep" / "red" / "mask.png").unlink()
        os.utime("pics/black.png", (time.time() + 10, time.time() + 10))
        result = run("pics", "--out", "out", "--resume", "--format", "json")
        assert result.exit_code == 0, result.stderr
        assert "2 images in" in result.stderr and "1 done before" in result.stderr
        assert (place / "out" / "both" / "mask.png").stat().st_mtime_ns == before
        assert (place / "out" / "deep" / "red" / "mask.png").exists()
        again = json.loads(result.stdout)
        assert again == first

    @pytest.mark.parametrize(
        ("args", "words"),
        [(["--background", "0.4"], "background None, now 0.4"), (["--crf"], "crf False, now True")],
    )
    def test_refuses_other_settings(self, place, args, words):
        run("pics", "--out", "out")
        result = run("pics", "--out", "out", "--resume", *args)
        assert result.exit_code == 2
        assert f"out holds results of other settings ({words})" in result.stderr

    def test_refuses_results_of_explain(self, place):
        explained = CliRunner().invoke(app, ["explain", "pics", "--model", "nets.py:colours", "--out", "out"])
        assert explained.exit_code == 0, explained.stderr
        result = run("pics", "--out", "out", "--resume")
        assert result.exit_code == 2
        assert "command None, now 'segment'" in result.stderr


def test_files_that_fail_are_listed_and_the_others_done(place):
    (place / "pics" / "empty.jpg").touch()
    result = run("pics", "--out", "out", "--format", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [entry["source"] for entry in found["failed"]] == ["pics/empty.jpg"]
    assert len(found["images"]) == 3
    assert "Error: pics/empty.jpg: " in result.stderr and "1 failed" in result.stderr


def test_interrupting_keeps_what_is_done(place, monkeypatch, interrupt):
    interrupt(1)
    result = run("pics", "--out", "out", "--batch-size", "1", "--format", "json")
    assert result.exit_code == 130
    assert "Interrupted." in result.stderr
    found = json.loads(result.stdout)
    assert (len(found["images"]), found["complete"]) == (1, False)
    monkeypatch.undo()
    os.chdir(place)
    assert "1 done before" in run("pics", "--out", "out", "--resume").stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere.jpg"], "There is no file or folder nowhere.jpg"),
        (["pics", "--class", "grey"], "no class named 'grey' among this model's 3. Did you mean 'green'?"),
        (["pics", "--class", "red", "--class", "0"], "names a class twice: these are classes [0, 0]"),
        (["pics", "--class", "red", "--min-score", "0.5"], "give --class or --min-score, not both"),
        (["pics", "--min-score", "1"], "min_score=1.0: expected a number, 0 <= min_score < 1"),
        (["pics", "--background", "1"], "background=1.0: expected a number, 0 < background < 1"),
        (["pics", "--background", "low"], "'low' is neither a number such as 0.3 nor 'pipeline'"),
        (["pics", "--pipeline", "rcamm"], "rcam"),
        (["pics", "--activation", "relu"], "--activation"),
        (["pics", "--resume"], "needs --out"),
        (["pics", "--device", "nowhere"], "Device 'nowhere' cannot be used"),
        (["pics", "--out", "nets.py"], "nets.py cannot be written: it is a file"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(place, args, words):
    command = ["segment", "--model", "nets.py:colours", *args]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_threshold_steps_and_crop_are_those_of_explain(place):
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, :96, 0] = np.arange(96) * 2  # a ramp: red up to 190 at column 95
    Image.fromarray(pixels).save("ramp.png")

    def shares(*words):
        return document("ramp.png", "--class", "red", *words)["images"][0]["classes"][0]["pixels"]

    low, high = (shares("--pipeline", "CAM,MinMax", "--threshold", at, "--crop", "squash") for at in (0.25, 0.75))
    assert abs(low - 64 * 72) <= 2 * 64 and abs(high - 64 * 24) <= 2 * 64
    assert shares("--threshold", 0.25, "--crop", "squash") > shares("--threshold", 0.25, "--crop", "model")
    wrong = run("ramp.png", "--threshold", 0.2, "--background", 0.3)
    assert wrong.exit_code == 2 and "give --threshold or --background, not both" in wrong.stderr
