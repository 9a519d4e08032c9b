"""Killed at any point and resumed, a run ends with the weights of an uninterrupted one, to the last bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import camtools

SCRIPT = """
import copy, sys, time
import torch
import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.training import Recipe

class Plain(Recipe):
    "Plain."
    name = "plain"
    def build(self, model, classes):
        return copy.deepcopy(model)
    def step(self, trainer, batch):
        time.sleep(float(sys.argv[2]))
        print("step", trainer.epoch, trainer.batch, flush=True)
        return super().step(trainer, batch)

torch.manual_seed(0)
model = SceneNet(widths=(4, 4, 8, 8))
config = Plain.Config(epochs=2, batch_size=6, lr=0.05, ema=0.5, save_every=2, input_size=32, examples=0, log_every=1)
camtools.finetune(Plain(config), model, Scenes("train", 30, size=32), out=sys.argv[1],
                  resume=True, progress=False, device="cpu")
"""


def start(script, folder, pause):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_killed_run_ends_as_if_nothing_had_been(tmp_path, repo, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(repo))
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    killed = start(script, tmp_path / "killed", 0.05)
    for said in killed.stdout:
        if said.strip() == "step 0 3":
            break
    time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    whole, resumed = start(script, tmp_path / "whole", 0), start(script, tmp_path / "killed", 0)
    said = resumed.communicate(timeout=300)[0].split("\n")
    assert len(whole.communicate(timeout=300)[0].split("\n")) == 11
    assert (resumed.returncode, whole.returncode) == (0, 0)
    assert said[0] in ("step 0 2", "step 0 4")  # from the checkpoint after two batches, or the one after four
    one, other = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed"))
    for part in ("model", "averaged"):
        a, b = one["trainer"][part], other["trainer"][part]
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert one["history"] == other["history"] and one["best"]["epoch"] == other["best"]["epoch"]
    for name in ("best.safetensors", "last.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


class Stop(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("at", range(1, 7))
def test_stopped_after_any_batch(net, colours, plain, options, same, tmp_path, at):
    recipe = plain(save_every=1, ema=0.5, accumulate=2)
    whole = camtools.finetune(plain(ema=0.5, accumulate=2), net, colours(), colours(6), **options)
    step, count = recipe.step, []

    def stops(trainer, batch):
        count.append(1)
        if len(count) == at:
            raise Stop
        return step(trainer, batch)

    recipe.step = stops
    with pytest.raises(Stop):
        camtools.finetune(recipe, net, colours(), colours(6), out=tmp_path, **options)
    recipe = plain(save_every=1, ema=0.5, accumulate=2)
    resumed = camtools.finetune(recipe, net, colours(), colours(6), out=tmp_path, resume=True, **options)
    assert same(resumed.model, whole.model) and resumed.history == whole.history


def test_a_finished_run_is_handed_out_again(net, colours, plain, options, same, tmp_path):
    first = camtools.finetune(plain(), net, colours(), colours(6), out=tmp_path, resume=True, **options)
    again = camtools.finetune(plain(log_every=3), net, colours(), colours(6), out=tmp_path, resume=True, **options)
    assert same(first.model, again.model) and first.history == again.history
    assert again.best_epoch == first.best_epoch
