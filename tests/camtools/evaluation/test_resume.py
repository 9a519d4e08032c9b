"""Runs that end early: killed at any moment, with other settings, shared by two processes."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import camtools
from camtools.errors import InputError
from camtools.evaluation.rows import Ranked, Rows
from camtools.evaluation.store import Shard, Store, merged
from camtools.files import locked, replacing

FILES = ("results.json", "rows.parquet", "run.json", "threshold.json")
SCRIPT = """
import json, multiprocessing, os, socket, sys, time
from pathlib import Path
folder = Path(folder)
for number, name in (1, "stdout"), (2, "stderr"):
    os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
sys.path.insert(0, here)
import torch
torch.set_num_threads(1)
import pyarrow.parquet
from conftest import COLOURS, PLAIN, Colours
import camtools
import camtools.evaluation
import camtools.metrics.contours

class Slow(Colours):
    pause = 0.0

    def forward(self, x):
        time.sleep(self.pause)
        return super().forward(x)

def evaluate(*outs, pause=0.0):
    Slow.pause = pause
    for out in outs:
        result = camtools.evaluate(
            Slow().eval(), f"boxfolder:{folder}/images", "cam,rcam", calibrate=f"boxfolder:{folder}/other",
            out=out and folder / out, batch_size=2, transform=PLAIN, class_names=COLOURS, bootstrap=30, progress=False,
        )
        # On a line of its own: gloo prints to the same pipe.
        words = " ".join(map(str, [*outs, "DONE", len(result.rows), result.metrics["rcam"]["MaxBoxAccV2"]]))
        os.write(1, f"\\n{words}\\n".encode())

def evaluate_with_another(rank, port, *outs):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}  # as torchrun sets them
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    evaluate(*outs)

def start(function, *arguments, **options):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, kwargs=options)
    process.start()
    return process

# What is imported late is imported here, once; the others are forked.
evaluate("whole")
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
both = [start(evaluate_with_another, rank, port, "two", None) for rank in (0, 1)]
for process in both:
    process.join()
killed = start(evaluate, "killed", pause=0.3)
shards, deadline = folder / "killed" / "shards", time.time() + 120
while len(list(shards.glob("[0-9]*.parquet"))) < 3 and time.time() < deadline:
    time.sleep(0.02)
