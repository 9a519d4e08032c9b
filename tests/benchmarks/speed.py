"""What `explain` costs beside a bare forward, and beside other libraries: ratios within interleaved rounds.

    python tests/benchmarks/speed.py
    python tests/benchmarks/speed.py --device cuda --dtype bfloat16 --channels-last --batch 256

Every contender gets the same batch of ready tensors and the same model, in one process, each after an untimed forward,
and gives its own usual result: explain (pipeline rcam; in bf16 too, where the device has it, and with batches channels
last in either) masks and boxes at the images' resolution, pytorch-grad-cam
maps at that resolution, torch-cam maps at the features'. The other libraries are called as their documentation says,
for each image's likeliest class; where one is not installed its rows are left out, and the command that brings it is
named. Weights are random.

Peak memory is what one call adds to what the process holds before it (after a call with one image, which loads and
caches what stays): on the CPU the largest resident size, each in fresh processes; on a GPU what torch allocates.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from ratios import Ratio, interleave, ratio, table
from torch import Tensor, nn

import camtools
from camtools.model.device import has_bf16

Call = Callable[[], object]

FORWARD, EXPLAIN, ALL_MAPS = "bare forward", "explain", "maps of all classes"
BF16 = "explain in bf16"
GRAD_CAM, TORCH_CAM = "pytorch-grad-cam GradCAM", "torch-cam GradCAM"
PACKAGES = {GRAD_CAM: "grad-cam", TORCH_CAM: "torchcam"}
MIB = 2**20


def main() -> int:
    """Measure and print; 1 if an aim was missed."""
    wanted = parse()
    if wanted.memory_of:
        print(resident_peak(wanted))
        return 0
    model, batch = build(wanted)
    contenders, notes = usable(prepare(model, batch))
    wait = torch.cuda.synchronize if on_gpu(wanted) else lambda: None
    clock = time.process_time if wanted.clock == "cpu" else time.perf_counter
    seconds = interleave(contenders, wanted.repeats, wait, between(model, contenders[FORWARD]), clock)
    if on_gpu(wanted):
        peaks = {name: [allocated_peak(contenders[name])] for name in (FORWARD, EXPLAIN)}
    else:
        peaks = fresh_peaks(wanted)
    found = list(ratios(seconds, peaks, gpu=on_gpu(wanted)))
    print(f"{wanted.model}, {tuple(batch.shape)}, {wanted.dtype}{', channels last' * wanted.channels_last}, ", end="")
    print(torch.cuda.get_device_name() if on_gpu(wanted) else f"CPU with {torch.get_num_threads()} threads", end="")
    print(f"; torch {torch.__version__}; {wanted.repeats} interleaved rounds.\n")
    print(
        table(
            ("", f"{wanted.clock} seconds (median)", "images/s"), [pace(n, s, len(batch)) for n, s in seconds.items()]
        ),
        end="\n\n",
    )
    print(table(("ratio", "median", "range", "aim", "met"), [one.row() for one in found]), end="\n\n")
    sizes = (f"{name} {statistics.median(values) / MIB:.0f} MiB" for name, values in peaks.items())
    print(f"Peak memory of one call: {', '.join(sizes)}.")
    print("".join(f"{note}\n" for note in notes), end="")
    return int(any(one.met is False for one in found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="name in torchvision.models (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of an image in pixels (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--channels-last", action="store_true", help="memory format of model and batch")
    parser.add_argument("--repeats", type=int, default=7, help="rounds, and processes for memory (default: 7 and 3)")
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own)")
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time, for busy machines; use 1 thread"
    )
    parser.add_argument("--memory-of", choices=(FORWARD, EXPLAIN), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if min(wanted.batch, wanted.size, wanted.repeats) < 1:
        parser.error("--batch, --size and --repeats take numbers of at least 1")
    if wanted.clock == "cpu" and on_gpu(wanted):
        parser.error("--clock cpu does not see what a GPU does")
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    return wanted


def on_gpu(wanted: argparse.Namespace) -> bool:
    return wanted.device.startswith("cuda")


def build(wanted: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """Return the model, in eval mode, and a batch that is ready for it."""
    torch.manual_seed(0)
    place: dict[str, Any] = {"device": wanted.device, "dtype": getattr(torch, wanted.dtype)}
    place["memory_format"] = torch.channels_last if wanted.channels_last else torch.contiguous_format
    model = torchvision.models.get_model(wanted.model, weights=None).eval().to(**place)
    return model, torch.randn(wanted.batch, 3, wanted.size, wanted.size).to(**place)


def between(model: nn.Module, forward: Call) -> Call:
    """Return what makes all contenders start alike: without gradients, and after an untimed forward.

    Otherwise whoever comes after a library that keeps the whole graph pays for memory that it gave back to the system.
    """

    def call() -> None:
        model.zero_grad(set_to_none=True)
        forward()

    return call


def prepare(model: nn.Module, batch: Tensor) -> dict[str, Callable[[], Call]]:
    """Return, by name, what makes a contender ready and gives the call that is timed."""

    def forward() -> Call:
        return torch.no_grad()(lambda: model(batch))

    def explain() -> Call:
        explainer = camtools.Explainer(model, "rcam", batch_size=len(batch))
        return lambda: explainer(batch)

    def explain_bf16() -> Call:
        explainer = camtools.Explainer(model, "rcam", batch_size=len(batch), precision="bf16")
        return lambda: explainer(batch)

    def all_maps() -> Call:
        cam_model = camtools.wrap(model)
        return torch.no_grad()(lambda: cam_model.maps(batch))

    def grad_cam() -> Call:
        from pytorch_grad_cam import GradCAM

        layer = features_layer(model)

        def call() -> object:
            with GradCAM(model=model, target_layers=[layer]) as cam:
                return cam(input_tensor=batch, targets=None)  # None: each image's likeliest class

        return call

    def torch_cam() -> Call:
        from torchcam.methods import GradCAM

        layer = features_layer(model)

        def call() -> object:
            with GradCAM(model, layer) as extractor:
                scores = model(batch)
                return extractor(scores.argmax(1).tolist(), scores)

        return call

    own: dict[str, Callable[[], Call]] = {FORWARD: forward, EXPLAIN: explain, ALL_MAPS: all_maps}
    if batch.dtype == torch.float32 and has_bf16(batch.device):
        own[BF16] = explain_bf16
    return {**own, GRAD_CAM: grad_cam, TORCH_CAM: torch_cam}


def features_layer(model: nn.Module) -> nn.Module:
    """Return the layer whose output camtools uses, for those who must be told."""
    decomposition = camtools.wrap(model).decomposition
    if decomposition.side != "output":
        raise ValueError(f"its features are no layer's output, but the {decomposition.side} of {decomposition.layer}")
    return model.get_submodule(decomposition.layer)


def usable(prepared: Mapping[str, Callable[[], Call]]) -> tuple[dict[str, Call], list[str]]:
    """Make the contenders ready and warm them up; leave out other libraries' that cannot run, and say why."""
    contenders, notes = {}, []
    for name, make in prepared.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = make()
                call()
        except ImportError as error:
            if name not in PACKAGES:
                raise
            notes.append(f'Left out: {name} ({error}). To bring it: pip install -e ".[bench]"')
        except Exception as error:
            if name not in PACKAGES:
                raise
            notes.append(f"Left out: {name} {version(PACKAGES[name])} fails here: {error}")
        else:
            contenders[name] = call
            if name in PACKAGES:
                notes.append(f"{name}: {PACKAGES[name]} {version(PACKAGES[name])}.")
    return contenders, notes


