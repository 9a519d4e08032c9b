"""Several processes share a fine-tune: two with half the batch each learn what one learns with the whole."""

import csv
import socket

import pytest
import torch
from safetensors.torch import load_file

import camtools
from camtools.datasets.scenes import Scenes

WORDS = ["--model", "scenes", "--data", "scenes:train?n=16", "--epochs", "2", "--device", "cpu"]
SETTINGS = {
    "freeze_bn": True,
    "lr": 0.01,
    "input_size": 64,
    "mixed_precision": "no",
}  # statistics of half a batch would be others
RECIPES = {"gap": {}, "acol": {"conv": 8, "lr": 0.001}}  # the second's loss does not come through trainer.model
SCRIPT = """
import os, sys
import torch
from camtools.cli import app

sys.stderr = open(said, "w", buffering=1)
torch.set_num_threads(1)
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
app(["finetune", *words], standalone_mode=False)
"""


@pytest.fixture(params=RECIPES)
def recipe(request):
    return request.param


@pytest.fixture
def two(recipe, tmp_path, start):
    """The folder of a run of two processes, as torchrun starts them, with four images per step each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = [part for key, value in (SETTINGS | RECIPES[recipe]).items() for part in ("--set", f"{key}={value}")]
    words = [recipe, *WORDS, *settings, "--batch-size", "4", "--out", str(tmp_path / "two")]
    (tmp_path / "run.py").write_text(SCRIPT)
    said = [tmp_path / f"said{rank}" for rank in range(2)]
    processes = [
        start(tmp_path / "run.py", rank=str(rank), port=port, words=words, said=str(said[rank])) for rank in range(2)
    ]
    for process in processes:
        process.join(180)
    texts = [path.read_text() for path in said]
    assert [process.exitcode for process in processes] == [0, 0], texts
    assert "".join(texts).count("epoch 2/2") == 1  # one of them speaks
    return tmp_path / "two"


def curve(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_are_one_with_twice_the_batch(recipe, two, tmp_path):
    def alone(size):
        place = tmp_path / f"one{size}"
        options = {"epochs": 2, "batch_size": size, "out": place, "device": "cpu", "progress": False, **SETTINGS}
        camtools.finetune(recipe, "scenes", Scenes("train", 16), **options | RECIPES[recipe])
        return place

    whole, half = alone(8), alone(4)
    assert curve(two) == pytest.approx(curve(whole), rel=1e-4)
    assert curve(half) != pytest.approx(curve(whole), rel=1e-2)  # so the comparison tells batches apart
    one, other, start = (load_file(place / "last.safetensors") for place in (whole, two, half))
    moved = [torch.dist(one[name], start[name]) for name in one if one[name].is_floating_point()]
    apart = [torch.dist(one[name], other[name]) for name in one if one[name].is_floating_point()]
    assert sum(apart) < 1e-3 * sum(moved)
    camtools.explain(camtools.load_model(str(two / "last.safetensors")).model, Scenes("test", 1)[0].image)
