"""Several processes share a fine-tune: two with half the batch each learn what one learns with the whole."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import camtools
from camtools.datasets.scenes import Scenes

WORDS = ["--model", "scenes", "--data", "scenes:train?n=16", "--epochs", "2", "--device", "cpu"]
SETTINGS = {"freeze_bn": True, "lr": 0.01, "input_size": 64}  # statistics of half a batch would be others


@pytest.fixture
def two(tmp_path, repo):
    """The folder of a run of two processes, four images per step each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    command = [*launcher, "-m", "camtools", "finetune", "gap", *WORDS, *settings, "--batch-size", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo)}
    run = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("epoch 2/2") == 1  # one of them speaks
    return tmp_path / "two"


def curve(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_are_one_with_twice_the_batch(two, tmp_path):
    def alone(size):
        place = tmp_path / f"one{size}"
        options = {"epochs": 2, "batch_size": size, "out": place, "device": "cpu", "progress": False, **SETTINGS}
        camtools.finetune("gap", "scenes", Scenes("train", 16), **options)
        return place

    whole, half = alone(8), alone(4)
    assert curve(two) == pytest.approx(curve(whole), rel=1e-4)
    assert curve(half) != pytest.approx(curve(whole), rel=1e-2)  # so the comparison tells batches apart
    one, other, start = (load_file(place / "last.safetensors") for place in (whole, two, half))
    moved = [torch.dist(one[name], start[name]) for name in one if one[name].is_floating_point()]
    apart = [torch.dist(one[name], other[name]) for name in one if one[name].is_floating_point()]
    assert sum(apart) < 1e-3 * sum(moved)
    camtools.explain(camtools.load_model(str(two / "last.safetensors")).model, Scenes("test", 1)[0].image)
