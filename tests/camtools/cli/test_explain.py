"""`camtools explain`, run in this process on a tiny model of known weights, and once for real."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import camtools
from camtools import Explanation
from camtools.cli import app
from camtools.cli.run import Run
from camtools.datasets.scenes import Scenes, scene_classifier
from camtools.heads import TAP

NETS = '''
import torch
from torch import nn

class Net(nn.Module):
    """Class k is channel k: logits are the means of red, green and blue."""
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None] / 16)
            self.fc.weight.copy_(10 * torch.eye(3))
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))

def colours():
    print("a library that prints")
    return {"model": Net(), "mean": 0.0, "std": 1.0, "size": 32, "class_names": ["red", "green", "blue"]}
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and images: a red square, at rows 8:24 and columns 40:56, on black."""
    (tmp_path / "nets.py").write_text(NETS)
    for name, channel in (("pics/red.png", 0), ("pics/deep/green.png", 1), ("pics/red10.png", 0), ("pics/red9.png", 0)):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[8:24, 40:56, channel] = 255
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, model="nets.py:colours"):
    return CliRunner().invoke(app, ["explain", *map(str, args), "--model", model, "--device", "cpu"])


def names(document):
    return [[found["name"] for found in entry["classes"]] for entry in document["images"]]


def test_json_is_one_document_with_every_image_in_natural_order(place):
    result = run("pics", "--format", "json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [entry["source"] for entry in document["images"]] == [
        "pics/deep/green.png",
        "pics/red.png",
        "pics/red9.png",
        "pics/red10.png",
    ]
    assert names(document) == [["green"], ["red"], ["red"], ["red"]]
    assert document["failed"] == []
    assert document["complete"] is True
    assert document["settings"]["model"] == "nets.py:colours"
    assert "a library that prints" in result.stderr
    assert "4 images in " in result.stderr


def test_boxes_are_in_the_images_own_pixels(place):
    document = json.loads(run("pics/red.png", "--format", "json").stdout)
    x0, y0, x1, y1 = document["images"][0]["classes"][0]["box"]
    assert abs(x0 - 40) <= 6 and abs(y0 - 8) <= 6 and abs(x1 - 56) <= 6 and abs(y1 - 24) <= 6


def test_rotation_in_exif_is_applied_once(place):
    upright = Image.open("pics/red.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise, when shown
    upright.transpose(Image.Transpose.ROTATE_90).save("turned.jpg", exif=exif, quality=95)
    upright.save("straight.jpg", quality=95)
    document = json.loads(run("turned.jpg", "straight.jpg", "--format", "json").stdout)
    boxes = [entry["classes"][0]["box"] for entry in document["images"]]
    assert np.abs(np.subtract(*boxes)).max() <= 1


def test_a_table_by_default(place):
    result = run("pics/red.png", "--top-k", "2")
    assert result.exit_code == 0
    assert "pics/red.png" in result.stdout
    assert "red (0)" in result.stdout
    assert "exact" in result.stdout


def test_results_are_files(place):
    result = run("pics", "--out", "out", "--pipeline", "rcam")
    assert result.exit_code == 0, result.stderr
    folder = place / "out" / "deep" / "green"
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "map.npz", "mask.png", "overlay.jpg"]
    heat = Explanation.load(folder).map
    assert heat.shape == (64, 64)
    assert heat[16, 48] > 0.98 and heat.max() == 1 and heat[48, 16] == 0
    mask = np.asarray(Image.open(folder / "mask.png"))
    assert mask[16, 48] and not mask[48, 16]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["name"], manifest["source"]) == ("green", "pics/deep/green.png")
    whole = json.loads((place / "out" / "manifest.json").read_text())
    assert [entry["folder"] for entry in whole["images"]] == ["deep/green", "red", "red9", "red10"]
    assert not list(place.glob("out/**/.*"))


