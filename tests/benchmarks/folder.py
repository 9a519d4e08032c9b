"""What explaining a folder costs beside a bare loop that reads with PIL and runs the model: ratios within rounds.

    python tests/benchmarks/folder.py                       # 12-megapixel photos and 227-pixel images, with their sizes
    python tests/benchmarks/folder.py --memory 100000       # the memory over so many tiny images, as a curve

Images are drawn and written to a temporary folder. The bare loop opens each file, resizes it to the model's input,
stacks batches of 32 and runs the unchanged model. `explain` is `camtools explain` without its start: the same `Run`.
Weights are random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ratios import interleave, ratio, table
from speed import resident

import camtools
from camtools.cli.explain import _Explaining
from camtools.exports import Exports
from camtools.images.find import find_jobs
from camtools.processes import Team

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2", help="name in torchvision.models (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=16, help="12-megapixel photos (default: %(default)s)")
    parser.add_argument("--images", type=int, default=96, help="227-pixel images (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pipeline", default="fast")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--memory", type=int, metavar="N", help="print the memory over N images of 64 x 64 instead")
    wanted = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        if wanted.memory:
            memory(Path(place), wanted)
        else:
            for name, count, size in (("12-megapixel photos", wanted.photos, (4032, 3024)),
                                      ("227-pixel images", wanted.images, (227, 227))):  # fmt: skip
                compare(draw(Path(place) / str(size[0]), count, size), name, wanted)


def draw(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write JPEGs of smooth noise with some grain, about as hard to decode as photos."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        grain = random.integers(-9, 10, (size[1], size[0], 1), dtype=np.int16)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=88)
    return folder


def compare(folder: Path, name: str, wanted: argparse.Namespace) -> None:
    model = torchvision_model(wanted.model)
    outs = tempfile.TemporaryDirectory()
    saved = Path(outs.name)
    contenders: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(model, folder),
        "explain": lambda: explain(model, folder, None, wanted),
        "overlay and mask": lambda: explain(model, folder, saved / "some", wanted, ("overlay", "mask")),
        "all saved": lambda: explain(model, folder, saved / "all", wanted),
    }
    for call in contenders.values():
        call()
    seconds = interleave(contenders, wanted.repeats)
    large = "photos" in name
    aims = {"explain": 1.0 if large else 1.1, "overlay and mask": 1.5 if large else 1.25, "all saved": None}
    found = [ratio(f"time: {which} / bare", seconds[which], seconds["bare"], aim) for which, aim in aims.items()]
    files = [file for file in (saved / "all").rglob("*") if file.is_file()]
    count = len(list(folder.iterdir()))
    print(f"{count} {name}, {wanted.model}, {wanted.pipeline}, {wanted.precision}, batch {BATCH}, ", end="")
    print(f"{torch.get_num_threads()} threads; {wanted.repeats} interleaved rounds\n")
    print(table(("ratio", "median", "range", "aim", "met"), [one.row() for one in found]))
    print(f"\nbare {count / np.median(seconds['bare']):.1f} images/s; ", end="")
    print(f"{sum(file.stat().st_size for file in files) / count / 1e6:.2f} MB saved per image; ", end="")
    print(f"largest resident size of all so far {resident('VmHWM') / 2**30:.2f} GiB\n", flush=True)
    outs.cleanup()


def torchvision_model(name: str) -> torch.nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval()


@torch.no_grad()
def bare(model: torch.nn.Module, folder: Path) -> None:
    transform = camtools.Preprocess.imagenet(224, squash=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    files = sorted(folder.iterdir())
    for start in range(0, len(files), BATCH):
        batch = []
        for file in files[start : start + BATCH]:
            pixels = np.asarray(Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
            batch.append((torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - mean) / std)
        model(torch.stack(batch)).softmax(1).max(1)


def explain(
    model: torch.nn.Module,
    folder: Path,
    out: Path | None,
    wanted: argparse.Namespace,
    files: Any = None,
    jobs: Any = None,
) -> _Explaining:
    looks = {"files": files, "overlay_size": 1280, "overlay_format": "jpg"}
    settings = {"pipeline": wanted.pipeline, "target": None, "top_k": None, "threshold": None, "crop": "squash"}
    run = _Explaining({"model": "bench"}, settings, looks, out, False)
    known = {"transform": camtools.Preprocess.imagenet(224), "class_names": None, "device": "cpu", "batch_size": BATCH}
    options = known | {"transform": None, "crop": "squash", "precision": wanted.precision}
    run.explainers = [camtools.Explainer(model, wanted.pipeline, **options)]
    run.targets, run.exports, run.team = None, Exports(()), Team()
    run.over(jobs or find_jobs([str(folder)]), BATCH, 4)
    if run.failed:
        raise SystemExit(f"failed: {run.failed[0]}")
    return run


def memory(place: Path, wanted: argparse.Namespace) -> None:
    """Print the resident size every so often while N names of a few tiny images are explained."""
    from camtools.images.find import Job

    model = torchvision_model(wanted.model)
    files = sorted(draw(place / "tiny", 64, (64, 64)).iterdir())
    jobs = [Job(files[number % len(files)], str(number), str(number)) for number in range(wanted.memory)]
    explain(model, place, None, wanted, jobs=jobs[:BATCH])
    explainer = camtools.Explainer(model, wanted.pipeline, batch_size=BATCH, precision=wanted.precision)
    start, every = time.perf_counter(), max(1, wanted.memory // 20)
    print("images resident_MiB seconds", flush=True)
    for number, _ in enumerate(explainer.stream(job.path for job in jobs), 1):
        if number % every == 0:
            print(number, round(resident("VmRSS") / 2**20), round(time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    sys.exit(main())