killed.kill()
killed.join()
finished = (folder / "killed" / "results.json").exists()
before = {path.name: path.stat().st_mtime_ns for path in shards.glob("[0-9]*.parquet")}
again = start(evaluate, "killed")
again.join()
codes = {"both": [process.exitcode for process in both], "killed": killed.exitcode, "again": again.exitcode}
(folder / "codes.json").write_text(json.dumps({**codes, "finished": finished, "before": before}))
"""


def content(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def draw_both(drawing, folder):
    drawing(folder / "images", count=14, broken=3)
    drawing(folder / "other", count=6, seed=9)
    return folder


@pytest.fixture
def drawn(drawing, tmp_path):
    return draw_both(drawing, tmp_path)


@pytest.fixture(scope="module")
def runs(drawing, tmp_path_factory, start):
    """A folder with runs: "two" by two processes, "killed" and gone on with, and "whole" that nobody disturbed.

    With it what they printed, and what came of the processes.
    """
    folder = draw_both(drawing, tmp_path_factory.mktemp("runs"))
    (folder / "runs.py").write_text(SCRIPT)
    process = start(folder / "runs.py", folder=str(folder), here=str(Path(__file__).parent))
    process.join(300)
    assert process.exitcode == 0, (folder / "stderr").read_text()
    return folder, (folder / "stdout").read_text().splitlines(), json.loads((folder / "codes.json").read_text())


def test_killed_and_started_again_ends_with_the_same_files(runs):
    folder, printed, codes = runs
    assert any(line.startswith("whole DONE 13") for line in printed)
    assert codes["killed"] == -signal.SIGKILL and not codes["finished"]
    assert 3 <= len(codes["before"]) < 7
    assert codes["again"] == 0
    assert content(folder / "killed") == content(folder / "whole")
    shards = folder / "killed" / "shards"
    kept = [name for name, when in codes["before"].items() if (shards / name).stat().st_mtime_ns == when]
    assert len(kept) == len(codes["before"])


def test_two_processes_give_the_numbers_of_one(runs):
    folder, printed, codes = runs
    assert codes["both"] == [0, 0]
    lines = [line for line in printed if line.startswith("two None DONE")]  # with and without files
    assert (len(lines), len(set(lines))) == (4, 1)  # both have the whole result, both times
    assert content(folder / "two") == content(folder / "whole")


class TestInThisProcess:
    def run(self, model, drawn, options, **more):
        given = {**options, "out": drawn / "out", **more}
        return camtools.evaluate(model, f"boxfolder:{drawn / 'images'}", given.pop("pipeline", "cam"), **given)

    def test_nothing_is_done_twice(self, model, drawn, options):
        first = self.run(model, drawn, options)
        assert first.timing["images"] == 14
        (drawn / "out" / "shards" / "00000004-00000007-4.rows.parquet").unlink()
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
        for path in sorted((drawn / "out" / "shards").glob("*.parquet"))[1:]:
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
        (drawn / "out" / "shards" / "00000000-00000003-4.rows.parquet").write_bytes(b"PK")
        with pytest.raises(
            InputError, match=r"00000000-00000003-4\.rows\.parquet is broken .* delete it, and run again"
        ):
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

    def test_a_batch_that_begins_and_ends_with_failures_keeps_its_others(self, model, drawn, options):
        paths = [drawn / "images" / "000.png", drawn / "images" / "deep" / "003.png"]
        paths[0].write_bytes(b"")
        assert len(self.run(model, drawn, options).failed) == 2
        again = self.run(model, drawn, options)  # tries images 0 and 3 of the first four again
        assert (again.timing["images"], len(again.rows), len(again.failed)) == (2, 12, 2)
        for path in paths:
            shutil.copy(drawn / "images" / "002.png", path)
        assert self.run(model, drawn, options).rows.index.tolist() == list(range(14))


def shard(done, failed=()):
    """A batch with two rows per image, numbered by `labels`."""
    count = 2 * len(done)
    rows = Rows(
        index=np.repeat(done, 2),
        ids=[f"p{i}" for i in np.repeat(done, 2)],
        labels=np.arange(count) + 10 * min(done),
        names=["a"] * count,
        sizes=np.full((count, 2), 8),
        truth=[np.zeros((0, 4), dtype=np.float32)] * count,
        v1=np.zeros((1, count, 256), dtype=np.float32),
        v2=np.zeros((1, count, 256), dtype=np.float32),
        pointing=np.zeros((1, count), dtype=np.float32),
    )
    return Shard(list(done), [(i, f"p{i}", "broken") for i in failed], rows)


def test_batches_are_merged_in_the_order_of_images():
    measured, failed = merged([shard([4, 3], [9]), shard([1, 2], [5]), shard([5, 4])], ("cam",))
    assert measured.rows.index.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert measured.rows.labels.tolist() == [10, 11, 12, 13, 32, 33, 30, 31, 40, 41]
    assert measured.rows.ids == [f"p{i}" for i in measured.rows.index]
    assert failed == [(9, "p9", "broken")]  # 5 was done later


def test_detections_are_merged_with_their_rows():
    def ranked(images):
        index = np.array(images)
        return Ranked(index, index, index.astype(np.float32), index > 0, index, index)

    parts = [replace(shard([4, 3]), detections={"cam": {"boxes": ranked([4, 3, 3])}}), shard([1])]
    parts.append(replace(shard([2, 4]), detections={"cam": {"boxes": ranked([2, 4]), "points": ranked([2])}}))
    measured, _ = merged(parts, ("cam",))
    assert measured.detections["cam"]["boxes"].image.tolist() == [2, 3, 3, 4]
    assert measured.detections["cam"]["points"].true_label.tolist() == [2]


def test_leftovers_of_a_killed_process_go(tmp_path):
    store = Store(tmp_path, ("cam",), {"a": (1, 2)})
    store.add(shard([1]))
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "shards" / "x.parquet") as partial:
        partial.write_bytes(b"")
        shutil.copy(partial, tmp_path / "left")
        raise KeyboardInterrupt
    shutil.copy(tmp_path / "left", partial)
    with locked(tmp_path):  # as `evaluate` does
        again = Store(tmp_path, ("cam",), {"a": [1, 2]})
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000001-00000001-1.rows.parquet"]
    assert again.done() == {1}
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": [1, 2]}


def test_a_batch_without_rows_is_done(tmp_path):
    store = Store(tmp_path, ("cam",), {})
    store.add(Shard([4], [(5, "p5", "broken")]))
    (found,) = Store(tmp_path, ("cam",), {}).read()
    assert (found.done, found.failed, found.rows, found.detections) == ([4], [(5, "p5", "broken")], None, {})
    assert store.done() == {4}
