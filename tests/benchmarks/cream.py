r"""What CREAM costs, and which bank serves it better: the momentum of the paper or the plain mean.

    OMP_NUM_THREADS=1 python tests/benchmarks/cream.py
    python tests/benchmarks/cream.py --device cuda --repeats 50
    python tests/benchmarks/cream.py --data boxfolder:SHARED/data/cub/train --scale 2 --bank 0:20 --judge 5:48 \
        --model torchvision/mobilenet_v2 --model-arg num_classes=200 \
        --weights SHARED/weights/mobilenet_v2_cub.safetensors

Without `--data`: milliseconds an image of one CREAM on ready features and maps, 2048 channels, 32 images, at
7 x 7, 14 x 14 and 28 x 28, contenders in interleaved rounds after an untimed call.

With data and a model: banks are fitted to every `STEP`-th image from `START`, at most `COUNT` (`--bank`), and box
accuracies, protocol "wsol", are those of other images of the same split (`--judge`). `--stride` takes strides out of
the network, `--scale` enlarges its input: both make finer maps. `--features` says on what CREAM clusters, images and
bank alike: features as they are ("plain"), scaled to length 1 ("unit"), or relative to each image's mean ("centred").
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from itertools import tee
from typing import Any

import torch
from ratios import interleave, table
from torch import Tensor, nn
from torch.utils.data import Subset

import camtools
from camtools import ContextBank
from camtools.classes.matching import match_classes
from camtools.context_bank import BankUpdates
from camtools.datasets import open_dataset
from camtools.datasets.selection import Selection
from camtools.images.batches import read_batches
from camtools.images.preprocess import Preprocess
from camtools.model.device import to_model
from camtools.steps import CREAM, NWC, Enlarge, State, Step
from camtools.steps.cream import UnitFeatures, foreground_mask, mean_features

GRIDS = (7, 14, 28)
CHANNELS, IMAGES, CLASSES = 2048, 32, 10
METRICS = ("MaxBoxAccV2", "MaxBoxAcc")
FEATURES = ("plain", "unit", "centred")
MODES = ("momentum", "mean")


def main() -> None:
    """Measure and print."""
    wanted = parse()
    if wanted.data:
        compare(wanted)
    else:
        cost(wanted.device, wanted.repeats)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of the cost")
    parser.add_argument("--data", help="a data set, for the comparison")
    parser.add_argument("--model", help="a classifier of the data's classes")
    parser.add_argument("--model-arg", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--weights")
    parser.add_argument("--bank", type=images, default=slice(0, None, 10), metavar="START:STEP[:COUNT]")
    parser.add_argument("--judge", type=images, default=slice(5, None, 20), metavar="START:STEP[:COUNT]")
    parser.add_argument("--stride", type=int, choices=(8, 16, 32), help="output stride; the model's own by default")
    parser.add_argument("--scale", type=float, default=1.0, help="sides of the input over the model's own")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--sigma", type=float, default=8.0)
    parser.add_argument("--alone", action="store_true", help="without the CAM added")
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=FEATURES)
    wanted = parser.parse_args()
    if wanted.data and not wanted.model:
        parser.error("--data needs --model")
    return wanted


def images(text: str) -> slice:
    start, step, *count = map(int, text.split(":"))
    return slice(start, start + step * count[0] if count else None, step)


def cost(device: str, repeats: int) -> None:
    """Time CREAM with and without a bank at every grid."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    counts = torch.ones(CLASSES, 2, dtype=torch.int64, device=device)
    bank = ContextBank(random(CLASSES, CHANNELS), random(CLASSES, CHANNELS), counts)
    steps = {"own means": CREAM(), "bank": CREAM(bank)}
    calls = {}
    for grid in GRIDS:
        labels = (torch.arange(IMAGES) % CLASSES)[:, None].to(device)
        features, maps = random(IMAGES, CHANNELS, grid, grid), random(IMAGES, 1, grid, grid)
        state = State(features=features, maps=maps, labels=labels)
        calls |= {(grid, name): lambda step=step, state=state: step(state) for name, step in steps.items()}
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for call in calls.values():
        call()
    seconds = interleave(calls, repeats, wait)
    threads = f"{torch.get_num_threads()} thread(s)"
    print(f"CREAM, {CHANNELS} channels, {IMAGES} images, {device}, {threads}, median of {repeats} rounds")
    rows = [
        [
            f"{grid} x {grid}",
            name,
            *(f"{1e3 * value / IMAGES:.3f}" for value in (statistics.median(times), min(times))),
        ]
        for (grid, name), times in seconds.items()
    ]
    print(table(["grid", "starts from", "ms per image", "least"], rows))


