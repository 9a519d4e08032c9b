"""What a fully connected CRF costs: torch, exact and reduced, beside pydensecrf, within interleaved rounds.

    OMP_NUM_THREADS=1 python tests/benchmarks/crf.py
    python tests/benchmarks/crf.py --device cuda --exact --repeats 9

One photograph at 224 x 224, one map, 10 iterations, every contender in one process after an untimed call. pydensecrf
runs on one CPU core whatever the device. "IoU" is that of the masks (posterior above 0.5) with the exact ones, or with
pydensecrf's where exact inference is left out. Exact inference takes tens of seconds on a CPU: `--exact` asks for it.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from ratios import interleave
from skimage import data
from skimage.transform import resize
from torch import Tensor

from camtools.steps import CRF, State
from camtools.steps.dense_crf import lattice

PYDENSECRF, EXACT = "pydensecrf", "torch, scale 1"


def main() -> None:
    """Measure and print."""
    wanted = parse()
    state = problem(wanted.size, wanted.device)
    scales = {f"torch, scale {s:g}": s for s in ([1.0] if wanted.exact else []) + wanted.scales}
    steps = {name: CRF(background=wanted.background, backend="torch", scale=s) for name, s in scales.items()}
    if lattice.available():
        steps = {PYDENSECRF: CRF(background=wanted.background, backend="pydensecrf")} | steps
    else:
        print("without pydensecrf: pip install 'camtools[crf]' brings it")
    calls = {name: lambda step=step: step(state) for name, step in steps.items()}
    wait = torch.cuda.synchronize if state.maps.is_cuda else lambda: None
    masks = {name: mask(call()) for name, call in calls.items()}
    seconds = interleave(calls, wanted.repeats, wait)
    reference = EXACT if EXACT in masks else next(iter(masks))
    base = statistics.median(seconds[next(iter(seconds))])
    title = f"{wanted.size} x {wanted.size}, 10 iterations, background {wanted.background:g}, {wanted.device}"
    print(f"{title}, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        middle = statistics.median(times)
        agreement = iou(masks[name], masks[reference])
        print(
            f"{name:18} {1e3 * middle:9.1f} ms  {base / middle:7.2f} x as fast as {next(iter(seconds))}"
            f"  IoU with {reference}: {agreement:.3f}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--background", type=float, default=0.15, help="higher, and the object all but vanishes here")
    parser.add_argument("--scales", type=float, nargs="*", default=[0.5, 0.25, 0.125])
    parser.add_argument("--exact", action="store_true", help="torch at full resolution as well")
    return parser.parse_args()


def problem(size: int, device: str) -> State:
    """Return a cat and a round map over its face."""
    image = resize(data.chelsea(), (size, size), anti_aliasing=True).transpose(2, 0, 1)
    axis = torch.linspace(-1, 1, size)
    distance = (axis[:, None] ** 2 + (axis - 0.1) ** 2).sqrt()
    images = torch.from_numpy(np.ascontiguousarray(image)).float()[None].clamp(0, 1)
    return State(maps=(1 - distance).clamp_min(0)[None, None].to(device), images=images.to(device))


def mask(state: State) -> Tensor:
    return state.maps.cpu() > 0.5


def iou(a: Tensor, b: Tensor) -> float:
    return ((a & b).sum() / (a | b).sum().clamp_min(1)).item()


if __name__ == "__main__":
    main()
