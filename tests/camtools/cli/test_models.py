"""`camtools models` and the command itself."""

import json
import sys

import pytest
from typer.testing import CliRunner

import camtools
from camtools.cli import app
from camtools.cli.common import pick_device
from camtools.cli.options import parse_model_arg, parse_numbers, parse_size
from camtools.datasets.scenes import scene_classifier
from camtools.heads import TAP


def run(*args):
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "300"})


def test_describes_models():
    result = run("models", "--model", "torchvision/squeezenet1_1", "--model", "timm/test_resnet", "--format", "json")
    assert result.exit_code == 0, result.stderr
    squeeze, test = json.loads(result.stdout)
    assert (squeeze["adapter"], squeeze["exact"], squeeze["map"]) == ("torchvision", True, [13, 13])
    assert (squeeze["input"], squeeze["channels"], squeeze["error"]) == ([224, 224], 1000, None)
    assert (test["model"], test["adapter"], test["exact"]) == ("timm/test_resnet", "timm", True)


def test_a_file_of_a_model_with_another_head(tmp_path):
    path = tmp_path / "tap.safetensors"
    camtools.heads.replace_head(scene_classifier(), TAP(theta=0.3), source="scenes").save(path)
    row = json.loads(run("models", "--model", str(path), "--size", "64x96", "--format", "json").stdout)[0]
    assert (row["model"], row["adapter"], row["exact"]) == (str(path), "described", True)
    assert row["head"] == f"{TAP(theta=0.3)!r} pooling + Linear(96, 8)"
    assert (row["input"], row["map"]) == ([64, 96], [8, 12])
    other = tmp_path / "own.safetensors"
    camtools.heads.replace_head(scene_classifier(), TAP(), source="somebody.models:build").save(other)
    result = run("models", "--model", str(other), "--format", "json")
    assert result.exit_code == 1
    assert "which a weights file is not allowed to run" in json.loads(result.stdout)[0]["error"]


def test_a_pattern_and_a_size():
    names = ["torchvision/squeezenet1_0", "torchvision/squeezenet1_1"]
    assert run("models", "torchvision/squeezenet1_[01]").stdout.split() == names
    result = run("models", "torchvision/squeezenet1_[01]", "--describe", "--size", "96x128", "--format", "json")
    rows = json.loads(result.stdout)
    assert [row["model"] for row in rows] == names
    assert [row["map"] for row in rows] == [[5, 7], [5, 7]]


def test_a_table():
    result = run("models", "squeezenet1_1")
    assert result.exit_code == 0
    assert "torchvision/squeezenet1_1" in result.stdout
    assert "13 x 13" in result.stdout
    assert "exact" in result.stdout


def test_without_a_pattern_all_names():
    names = json.loads(run("models", "--format", "json").stdout)
    assert sum(name.startswith("torchvision/") for name in names) == 80
    assert {"timm/resnet50", "torchvision/vit_b_16"} <= set(names)
    assert run("models").stdout.split() == names


def test_a_pattern_builds_nothing(monkeypatch):
    monkeypatch.setattr(sys.modules["camtools.cli.models"], "describe", None)  # calling it would fail
    names = json.loads(run("models", "timm/resnet5*", "--format", "json").stdout)
    assert len(names) > 10 and all(name.startswith("timm/resnet5") for name in names)


def test_models_of_a_users_own(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def pooled():\n"
        "    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 32, 32), *end)\n"
    )
    result = run(
        "models", "--model", f"{tmp_path}/nets.py:pooled", "--model", f"{tmp_path}/nets.py:gone", "--format", "json"
    )
    assert result.exit_code == 1
    pooled, gone = json.loads(result.stdout)
    assert (pooled["adapter"], pooled["exact"], pooled["map"]) == ("generic", True, [7, 7])
    assert "has no function gone" in gone["error"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["models", "nothing/*"], "No model's name matches 'nothing/*'"),
        (["models", "--model", "torchvision/resnet51"], "There is no model torchvision/resnet51. Did you mean"),
        (["models", "--model", "resnet50"], "Did you mean timm/resnet50 or torchvision/resnet50?"),
        (["models", "--size", "big"], "is not a size"),
    ],
)
def test_wrong_use(args, words):
    result = run(*args)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_version_and_help():
    from importlib.metadata import version

    assert run("--version").stdout == f"camtools {version('camtools')}\n"
    for command in ("explain", "models"):
        text = " ".join(run(command, "--help").stdout.split())
        assert "Exit codes: 0 done, 1 some" in text
    assert "--resume" in run("explain", "--help").stdout
    assert run().exit_code == 2


def test_values_from_text():
    assert parse_numbers("0.485, 0.456,0.406") == (0.485, 0.456, 0.406)
    assert parse_size("224") == (224, 224)
    assert parse_size("96x128") == parse_size("96,128") == (96, 128)
    assert dict(map(parse_model_arg, ["a=1", "b=same", "c=(1, 2)", "d=None", "e=x=y"])) == {
        "a": 1,
        "b": "same",
        "c": (1, 2),
        "d": None,
        "e": "x=y",
    }
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


def test_a_size_that_the_model_does_not_take():
    row = json.loads(run("models", "torchvision/vit_b_16", "--describe", "--size", "64", "--format", "json").stdout)[0]
    assert "can't be run on inputs of 3x64x64" in row["error"] and row["error"].endswith("Give another --size")