def compare(wanted: argparse.Namespace) -> None:
    """Fit the banks and judge CREAM with each, beside CAM and NWC."""
    arguments = dict(pair.split("=", 1) for pair in wanted.model_arg)
    numbers = {key: int(value) if value.isdigit() else value for key, value in arguments.items()}
    loaded = camtools.load_model(wanted.model, wanted.weights, model_args=numbers)
    model = loaded.model if wanted.stride is None else camtools.model.set_output_stride(loaded.model, wanted.stride)
    model = model.to(wanted.device)
    data = open_dataset(wanted.data)
    fitted, judged = (Subset(data, range(len(data))[part]) for part in (wanted.bank, wanted.judge))
    shared = set(fitted.indices) & set(judged.indices)
    if shared:
        raise SystemExit(f"--bank and --judge share {len(shared)} images: expected none")
    banks = fit(model, fitted, squashed(loaded.preprocess, wanted.scale))
    first: list[Step] = [Enlarge(wanted.scale)] if wanted.scale != 1 else []
    settings = {"iterations": wanted.iterations, "sigma": wanted.sigma, "add_cam": not wanted.alone}
    pipelines: dict[str, list[Step]] = {"cam": [*first], "nwc": [*first, NWC()]}
    for features in wanted.features:
        before = [*first, UnitFeatures()] if features == "unit" else first
        length, own = ("unit" if features == "unit" else "plain"), {**settings, "centre": features == "centred"}
        pipelines[f"{features}, own means"] = [*before, CREAM(**own)]
        for mode in MODES:
            pipelines[f"{features}, bank {mode}"] = [*before, CREAM(banks[length, mode], **own)]
    found = camtools.evaluate(model, judged, pipelines, metrics=METRICS, transform=loaded.preprocess)
    missing = len(banks["plain", "mean"].missing)
    print(f"{wanted.data}: banks of {len(fitted)} images ({missing} classes missing), {len(judged)} judged; ", end="")
    print(f"stride {wanted.stride or 'own'}, scale {wanted.scale:g}, {CREAM(**settings)!r}")
    rows = [[name, *(shown(found.metrics[name][metric]) for metric in METRICS)] for name in found.pipelines]
    print(table(["features, start", *(f"{metric}, interval of the delta to cam" for metric in METRICS)], rows))


def squashed(own: Any, scale: float) -> Preprocess:
    """Return the model's preprocessing as protocol "wsol" and `Enlarge` have it."""
    if not isinstance(own, Preprocess) or own.input_size is None:
        raise SystemExit(f"preprocessing {own!r}: expected one with an input size")
    height, width = (32 * round(side * scale / 32) for side in own.input_size)
    return replace(
        own, input_size=(height, width), resize=(height, width), crop_mode="squash", interpolation="bilinear"
    )


def fit(
    model: nn.Module, data: Subset[Any], transform: Preprocess, batch: int = 16
) -> dict[tuple[str, str], ContextBank]:
    """Do what `ContextBank.fit` does, for both modes and both lengths of features in one pass."""
    cam_model, chosen = camtools.wrap(model), Selection(data)
    updates: dict[tuple[str, str], BankUpdates] = {}
    index: tuple[int, ...] = ()
    first, second = tee(chosen.record(number) for number in chosen.indices)
    images = ((number, record.image) for number, record in enumerate(first))
    with torch.no_grad():
        for group in read_batches(images, (record.classes for record in second), transform, batch):
            found = cam_model.activations(to_model(group.tensor, model))
            if not updates:
                classes, channels = found.logits.shape[1], found.features.shape[1]
                known = cam_model.adapter.class_names(model)
                index = match_classes(chosen.classes, chosen.occurring, classes, known).index
                momenta = {"momentum": 0.8, "mean": None}
                updates = {
                    (length, mode): BankUpdates(classes, channels, momenta[mode])
                    for length in ("plain", "unit")
                    for mode in MODES
                }
            targets = torch.tensor([[index[one.target[0]]] for one in group.images])
            valid = torch.ones_like(targets, dtype=torch.bool)
            maps = torch.einsum("bkc,bchw->bkhw", found.weights(targets).float(), found.features.float())
            mask = foreground_mask(maps, 0.2)
            plain = State(features=found.features.float())
            for (length, _), sums in updates.items():
                features = (plain if length == "plain" else UnitFeatures()(plain)).require("features", "fit")
                for part, inside in enumerate((mask, ~mask)):
                    sums.add(part, targets, valid, *mean_features(features, inside))
    return {key: ContextBank(*sums.vectors(), sums.counts.T.contiguous()) for key, sums in updates.items()}


def shown(value: Any) -> str:
    """Write a metric with the interval of its difference."""
    if value.delta is None or value.low is None:
        return f"{value.value:.1f}"
    return f"{value.value:.1f} ({value.low:+.1f} to {value.high:+.1f})"


if __name__ == "__main__":
    main()
