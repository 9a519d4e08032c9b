"""Runs that end early: killed at any moment, with other settings, shared by two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import camtools
from camtools.errors import InputError
from camtools.evaluation.store import Store, merged

FILES = ("results.json", "rows.parquet", "run.json", "threshold.json")
SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from conftest import COLOURS, PLAIN, Colours
import camtools

class Slow(Colours):
    def forward(self, x):
        time.sleep({pause})
        return super().forward(x)

for out in {outs!r}:
    result = camtools.evaluate(
        Slow().eval(), "boxfolder:{data}", "cam,rcam", calibrate="boxfolder:{other}", out=out, batch_size=2,
        transform=PLAIN, class_names=COLOURS, bootstrap=30, progress=False,
    )
    sys.stdout.write("DONE %d %r\\n" % (len(result.rows), result.metrics["rcam"]["MaxBoxAccV2"]))
    sys.stdout.flush()
"""


def script(tmp_path, name, *outs, pause=0.0):
    text = SCRIPT.format(
        tests=str(Path(__file__).parent),
        data=tmp_path / "images",
        other=tmp_path / "other",
        outs=[str(tmp_path / out) if out else None for out in outs],
        pause=pause,
    )
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def content(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def drawn(drawing, tmp_path):
    drawing(tmp_path / "images", count=14, broken=3)
    drawing(tmp_path / "other", count=6, seed=9)
    return tmp_path


@pytest.fixture
def whole(drawn):
    """The files of a run that nobody disturbed."""
    done = subprocess.run([sys.executable, script(drawn, "a.py", "whole")], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "DONE 13" in done.stdout
    return content(drawn / "whole")


def test_killed_and_started_again_ends_with_the_same_files(drawn, whole):
    command = [sys.executable, script(drawn, "b.py", "killed", pause=0.3)]
    shards = drawn / "killed" / "shards"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while len(list(shards.glob("*.npz"))) < 3 and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (drawn / "killed" / "results.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.npz")}
    assert 3 <= len(before) < 7
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert content(drawn / "killed") == whole
    kept = [name for name, when in before.items() if (shards / name).stat().st_mtime_ns == when]
    assert len(kept) == len(before)


def test_two_processes_give_the_numbers_of_one(drawn, whole):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, script(drawn, "c.py", "two", None)]  # with and without files
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "DONE" in line]
    assert (len(lines), len(set(lines))) == (4, 1)  # both have the whole result, both times
    assert content(drawn / "two") == whole


