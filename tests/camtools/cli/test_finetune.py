"""`camtools finetune`, run in this process on drawn scenes."""

import json

import pytest
from typer.testing import CliRunner

from camtools.cli import app

SMALL = ["--model", "scenes", "--data", "scenes:train?n=16", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture
def camtools(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *words: CliRunner().invoke(app, ["finetune", *map(str, words)])


def test_without_arguments_it_lists_recipes(camtools):
    result = camtools()
    assert result.exit_code == 0
    assert "Plain fine-tune with global average pooling" in result.stdout
    assert all(name in result.stdout for name in ("gap", "tap", "wgap", "minmaxcam"))


def test_settings_are_listed_with_defaults_and_sources(camtools):
    result = camtools("minmaxcam", "--settings")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert (
        "set_size" in text and "S, images of each class in a batch. [Wang et al., BMVC 2021, slides, Table 3]" in text
    )
    assert text.index("set_size") < text.index("epochs")


def test_a_run_and_its_model_in_other_commands(camtools, tmp_path):
    run = tmp_path / "run"
    result = camtools(
        "tap", *SMALL, "--val", "scenes:val?n=4", "--out", run, "--set", "theta=0.2", "--set", "examples=1"
    )
    assert result.exit_code == 0, result.output
    assert "epoch 1/1: loss" in result.stderr and "tap/MaxBoxAccV2" in result.stdout and "before" in result.stdout
    config = json.loads((run / "config.json").read_text())
    assert (config["recipe"], config["theta"], config["batch_size"]) == ("tap", 0.2, 8)
    weights = ["--model", "scenes", "--weights", str(run / "best.safetensors")]
    measured = CliRunner().invoke(
        app,
        ["evaluate", *weights, "--data", "scenes:val?n=4", "--protocol", "native", "--bootstrap", "0"],
    )
    assert measured.exit_code == 0, measured.output
    again = camtools("tap", *SMALL, "--val", "scenes:val?n=4", "--out", run, "--set", "theta=0.2", "--resume")
    assert again.exit_code == 0 and "going on after epoch 1" in again.stderr
    refused = camtools("tap", *SMALL, "--val", "scenes:val?n=4", "--out", run)
    assert refused.exit_code == 2 and "holds a run already" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["minmaxcan", *SMALL, "--out", "x"], "no recipe 'minmaxcan'. Did you mean 'minmaxcam'?"),
        (["gap", *SMALL, "--out", "x", "--set", "epoch=3"], "no setting 'epoch'; did you mean 'epochs'?"),
        (
            ["gap", *SMALL, "--out", "x", "--set", "schedule=fast"],
            "schedule='fast': expected one of cosine, step, constant",
        ),
        (["gap", *SMALL, "--out", "x", "--set", "epochs=3"], "'epochs' is given twice"),
        (["gap", *SMALL, "--out", "x", "--set", "flip"], "'flip' is not KEY=VALUE"),
        (["gap", "--model", "scenes"], "--data, --out"),
        (["gap", *SMALL[:2], "--data", "scenes:train?n=8&objects=3", "--out", "x"], "learns one class per image"),
    ],
)
def test_wrong_use_is_exit_code_2(camtools, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = camtools(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "x").exists()
