"""Peak memory and time of `camtools explain` on images with many pixels, each run in a process of its own.

    python tests/benchmarks/memory.py                      # the camtools that this interpreter imports
    python tests/benchmarks/memory.py --only "one PNG"

Three runs: one small image, for what Python, torch and the model take by themselves; one PNG of 6000 x 6000 equal
pixels, a file of a few kilobytes; and 32 photos of 12 megapixels in one batch. Memory is the largest resident set of
the process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from skimage import data

RUNS = {"one small image": ((451, 300), 1), "one PNG": ((6000, 6000), 1), "32 photos": ((4000, 3000), 32)}


def draw(folder: Path, size: tuple[int, int], count: int) -> int:
    """Write a run's images, and return the bytes of the first."""
    folder.mkdir()
    plain = size[0] == size[1]
    image = Image.new("1", size) if plain else Image.fromarray(data.chelsea()).resize(size)
    for number in range(count):
        image.save(folder / f"{number:02d}.{'png' if plain else 'jpg'}")
    return next(folder.iterdir()).stat().st_size


def explain(folder: Path, pipeline: str) -> tuple[float, float]:
    """Return the peak memory of `camtools explain` in GB, and its seconds."""
    options = ["--model", "torchvision/mobilenet_v2", "--weights", "random", "--pipeline", pipeline]
    command = [sys.executable, "-m", "camtools", "explain", str(folder), *options, "--out", str(folder) + "-out"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{said}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RUNS, help="this run alone")
    parser.add_argument("--pipeline", default="cam")
    options = parser.parse_args()
    print(f"{'run':16}{'pixels':>14}{'file':>12}{'peak memory':>14}{'time':>10}")
    with tempfile.TemporaryDirectory() as place:
        for name, (size, count) in RUNS.items():
            if options.only in (None, name):
                folder = Path(place) / name.replace(" ", "-")
                written = draw(folder, size, count)
                peak, seconds = explain(folder, options.pipeline)
                pixels = f"{size[0]} x {size[1]}"
                print(f"{name:16}{pixels:>14}{written / 1e3:9.1f} kB{peak:11.2f} GB{seconds:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