def test_several_classes_get_a_folder_each(place):
    result = run("pics/red.png", "--out", "out", "--target", "GREEN", "--target", "2")
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in (place / "out" / "red").iterdir()) == ["1-green", "2-blue", "manifest.json"]
    entry = json.loads((place / "out" / "red" / "manifest.json").read_text())["image"]
    assert [found["name"] for found in entry["classes"]] == ["green", "blue"]
    assert "1-green/map.npz" in entry["files"]


def test_one_target_for_all(place):
    document = json.loads(run("pics", "--target", "blue", "--format", "json").stdout)
    assert names(document) == [["blue"]] * 4


def test_batches_do_not_change_anything(place):
    one, all_at_once = (run("pics", "--batch-size", n, "--format", "json", "--top-k", 3).stdout for n in (1, 3))
    assert json.loads(one) == json.loads(all_at_once)
    assert [len(row) for row in names(json.loads(one))] == [3, 3, 3, 3]


def test_a_second_run_replaces_results_and_leaves_no_old_files(place):
    run("pics/red.png", "--out", "out", "--top-k", "3")
    (place / "out" / "red" / "note.txt").write_text("mine")
    assert run("pics/red.png", "--out", "out").exit_code == 0
    found = sorted(p.name for p in (place / "out" / "red").iterdir())
    assert found == ["manifest.json", "map.npz", "mask.png", "note.txt", "overlay.jpg"]


def test_a_result_half_written_leaves_nothing_for_good(place, monkeypatch):
    """Whichever change of a file is the last before a run ends early, the next one's result is all there is."""
    run("pics/red.png", "--out", "whole")
    wanted = {path.name: path.read_bytes() for path in (place / "whole" / "red").iterdir()}
    plain, calls, at = {name: getattr(Path, name) for name in ("replace", "unlink", "rmdir")}, [], 0

    def failing(name):
        def change(path, *args, **options):
            if "red" in path.parts:
                calls.append(name)
                if len(calls) == at:
                    raise OSError("no more")
            return plain[name](path, *args, **options)

        return change

    run("pics/red.png", "--out", "three", "--top-k", "3")
    for at in range(1, 40):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("three", "out")
        calls.clear()
        with monkeypatch.context() as patch:
            for name in plain:
                patch.setattr(Path, name, failing(name))
            done = run("pics/red.png", "--out", "out", "--top-k", "2").exit_code == 0
        run("pics/red.png", "--out", "out")
        found = {path.name: path for path in (place / "out" / "red").iterdir()}
        assert sorted(found) == sorted(wanted), f"after {at - 1} changes"
        assert all(path.read_bytes() == wanted[name] for name, path in found.items())
        if done:
            break
    assert 15 < at < 39


def test_out_inside_the_folder_of_images(place):
    for _ in range(2):
        result = run("pics", "--out", "pics/out", "--format", "json")
        assert len(json.loads(result.stdout)["images"]) == 4