def ratios(seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, list[float]], *, gpu: bool) -> Iterator[Ratio]:
    """Yield what is aimed at: on the CPU times, on a GPU images per second."""
    forward, explain = seconds[FORWARD], seconds[EXPLAIN]
    if gpu:
        yield ratio("images/s: explain / bare forward", forward, explain, 0.8, "at least")
    else:
        yield ratio("time: explain / bare forward", explain, forward, 0.75)
    if BF16 in seconds:
        yield ratio("time: explain in bf16 / bare forward", seconds[BF16], forward, None if gpu else 0.35)
    yield ratio("time: maps of all classes / bare forward", seconds[ALL_MAPS], forward, None if gpu else 1.15)
    for other, aim in ((GRAD_CAM, 4.0), (TORCH_CAM, 1.9)):
        if other in seconds:
            yield ratio(f"time: {other} / explain", seconds[other], explain, None if gpu else aim, "at least")
    yield ratio("peak memory: explain / bare forward", peaks[EXPLAIN], peaks[FORWARD], 1.2)


def pace(name: str, seconds: Sequence[float], images: int) -> tuple[str, ...]:
    middle = statistics.median(seconds)
    return (name, f"{middle:.4f}", f"{images / middle:.1f}")


def allocated_peak(call: Call) -> float:
    """Return the most bytes that torch holds on the GPU during a call beyond those before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    del result
    return float(torch.cuda.max_memory_allocated() - before)


def fresh_peaks(wanted: argparse.Namespace) -> dict[str, list[float]]:
    """Return the peaks of forward and explain, in bytes, measured in fresh processes that take turns."""
    peaks: dict[str, list[float]] = {FORWARD: [], EXPLAIN: []}
    for _ in range(min(3, wanted.repeats)):
        for name, values in peaks.items():
            command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--memory-of", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            values.append(float(done.stdout))
    return peaks


def resident_peak(wanted: argparse.Namespace) -> float:
    """Return the most bytes that are resident during one call beyond those before it, in this process."""
    model, batch = build(wanted)
    prepare(model, batch[:1])[wanted.memory_of]()()
    call = prepare(model, batch)[wanted.memory_of]()
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:  # noqa: PTH123 - not a file
        reset.write("5")  # the high-water mark starts anew
    result = call()
    peak = resident("VmHWM")
    del result
    return peak - before


def resident(field: str) -> float:
    """Return a field of Linux's /proc/self/status, in bytes.

    `resource.getrusage` will not do: a process starts with the high-water mark of the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(main())
