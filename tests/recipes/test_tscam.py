"""`tscam`: what it learns, the authors' settings, and how a saved model is read on the command line."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import camtools
from camtools.cli import app
from camtools.datasets import Scenes
from camtools.errors import ModelError
from camtools.explanation import Explanation
from camtools_recipes.tscam import TscamConfig, TscamRecipe

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
OPTIONS = {"progress": False, "device": "cpu", "augment": ()}


@pytest.fixture(scope="module")
def data():
    return Scenes("train", 12, size=64)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of three steps on the same images, its start, and its folder."""
    torch.manual_seed(1)
    start = camtools.load_model("timm/vit_tiny_patch16_224", "random", size=32, model_args=TINY)
    before = {name: value.clone() for name, value in start.model.state_dict().items()}
    folder = tmp_path_factory.mktemp("tscam")
    result = camtools.finetune("tscam", start, data, out=folder, epochs=3, lr=1e-3, **OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in start.model.state_dict().items())
    return result, before, folder


def test_a_step_lowers_the_loss_and_moves_every_part(trained):
    result, before, _ = trained
    losses = [row["loss"] for row in result.history]
    assert losses[0] > losses[1] > losses[2] and losses[0] == pytest.approx(np.log(8), abs=0.5)
    assert result.model.head.conv.weight.shape == (8, 24, 3, 3)
    moved = result.model.body.state_dict()
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "norm.weight"):
        assert not torch.equal(moved[name], before[name])


def test_a_saved_model_on_the_command_line(trained, data, tmp_path):
    result, _, folder = trained
    file, image = str(folder / "best.safetensors"), tmp_path / "a.png"
    data[0].image.save(image)
    other, expected = camtools.explain(result.model, data[0].image, pipeline=result.pipeline, target=[2, 3])
    assert [type(step).__name__ for step in result.pipeline] == ["HeadMaps", "MinMax", "FixedThreshold"]
    command = ["explain", str(image), "--model", file, "--device", "cpu", "--pipeline", "HeadMaps", "--target", "3"]
    run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    np.testing.assert_allclose(Explanation.load(tmp_path / "out" / "a").map, expected.map, atol=1e-3)
    assert not torch.allclose(other.map, expected.map, atol=1e-2)
    command = ["evaluate", "--data", "scenes:test?n=4", "--model", file, "--device", "cpu", "--protocol", "native"]
    run = CliRunner().invoke(app, [*command, "--pipeline", "HeadMaps", "--format", "json", "--bootstrap", "0"])
    assert run.exit_code == 0, run.output
    own = camtools.evaluate(result.model, Scenes("test", 4), "HeadMaps", protocol="native", bootstrap=0)
    printed = json.loads(run.stdout)["metrics"]["HeadMaps"]
    assert printed["MaxBoxAccV2"]["value"] == pytest.approx(own.metrics["HeadMaps"]["MaxBoxAccV2"].value)


def test_the_authors_settings():
    config = TscamConfig()
    assert (config.optimizer, config.lr, config.weight_decay, config.head_lr_factor) == ("adamw", 5e-5, 0.05, 1)
    assert (config.epochs, config.batch_size, config.schedule, config.step_epochs) == (60, 128, "step", 30)
    assert config.augment == ("crop", "flip") and config.input_size is None and config.resize is None
    assert TscamRecipe(TscamConfig(theta=0.3)).pipeline.steps[-1].theta == 0.3


def test_another_model_is_refused(data):
    with pytest.raises(ModelError, match=r"SceneNet: this head reads a class token's attention"):
        camtools.finetune("tscam", "scenes", data, **OPTIONS)
    model = camtools.load_model("timm/vit_tiny_patch16_224", "random", size=32, model_args=TINY)
    with pytest.raises(ModelError, match=r"conv=16: this head reads the tokens"):
        camtools.finetune("tscam", model, data, conv=16, **OPTIONS)