class TestResume:
    def test_leaves_out_what_is_whole(self, place):
        first = json.loads(run("pics", "--out", "out", "--format", "json").stdout)
        before = (place / "out" / "red" / "map.npz").stat().st_mtime_ns
        (place / "out" / "red9" / "mask.png").unlink()
        Image.open("pics/red.png").save("pics/new.png")
        os.utime("pics/red10.png", (time.time() + 10, time.time() + 10))
        result = run("pics", "--out", "out", "--resume", "--format", "json")
        assert result.exit_code == 0, result.stderr
        assert "3 images in" in result.stderr  # new, red9 with its missing file, red10 changed since
        assert "2 done before" in result.stderr
        assert (place / "out" / "red" / "map.npz").stat().st_mtime_ns == before
        second = json.loads(result.stdout)
        assert second["images"][0] == first["images"][0]
        assert [entry["source"] for entry in second["images"]][1] == "pics/new.png"
        assert (place / "out" / "red9" / "mask.png").exists()

    def test_keeps_several_classes(self, place):
        first = json.loads(run("pics", "--out", "out", "--top-k", "2", "--format", "json").stdout)
        second = json.loads(run("pics", "--out", "out", "--top-k", "2", "--format", "json", "--resume").stdout)
        assert first["images"] == second["images"]

    def test_refuses_other_settings(self, place):
        run("pics", "--out", "out")
        result = run("pics", "--out", "out", "--resume", "--pipeline", "rcam")
        assert result.exit_code == 2
        assert "out holds results of other settings (pipeline 'fast', now 'rcam')" in result.stderr

    def test_starts_afresh_where_there_is_nothing(self, place):
        assert run("pics", "--out", "out", "--resume").exit_code == 0

    @pytest.mark.parametrize(
        "changed",
        [["--pipeline", "rcam"], ["--top-k", "2"], ["--target", "green"], ["--threshold", "0.7"], ["--size", "64"]],
    )
    def test_never_mixes_settings(self, place, monkeypatch, changed):
        """A whole run, then one of other settings killed midway, then that one resumed: all results are the last's."""
        run("pics", "--out", "out")
        run("pics", "--out", "wanted", *changed)
        chunk, calls = Run._each, []

        def killed(self, *args):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return chunk(self, *args)

        monkeypatch.setattr(Run, "_each", killed)
        assert run("pics", "--out", "out", "--batch-size", "1", *changed).exit_code == 130
        monkeypatch.setattr(Run, "_each", chunk)
        result = run("pics", "--out", "out", "--resume", *changed)
        assert result.exit_code == 0 and "1 done before" in result.stderr
        mixed, wanted = (json.loads((place / out / "manifest.json").read_text()) for out in ("out", "wanted"))
        assert mixed == wanted
        for file in (place / "wanted").rglob("*.npz"):
            assert file.read_bytes() == (place / "out" / file.relative_to(place / "wanted")).read_bytes()

    def test_other_weights_under_the_same_name_are_other_settings(self, place):
        state = {"conv.weight": torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16, "fc.bias": torch.zeros(3)}
        torch.save(state | {"fc.weight": 10 * torch.eye(3)}, "w.pth")
        run("pics", "--out", "out", "--weights", "w.pth")
        assert "4 done before" in run("pics", "--out", "out", "--weights", "w.pth", "--resume").stderr
        torch.save(state | {"fc.weight": 5 * torch.eye(3)}, "w.pth")
        result = run("pics", "--out", "out", "--weights", "w.pth", "--resume")
        assert "4 images in" in result.stderr and "done before" not in result.stderr

    def test_refuses_a_manifest_of_something_else(self, place):
        (place / "out").mkdir()
        (place / "out" / "manifest.json").write_text("[]")
        result = run("pics", "--out", "out", "--resume")
        assert (result.exit_code, "is not a manifest of camtools" in result.stderr) == (2, True)


