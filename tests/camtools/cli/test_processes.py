"""`camtools explain` by two processes, as torchrun starts them: they share the images, and leave what one leaves."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = """
import os, sys
import torch
from camtools.cli import app

sys.stdout, sys.stderr = open(said + ".out", "w", buffering=1), open(said + ".err", "w", buffering=1)
torch.set_num_threads(1)
if port:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
app(["explain", *words, "--device", "cpu", "--batch-size", "1", "--save", "mask"])
"""


@pytest.fixture
def explain(tmp_path, start, colours):
    """Return a function that runs `explain` in so many processes, and gives their exit codes, stdout and stderr."""
    (tmp_path / "nets.py").write_text(colours)
    (tmp_path / "run.py").write_text(SCRIPT)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/broken.png").write_bytes(b"no image")
    for number in range(5):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[8:24, 8 * number : 8 * number + 16, number % 3] = 255
        Image.fromarray(pixels).save(tmp_path / f"pics/{number}.png")

    def run(count, *words):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1]) if count > 1 else ""
        words = ["--model", f"{tmp_path}/nets.py:colours", *map(str, words)]
        said = [str(tmp_path / f"said{rank}") for rank in range(count)]
        given = {"port": port, "words": words}
        processes = [start(tmp_path / "run.py", rank=str(rank), said=said[rank], **given) for rank in range(count)]
        for process in processes:
            process.join(120)
        read = [(Path(stem + ".out").read_text(), Path(stem + ".err").read_text()) for stem in said]
        return [(process.exitcode, *texts) for process, texts in zip(processes, read, strict=True)]

    return run


def test_two_processes_leave_what_one_leaves(explain, tmp_path):
    explain(1, tmp_path / "pics", "--out", tmp_path / "one")
    explain(1, tmp_path / "pics/3.png", "--out", tmp_path / "two")
    mask = tmp_path / "two/3/mask.png"
    before = mask.stat().st_mtime_ns
    (code, _, said), (other, silent, _) = explain(2, tmp_path / "pics", "--out", tmp_path / "two", "--resume")
    assert (code, other, silent) == (1, 0, ""), said  # one image is broken; launchers end all when one process fails
    assert "4 images in " in said and "1 done before, 1 failed" in said
    one, two = (json.loads((tmp_path / folder / "manifest.json").read_text()) for folder in ("one", "two"))
    assert two["complete"] and (two["images"], two["failed"]) == (one["images"], one["failed"])
    assert [entry["classes"][0]["name"] for entry in two["images"]] == ["red", "green", "blue", "red", "green"]
    assert mask.stat().st_mtime_ns == before
    for number in range(5):
        assert (tmp_path / f"two/{number}/mask.png").read_bytes() == (tmp_path / f"one/{number}/mask.png").read_bytes()


def test_several_processes_export_afterwards(explain, tmp_path):
    found = explain(2, tmp_path / "pics", "--export", tmp_path / "coco.json")
    assert [code for code, *_ in found] == [2, 2] and "'camtools export-results OUT ...'" in found[0][2]
