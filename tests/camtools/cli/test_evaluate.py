"""`camtools evaluate`, run in this process on a tiny model of known maps, and once on real images."""

import json
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import camtools
from camtools.cli import app
from camtools.datasets.scenes import Scenes, scene_classifier
from camtools.heads import TAP

NETS = '''
import time
import torch
from torch import nn

class Net(nn.Module):
    """Class k is channel k: maps are red, green and blue in 8 x 8 pixels."""
    def __init__(self, pause=0.0):
        super().__init__()
        self.pause = pause
        self.conv = nn.Conv2d(3, 3, 8, stride=8, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8) / 64)
            self.fc.weight.copy_(10 * torch.eye(3) - 1)
            self.fc.bias.zero_()

    def forward(self, x):
        time.sleep(self.pause)
        return self.fc(self.pool(self.conv(x)).flatten(1))

def colours(**options):
    print("a library that prints")
    names = ["red", "green", "blue"]
    return {"model": Net(**options), "mean": 0.0, "std": 1.0, "size": 64, "class_names": names}
'''


def draw(folder, count=9, seed=0):
    generator = np.random.default_rng(seed)
    folder.mkdir()
    lines = ["file,class,x0,y0,x1,y1,width,height"]
    for number in range(count):
        pixels = generator.integers(0, 60, (96, 128, 3), dtype=np.uint8)
        x0, y0, w, h = (int(v) for v in generator.integers(20, 60, 4))
        x1, y1 = min(x0 + w, 128), min(y0 + h, 96)
        pixels[y0:y1, x0:x1, number % 3] = np.linspace(100, 250, x1 - x0)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{['red', 'green', 'blue'][number % 3]},{x0},{y0},{x1},{y1},128,96")
    folder.with_suffix(".csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    draw(tmp_path / "pics")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, data="boxfolder:pics", model="nets.py:colours"):
    given = ["--model", model, "--device", "cpu"] if model else []
    command = ["evaluate", "--data", data, *given, *map(str, args)]
    return CliRunner().invoke(app, command, env={"COLUMNS": "300"})


def test_the_table(place):
    result = run("--pipeline", "cam,rcam", "--bootstrap", "20")
    assert result.exit_code == 0, result.stderr
    for word in ("MaxBoxAccV2", "Top-1 Loc", "cam", "rcam", "95 %"):
        assert word in result.stdout
    assert "a library that prints" in result.stderr and "9 images in " in result.stderr
    assert "images/s" in result.stderr


def test_json_is_one_document(place):
    result = run("--pipeline", "cam", "--pipeline", "NWC,IVR(45)", "--format", "json", "--bootstrap", "5")
    document = json.loads(result.stdout)
    assert list(document["metrics"]) == ["cam", "NWC,IVR(45)"]
    value = document["metrics"]["NWC,IVR(45)"]["MaxBoxAcc"]
    assert value["delta"] == pytest.approx(value["value"] - document["metrics"]["cam"]["MaxBoxAcc"]["value"])
    assert (document["images"], document["rows"], document["failed"]) == (9, 9, [])
    assert document["settings"]["data"]["data"] == "boxfolder:pics"


def test_the_files(place):
    draw(place / "other", seed=5)
    result = run(
        *("--pipeline", "cam,rcam", "--calibrate", "boxfolder:other", "--out", "out", "--protocol", "native"),
        *("--bootstrap", "5", "--format", "json"),
    )
    assert result.exit_code == 0, result.stderr
    found = {path.name for path in (place / "out").iterdir()}
    assert {"results.json", "rows.parquet", "run.json", "threshold.json", "shards", "calibration", "table.md"} <= found
    assert {"curve-MaxBoxAcc.png", "sheet-cam.png", "changes-rcam.png"} <= found
    assert json.loads((place / "out" / "results.json").read_text()) == json.loads(result.stdout)
    chosen = json.loads((place / "out" / "threshold.json").read_text())["thresholds"]
    document = json.loads(result.stdout)
    assert chosen["rcam"]["MaxBoxAcc"] == document["metrics"]["rcam"]["MaxBoxAcc"]["calibrated_threshold"]
    plain = run("--out", "plain", "--no-report")
    assert plain.exit_code == 0 and not list((place / "plain").glob("*.png"))


def test_the_page_has_what_was_expected_beside_what_was_predicted(place):
    """The data set calls the first image's class another, so that the model is wrong."""
    table = place / "pics.csv"
    table.write_text(table.read_text().replace("0.png,red", "0.png,blue"))
    assert run("--report", "page.html", "--pipeline", "cam,rcam", "--protocol", "native").exit_code == 0
    text = (place / "page.html").read_text("utf-8")
    cards = [json.loads(card) for card in re.findall(r'class="card">(.*)</script>', text)]
    assert [card["file"] for card in cards] == [f"{number}.png" for number in range(9)]
    panels = [(panel["name"], panel["role"], panel["pipeline"]) for panel in cards[0]["panels"]]
    assert [panel[:2] for panel in panels] == 2 * [("blue", "expected"), ("red", "predicted")]
    assert len({panel[2] for panel in panels}) == 2
    first = table.read_text().splitlines()[1].split(",")[2:6]
    assert cards[0]["expected"] == [{"label": 2, "name": "blue", "boxes": [[float(side) for side in first]]}]
    assert [panel["name"] for panel in cards[1]["panels"]] == ["green", "green"]
    result = run("--report", "page.html", "--scoremaps", "maps", model=False)
    assert result.exit_code == 2 and "--report" in result.stderr


def test_images_that_fail_are_listed(place):
    (place / "pics" / "4.png").write_bytes(b"no image")
    result = run("--out", "out", "--format", "json")
    assert result.exit_code == 1
    assert [entry["id"] for entry in json.loads(result.stdout)["failed"]] == ["4.png"]
    assert "Error: 4.png: " in result.stderr and "1 failed" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_run_goes_on_or_starts_over(place):
    first = run("--out", "out", "--no-report", "--format", "json")
    again = run("--out", "out", "--no-report", "--format", "json")
    assert first.stdout == again.stdout
    assert "0 images in" in again.stderr
    other = run("--out", "out", "--pipeline", "rcam")
    assert other.exit_code == 2 and "out holds another run" in other.stderr
    assert run("--out", "out", "--pipeline", "rcam", "--fresh", "--no-report").exit_code == 0


def test_maps_from_files(place):
    for name in ("one", "two"):
        (place / name).mkdir()
        for number in range(8):
            np.save(place / name / f"{number}.png.npy", np.random.default_rng(number).random((7, 7)))
    given = ("--scoremaps", "one", "--scoremaps", "b=two", "--out", "out", "--format", "json")
    result = run(*given, model=None)
    assert result.exit_code == 1, result.stderr
    document = json.loads(result.stdout)
    assert list(document["metrics"]) == ["one", "b"]
    assert [entry["id"] for entry in document["failed"]] == ["8.png"]
    assert (place / "out" / "sheet-b.png").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--pipeline", "camm"], "Did you mean 'cam'"),
        (["--pipeline", "NWC;import os"], "is neither presets nor steps"),
        (["--protocol", "other"], "protocol='other': expected 'wsol' or 'native'"),
        (["--metric", "acc"], "expected some of MaxBoxAcc"),
        (["--metric", "PxAP"], "no truth for PxAP"),
        (["--calibrate", "boxfolder:nowhere"], "'nowhere' is not a folder"),
        (["--out", "nets.py"], "nets.py cannot be written: it is a file"),
        (["--device", "nowhere"], "Device 'nowhere' cannot be used"),
        (["--activation", "tanh"], "'tanh' is not one of 'softmax', 'sigmoid', 'none'"),
        (["--scoremaps", "pics"], "give --model or --scoremaps, one of them"),
        (["--class-names", "none.txt"], "The class names cannot be read from none.txt"),
        (["--limit", "0"], "--limit"),
        (["--mean", "a"], "is not a number"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(place, args, words):
    result = run(*args)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_more_wrong_use(place):
    result = run(data="nowhere")
    assert (result.exit_code, "'nowhere' is no data set" in result.stderr) == (2, True)
    result = run("--scoremaps", "pics", "--scoremaps", "pics", model=None)
    assert (result.exit_code, "two folders are named 'pics'" in result.stderr) == (2, True)
    (place / "names.txt").write_text("a\nb\nc\n")
    result = run("--class-names", "names.txt")
    assert (result.exit_code, "3 of the data's 3 classes are not among the model's 3" in result.stderr) == (2, True)


STOPPED = """
import json, multiprocessing, os, signal, sys, time
from pathlib import Path
import pandas
from camtools.__main__ import main
from camtools.model.adapter import installed_adapters

os.chdir(folder)
installed_adapters()

def command(name, *arguments):
    for number, suffix in (1, "stdout"), (2, "stderr"):
        os.dup2(os.open(f"{name}.{suffix}", os.O_CREAT | os.O_WRONLY), number)
    sys.argv = ["camtools", "evaluate", "--data", "boxfolder:pics", "--model", "nets.py:colours", "--device", "cpu"]
    sys.argv += ["--batch-size", "1", "--model-arg", "pause=0.3", "--out", name, *arguments]
    main()

def start(*arguments):
    process = multiprocessing.get_context("fork").Process(target=command, args=arguments)
    process.start()
    return process

running = {
    "killed": (3, signal.SIGKILL, start("killed", "--pipeline", "cam,rcam", "--bootstrap", "9")),
    "interrupted": (2, signal.SIGINT, start("interrupted")),
}
codes, deadline = {}, time.time() + 120
while running and time.time() < deadline:
    time.sleep(0.02)
    for name, (batches, number, process) in list(running.items()):
        if len(list(Path(name, "shards").glob("[0-9]*.rows.parquet"))) >= batches or not process.is_alive():
            if process.is_alive():
                os.kill(process.pid, number)
            process.join()
            codes[name] = process.exitcode
            del running[name]
Path("codes.json").write_text(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, start):
    """A folder with two evaluations that were stopped after a few batches, and their exit codes."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "nets.py").write_text(NETS)
    draw(folder / "pics")
    (folder / "stopped.py").write_text(STOPPED)
    process = start(folder / "stopped.py", folder=str(folder))
    process.join(300)
    assert process.exitcode == 0
    return folder, json.loads((folder / "codes.json").read_text())


def test_killed_and_started_again(stopped, monkeypatch):
    place, codes = stopped
    monkeypatch.chdir(place)
    assert codes["killed"] == -signal.SIGKILL
    assert 3 <= len(list(place.glob("killed/shards/[0-9]*.rows.parquet"))) < 9
    shared = ("--batch-size", "1", "--pipeline", "cam,rcam", "--bootstrap", "9")
    again, whole = run(*shared, "--out", "killed"), run(*shared, "--out", "whole")
    assert again.exit_code == whole.exit_code == 0, again.stderr
    assert again.stdout == whole.stdout
    found, expected = (
        {
            path.relative_to(top).as_posix(): path.read_bytes()
            for path in top.rglob("*")
            if "shards" not in path.parts and path.is_file()
        }
        for top in (place / "killed", place / "whole")
    )
    assert found == expected
    assert len(found) >= 8


def test_interrupting_keeps_what_is_done(stopped, monkeypatch):
    place, codes = stopped
    monkeypatch.chdir(place)
    stdout, stderr = ((place / f"interrupted.{stream}").read_text() for stream in ("stdout", "stderr"))
    assert (codes["interrupted"], stdout) == (130, ""), stderr
    assert "Interrupted." in stderr and "Traceback" not in stderr
    again = re.search(r"(\d) images? in", run("--batch-size", "1", "--out", "interrupted").stderr)
    assert again and int(again[1]) <= 7


def test_real_images(shared):
    data = f"boxfolder:{shared}/data/ilsvrc_val/test"
    weights = shared / "weights" / "mobilenet_v2_imagenet.safetensors"
    given = ("--weights", weights, "--limit", "16", "--pipeline", "cam,rcam", "--format", "json", "--bootstrap", "9")
    result = run(*given, data=data, model="torchvision/mobilenet_v2")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["settings"]["classes"] == "by index"
    assert 40 < document["metrics"]["cam"]["MaxBoxAccV2"]["value"] < 90
    cub = f"boxfolder:{shared}/data/cub/test"
    refused = run("--weights", weights, data=cub, model="torchvision/mobilenet_v2")
    assert refused.exit_code == 2
    assert "200 of the data's 200 classes are not among the model's 1000" in refused.stderr
    assert os.environ.get("WORLD_SIZE") is None


def test_a_file_of_a_model_with_another_head(tmp_path):
    path, scenes = tmp_path / "tap.safetensors", Scenes("test", 4)
    tap = camtools.heads.replace_head(scene_classifier(), TAP(theta=0.3), source="scenes")
    tap.save(path)
    words = ("--protocol", "native", "--bootstrap", "0", "--format", "json")
    result = run(*words, data="scenes:test?n=4", model=str(path))
    assert result.exit_code == 0, result.stderr
    expected = camtools.evaluate(tap, scenes, "cam", protocol="native", bootstrap=0, progress=False)
    found = json.loads(result.stdout)
    assert found["settings"]["model"] == "HeadedModel" and found["images"] == 4
    assert found["metrics"]["cam"].keys() == expected.metrics["cam"].keys()
    for name, value in expected.metrics["cam"].items():
        assert found["metrics"]["cam"][name]["value"] == pytest.approx(value.value)


def test_a_threshold_of_ones_own_is_that_of_every_pipeline(place):
    low, high = (
        run("--pipeline", "cam;NWC", "--threshold", at, "--bootstrap", 0, "--format", "json") for at in (0.1, 0.9)
    )
    assert low.exit_code == high.exit_code == 0, low.stderr
    low, high = (json.loads(result.stdout)["metrics"] for result in (low, high))
    assert low.keys() == high.keys() == {"cam", "NWC"}
    for name in low:
        assert low[name]["MaxBoxAccV2"] == high[name]["MaxBoxAccV2"]  # at the best threshold, whatever the own one
    assert low["cam"] != high["cam"]
    refused = run("--threshold", 0.3, "--scoremaps", "maps", model=None)
    assert refused.exit_code == 2 and "needs --model" in refused.stderr