def test_files_that_fail_are_listed_and_the_others_done(place):
    (place / "pics" / "broken.png").write_bytes((place / "pics" / "red.png").read_bytes()[:60])
    (place / "pics" / "empty.jpg").touch()
    (place / "out").mkdir()
    (place / "out" / "red9").write_text("a file in the way")
    result = run("pics", "--out", "out", "--format", "json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert len(document["images"]) == 3
    assert [entry["source"] for entry in document["failed"]] == ["pics/broken.png", "pics/empty.jpg", "pics/red9.png"]
    assert json.loads((place / "out" / "manifest.json").read_text())["failed"] == document["failed"]
    assert "Error: pics/empty.jpg: " in result.stderr
    assert "is a file, where the results' folder should be" in result.stderr
    assert "3 failed" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere.jpg"], "There is no file or folder nowhere.jpg"),
        (["pics", "--target", "grey"], "no class named 'grey' among this model's 3. Did you mean 'green'?"),
        (["pics", "--target", "3"], "Class index 3 is out of range: this model's classes are numbered 0 to 2"),
        (["pics", "--target", "red", "--target", "0"], "--target names a class twice"),
        (["pics", "--top-k", "4"], "top_k=4"),
        (["pics", "--pipeline", "rcamm"], "rcam"),
        (["pics", "--device", "nowhere"], "Device 'nowhere' cannot be used"),
        (["pics", "--weights", "none.pth"], "There is no weights file none.pth"),
        (["pics", "--out", "nets.py"], "nets.py cannot be written: it is a file"),
        (["pics", "--class-names", "none.txt"], "The class names cannot be read from none.txt"),
        (["pics", "--std", "0"], "std must be positive"),
        (["pics", "--target", "red", "--top-k", "2"], "give --target or --top-k, not both"),
        (["pics", "--resume"], "needs --out"),
        (["pics", "--mean", "a,b"], "is not a number"),
        (["pics", "--size", "0"], "is not a size"),
        (["pics", "--model-arg", "novalue"], "is not KEY=VALUE"),
        (["pics", "--batch-size", "0"], "--batch-size"),
        (["pics", "--format", "xml"], "--format"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(place, args, words):
    result = CliRunner().invoke(app, ["explain", "--model", "nets.py:colours", *args], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_weights_and_normalisation_from_the_command_line(place):
    eye = torch.eye(3)
    state = {"conv.weight": eye[:, :, None, None].expand(3, 3, 4, 4) / 16, "fc.weight": 10 * eye}
    torch.save(state | {"fc.bias": torch.tensor([0.0, 0.0, 90.0])}, "w.pth")
    result = run("pics/red.png", "--weights", "w.pth", "--mean", "0.5", "--size", "16x32", "--format", "json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["images"][0]["classes"][0]
    assert (found["name"], found["box"], found["map_size"]) == ("blue", None, [4, 8])  # there is no blue: an even map


def test_interrupting_keeps_what_is_done(place, monkeypatch, interrupt):
    interrupt(2)
    result = run("pics", "--out", "out", "--batch-size", "1", "--format", "json")
    assert result.exit_code == 130
    assert "Interrupted." in result.stderr
    document = json.loads(result.stdout)
    assert (len(document["images"]), document["complete"]) == (2, False)
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert manifest.pop("class_names") == ["red", "green", "blue"] and manifest == document
    assert (place / "out" / "deep" / "green" / "manifest.json").exists()
    assert not list(place.glob("out/**/.*"))
    monkeypatch.undo()
    os.chdir(place)
    assert "2 done before" in run("pics", "--out", "out", "--resume").stderr


@pytest.mark.slow
def test_ctrl_c_for_real(place, popen):
    for number in range(300):
        Image.new("RGB", (64, 64), (number % 256, 0, 0)).save(place / "pics" / f"{number}.png")
    command = ["-m", "camtools", "explain", "pics", "--model", "nets.py:colours", "--out", "out", "--batch-size", "1"]
    process = popen(*command)
    deadline = time.time() + 120
    while len(list(place.glob("out/*/manifest.json"))) < 3 and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    document = json.loads((place / "out" / "manifest.json").read_text())
    assert document["complete"] is False
    assert 3 <= len(document["images"]) < 300
    for entry in document["images"]:
        assert Explanation.load(place / "out" / entry["folder"]).map.shape == (64, 64)
    assert not list(place.glob("out/**/.*"))


def test_real_dogs(shared, tmp_path):
    weights = shared / "weights" / "mobilenet_v2_imagenet.safetensors"
    images = sorted((shared / "data" / "ilsvrc_woof" / "test" / "n02086240").iterdir())[:4]
    result = run(
        *images, "--weights", weights, "--out", tmp_path / "out", "--format", "json", model="torchvision/mobilenet_v2"
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert names(document).count(["Shih-Tzu"]) >= 3
    for entry, path in zip(document["images"], images, strict=True):
        found = entry["classes"][0]
        width, height = Image.open(path).size
        assert (found["height"], found["width"], found["exact"]) == (height, width, True)
        x0, y0, x1, y1 = found["box"]
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


class TestThreshold:
    def masks(self, place, *args):
        result = run("pics/red.png", "--out", "out", "--format", "json", *args)
        assert result.exit_code == 0, result.stderr
        mask = np.asarray(Image.open(place / "out" / "red" / "mask.png")) > 0
        return mask, Explanation.load(place / "out" / "red").map.numpy(), json.loads(result.stdout)

    def test_a_number(self, place):
        mask, heat, document = self.masks(place, "--threshold", "0.7")
        np.testing.assert_array_equal(mask, heat > 0.7)
        assert document["settings"]["threshold"] == "0.7"

    def test_the_file_of_an_evaluation(self, place):
        (place / "threshold.json").write_text(json.dumps({"thresholds": {"rcam": {"MaxBoxAcc": 0.9}}}))
        mask, heat, _ = self.masks(place, "--threshold", "threshold.json", "--pipeline", "rcam")
        np.testing.assert_array_equal(mask, heat > 0.9)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("1.5", "theta must be a number, 0 <= theta < 1"),
            ("nowhere.json", "nowhere.json holds no thresholds"),
            ("threshold.json", "has no pipeline 'fast': expected one of 'rcam'"),
        ],
    )
    def test_errors(self, place, text, words):
        (place / "threshold.json").write_text(json.dumps({"thresholds": {"rcam": {"MaxBoxAcc": 0.9}}}))
        result = run("pics/red.png", "--threshold", text)
        assert (result.exit_code, words in " ".join(result.stderr.split())) == (2, True), result.stderr


def test_a_file_of_a_model_with_another_head(tmp_path):
    scene = Scenes("test", 1)[0].image
    scene.save(tmp_path / "scene.png")
    tap = camtools.heads.replace_head(scene_classifier(), TAP(theta=0.3), source="scenes")
    tap.save(tmp_path / "tap.safetensors")
    result = run(
        tmp_path / "scene.png", "--format", "json", "--out", tmp_path / "out", model=str(tmp_path / "tap.safetensors")
    )
    assert result.exit_code == 0, result.stderr
    expected, found = camtools.explain(tap, scene), json.loads(result.stdout)["images"][0]["classes"][0]
    assert (found["name"], found["label"]) == (expected.name, expected.label)
    assert found["score"] == pytest.approx(expected.score, abs=1e-4)
    np.testing.assert_allclose(Explanation.load(tmp_path / "out" / "scene").map, expected.map.numpy(), atol=1e-3)


def test_what_no_library_can_read_is_listed_and_the_others_done(place):
    """A name that is no UTF-8, links in a circle, a strip that a resize would blow up, a damaged file of a plug-in."""
    bad_name = os.fsencode(str(place / "pics")) + b"/\xff.png"
    with open(bad_name, "wb") as file:  # noqa: PTH123 - bytes are no Path
        file.write((place / "pics" / "red.png").read_bytes())
    (place / "pics" / "loop.png").symlink_to(place / "pics" / "loop.png")
    (place / "pics" / "circle").symlink_to(place / "pics")
    Image.new("RGB", (60_000, 1)).save(place / "pics" / "strip.png")
    red = Image.open(place / "pics" / "red.png")
    red.save(place / "pics" / "damaged.avif")
    data = bytearray((place / "pics" / "damaged.avif").read_bytes())
    data[-40:] = bytes(40)
    data[200:210] = bytes(10)
    (place / "pics" / "damaged.avif").write_bytes(data)
    result = run("pics", "--out", "out", "--format", "json")
    assert "Traceback" not in result.stderr and result.exit_code == 1
    document = json.loads(result.stdout)
    assert json.loads((place / "out" / "manifest.json").read_text()).items() >= document.items()
    failed = {entry["source"]: entry["error"] for entry in document["failed"]}
    assert "is no UTF-8" in failed["pics/\\xff.png"] and "cannot be opened" in failed["pics/loop.png"]
    done = {entry["source"] for entry in document["images"]}
    assert {"pics/red.png", "pics/strip.png", "pics/deep/green.png"} <= done
    assert done | set(failed) >= {"pics/damaged.avif"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["pics", "--size", "100000"], "An input of 100000 x 100000 pixels is more than a network and memory take"),
        (["pics", "--class-names", "/dev/zero"], "it is no file of at most 16,777,216 bytes"),
    ],
)
def test_what_would_take_the_machine_is_one_line(place, args, words):
    result = run(*args)
    assert result.exit_code == 2 and words in " ".join(result.stderr.split())


SLOW = """
import os, sys
from camtools.__main__ import main

os.chdir(place)
os.dup2(os.open("stderr", os.O_CREAT | os.O_WRONLY), 2)
sys.argv = "camtools explain pics --model nets.py:colours --out out --batch-size 1".split()
main()
"""


def test_a_second_run_in_the_same_folder_is_told_so_and_a_terminated_one_leaves_nothing(place, start):
    """SIGTERM in the middle of a run: exit code 143, no lock and nothing half-written; meanwhile nobody else writes."""
    slow = "import time\nown = Net.forward\nNet.forward = lambda self, x: (time.sleep(0.3), own(self, x))[1]\n"
    (place / "nets.py").write_text(NETS + slow)
    for number in range(60):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(place / "pics" / f"{number}.png")
    (place / "slow.py").write_text(SLOW)
    process = start(place / "slow.py", place=str(place))
    deadline = time.time() + 120
    while len(list(place.glob("out/*/manifest.json"))) < 2 and time.time() < deadline:
        time.sleep(0.05)
    second = run("pics/red.png", "--out", "out")
    assert second.exit_code == 2 and f"out is being written to by process {process.pid}" in second.stderr
    process.terminate()
    process.join(60)
    assert process.exitcode == 143 and "Traceback" not in (place / "stderr").read_text()
    assert not list(place.glob("out/**/.*"))
    assert run("pics/red.png", "--out", "out").exit_code == 0


def test_names_that_no_file_can_have(place):
    result = run(300 * "a", "--out", "out")
    assert (result.exit_code, result.stderr) == (2, f"Error: File name too long: '{300 * 'a'}'\n")


def test_several_pipelines_have_a_folder_each_and_are_compared(place):
    words = ("pics/red.png", "--target", "red", "--target", "green", "--out", "o", "--save", "overlay,mask")
    result = run(*words, "--pipeline", "cam", "--pipeline", "NWC,IVR(45)", "--format", "json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["images"][0]["classes"]
    assert [(one["pipeline"], one["name"]) for one in found[::2]] == [("cam", "red"), ("cam", "green")]
    folders = sorted(path.parent.relative_to("o/red").as_posix() for path in Path("o").rglob("mask.png"))
    assert folders == ["NWC-IVR-45/0-red", "NWC-IVR-45/1-green", "cam/0-red", "cam/1-green"]
    alone = json.loads(run("pics/red.png", "--target", "red", "--pipeline", "NWC,IVR(45)", "--format", "json").stdout)
    assert found[1]["box"] == alone["images"][0]["classes"][0]["box"]
    assert Image.open("o/red/compare.jpg").width > 3 * 200  # the image, and a column per pipeline
    assert "1 image in" in run(*words, "--pipeline", "cam", "--pipeline", "NWC,IVR(45)").stderr
    again = run(*words, "--pipeline", "cam", "--pipeline", "NWC,IVR(45)", "--resume")
    assert "0 images in" in again.stderr and "1 done before" in again.stderr
    assert run(*words, "--pipeline", "cam").exit_code == 0
    assert sorted(path.name for path in Path("o/red").iterdir()) == ["0-red", "1-green", "manifest.json"]
    refused = run("pics", "--pipeline", "cam", "--pipeline", "rcam", "--export", "coco.json")
    assert refused.exit_code == 2 and "goes with one pipeline" in refused.stderr
    assert run("pics", "--pipeline", "cam", "--pipeline", "cam").exit_code == 2
