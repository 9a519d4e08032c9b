"""Killed at any point and resumed, a run ends with the weights of an uninterrupted one, to the last bit."""

import signal
import time

import pytest
import torch

import camtools

SCRIPT = """
import copy, time
from pathlib import Path
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
        time.sleep(pause)
        with open(said, "a") as file:
            file.write(f"step {trainer.epoch} {trainer.batch}\\n")
        return super().step(trainer, batch)

torch.set_num_threads(1)
torch.manual_seed(0)
model = SceneNet(widths=(4, 4, 8, 8))
config = Plain.Config(epochs=2, batch_size=6, lr=0.05, ema=0.5, save_every=2, input_size=32, examples=0, log_every=1)
camtools.finetune(Plain(config), model, Scenes("train", 30, size=32), out=folder,
                  resume=True, progress=False, device="cpu")
"""


def test_a_killed_run_ends_as_if_nothing_had_been(tmp_path, start):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def run(name, said, pause=0.0):
        (tmp_path / said).touch()
        return start(script, folder=str(tmp_path / name), said=str(tmp_path / said), pause=pause)

    killed, deadline = run("killed", "first", 0.05), time.monotonic() + 120
    while "step 0 3" not in (tmp_path / "first").read_text():
        assert killed.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.02)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    (tmp_path / "killed" / "config.json").unlink()  # is written again
    processes = run("whole", "all"), run("killed", "rest")
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / "all").read_text().splitlines()) == 10
    said = (tmp_path / "rest").read_text().splitlines()
    assert said[0] in ("step 0 2", "step 0 4")  # from the checkpoint after two batches, or the one after four
    one, other = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed"))
    for part in ("model", "averaged"):
        a, b = one["trainer"][part], other["trainer"][part]
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert one["history"] == other["history"] and one["best"]["epoch"] == other["best"]["epoch"]
    for name in ("best.safetensors", "last.safetensors", "metrics.csv", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


class Stop(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def whole(make_net, colours, plain, options):
    """A run that nothing stopped."""
    return camtools.finetune(plain(ema=0.5, accumulate=2), make_net(), colours(), colours(6), **options)


@pytest.mark.parametrize("at", range(1, 7))
def test_stopped_after_any_batch(net, colours, plain, options, same, whole, tmp_path, at):
    recipe = plain(save_every=1, ema=0.5, accumulate=2)
    step, count = recipe.step, []

    def stops(trainer, batch):
        count.append(1)
        if len(count) == at:
            raise Stop
        return step(trainer, batch)

    recipe.step = stops
    with pytest.raises(Stop):
        camtools.finetune(recipe, net, colours(), colours(6), out=tmp_path, **options)
    recipe = plain(save_every=1, ema=0.5, accumulate=2, examples=0)
    resumed = camtools.finetune(recipe, net, colours(), colours(6), out=tmp_path, resume=True, **options)
    assert same(resumed.model, whole.model) and resumed.history == whole.history


def test_a_finished_run_is_handed_out_again(net, colours, plain, options, same, tmp_path):
    first = camtools.finetune(plain(examples=0), net, colours(), colours(6), out=tmp_path, resume=True, **options)
    again = camtools.finetune(
        plain(log_every=3, examples=0), net, colours(), colours(6), out=tmp_path, resume=True, **options
    )
    assert same(first.model, again.model) and first.history == again.history
    assert again.best_epoch == first.best_epoch