class TestInThisProcess:
    def run(self, model, drawn, options, **more):
        given = {**options, "out": drawn / "out", **more}
        return camtools.evaluate(model, f"boxfolder:{drawn / 'images'}", given.pop("pipeline", "cam"), **given)

    def test_nothing_is_done_twice(self, model, drawn, options):
        first = self.run(model, drawn, options)
        assert first.timing["images"] == 14
        (drawn / "out" / "shards" / "00000004-00000007.npz").unlink()
        again = self.run(model, drawn, options)
        assert again.timing["images"] == 5  # four that were lost, and the broken one
        assert again.metrics == first.metrics
        np.testing.assert_array_equal(again.rows.v1, first.rows.v1)
        assert again.failed == first.failed

    def test_an_image_that_was_repaired_counts(self, model, drawn, options):
        assert len(self.run(model, drawn, options).failed) == 1
        shutil.copy(drawn / "images" / "000.png", drawn / "images" / "deep" / "003.png")
        result = self.run(model, drawn, options)
        assert (len(result.rows), result.failed) == (14, [])
        assert result.rows.ids[3] == "deep/003.png"  # in its place

    def test_another_batch_size_goes_on(self, model, drawn, options):
        first = self.run(model, drawn, options)
        for path in sorted((drawn / "out" / "shards").glob("*.npz"))[1:]:
            path.unlink()
        again = self.run(model, drawn, options, batch_size=3)
        assert again.rows.ids == first.rows.ids
        np.testing.assert_allclose(again.rows.own_iou, first.rows.own_iou, atol=1e-5)

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"pipeline": "rcam"}, "pipelines"),
            ({"protocol": "native"}, "protocol 'wsol', now 'native'"),
            ({"limit": 3}, "data"),
            ({"activation": "sigmoid"}, "activation 'softmax', now 'sigmoid'"),
        ],
    )
    def test_refuses_the_folder_of_another_run(self, model, drawn, options, changed, words):
        self.run(model, drawn, options)
        with pytest.raises(InputError, match="holds another run") as caught:
            self.run(model, drawn, options, **changed)
        assert words in str(caught.value) and "--fresh" in str(caught.value)
        assert self.run(model, drawn, options, **changed, fresh=True).timing["images"] > 0

    def test_refuses_other_weights(self, model, drawn, options):
        self.run(model, drawn, options)
        model.fc.bias.data += 1
        with pytest.raises(InputError, match="weights"):
            self.run(model, drawn, options)

    def test_metrics_and_bootstrap_may_change(self, model, drawn, options):
        self.run(model, drawn, options)
        again = self.run(model, drawn, options, metrics=["Pointing"], bootstrap=7)
        assert again.timing["images"] == 1  # the broken one
        assert again.metric_names == ("Pointing",)

    def test_a_broken_shard_is_named(self, model, drawn, options):
        self.run(model, drawn, options)
        (drawn / "out" / "shards" / "00000000-00000003.npz").write_bytes(b"PK")
        with pytest.raises(InputError, match=r"00000000-00000003\.npz is broken .* delete it, and run again"):
            self.run(model, drawn, options)

    def test_refuses_what_is_no_run(self, model, drawn, options):
        self.run(model, drawn, options)
        (drawn / "out" / "run.json").write_text("[]")
        with pytest.raises(InputError, match="is not a run of camtools evaluate"):
            self.run(model, drawn, options)
        (drawn / "out" / "run.json").unlink()
        with pytest.raises(InputError, match=r"holds rows without run\.json"):
            self.run(model, drawn, options)

    def test_a_file_in_the_way(self, model, drawn, options):
        (drawn / "out").write_text("")
        with pytest.raises(InputError, match="cannot be used as the output folder"):
            self.run(model, drawn, options)

    def test_all_images_broken(self, model, drawn, options):
        for path in (drawn / "images").rglob("*.png"):
            path.write_bytes(b"")
        with pytest.raises(InputError, match="no image could be evaluated: 14 failed"):
            self.run(model, drawn, options)


def shard(done, failed=()):
    return {
        "done/index": np.array(done),
        "failed/index": np.array(failed, dtype=np.int64),
        "failed/id": np.array([f"p{i}" for i in failed], dtype=np.str_),
        "failed/error": np.array(["broken"] * len(failed), dtype=np.str_),
        "rows/index": np.repeat(done, 2),
        "rows/value": np.arange(2 * len(done)) + 10 * min(done),
    }


def test_batches_are_merged_in_the_order_of_images():
    tables, failed = merged([shard([4, 3], [9]), shard([1, 2], [5]), shard([5, 4])])
    assert tables["done/index"].tolist() == [1, 2, 3, 4, 5]
    assert tables["rows/index"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert tables["rows/value"].tolist() == [10, 11, 12, 13, 32, 33, 30, 31, 40, 41]
    assert failed == [(9, "p9", "broken")]  # 5 was done later


def test_leftovers_of_a_killed_process_go(tmp_path):
    store = Store(tmp_path, {"a": (1, 2)})
    store.add(shard([1]))
    (tmp_path / "shards" / ".x.npz.1.part").write_bytes(b"")
    again = Store(tmp_path, {"a": [1, 2]})
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000001-00000001.npz"]
    assert again.done() == {1}
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": [1, 2]}
