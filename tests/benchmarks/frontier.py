r"""What pipelines gain, and what they cost: MaxBoxAccV2 against the time of bare forwards, as a table and a plot.

With --peers methods of pytorch-grad-cam and torch-cam (extra `bench`) are measured beside them, with the same network,
images and metric, at F, with the libraries' own defaults; their cost is that of a map per image without masks or boxes.

    python tests/benchmarks/frontier.py --data boxfolder:../shared/data/ilsvrc_val/test --limit 1000 \
        --model torchvision/mobilenet_v2 --weights ../shared/weights/mobilenet_v2_imagenet.safetensors \
        --peers all --out runs/frontier --plot docs/images/frontier.png

Every pipeline is evaluated under the WSOL protocol with each image's own class (one pass of `camtools.evaluate` for
all, which resumes). The cost is that of everything from the ready batch to the masks at the protocol's size, over that
of the bare model on the same batch: medians of interleaved rounds in one process.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from peers import Peer, peer, write_maps
from ratios import interleave, ratio, table

import camtools
from camtools.datasets.selection import Selection
from camtools.pipeline.text import parse_pipelines

PIPELINES = (
    "cam,rcam,rcam+crf,fast,best,best+enlarge;Gradient(levels=(0,1)),Affinity(2,3),EdgeLevel;"
    "Enlarge(1.43),Affinity(2,3)"
)
PEERS = (
    "grad-cam:GradCAM,grad-cam:GradCAMPlusPlus,grad-cam:HiResCAM,grad-cam:LayerCAM,grad-cam:XGradCAM,grad-cam:EigenCAM,"
    "grad-cam:EigenGradCAM,torchcam:GradCAMpp,torchcam:LayerCAM,torchcam:SmoothGradCAMpp"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--classes", type=int, help="classes of the model, where not the usual 1,000")
    parser.add_argument("--weights")
    parser.add_argument("--pipelines", default=PIPELINES)
    parser.add_argument("--peers", default="", help="methods of other libraries, with commas; 'all' for " + PEERS)
    parser.add_argument("--layer", help="target layer of these; left out, the last before the pooling")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", action="store_true", help="what each step of the pipelines takes, too")
    parser.add_argument("--out", help="folder of the evaluation")
    parser.add_argument("--plot", type=Path, help="image to write")
    parser.add_argument("--title", default="", help="of the image")
    wanted = parser.parse_args()
    pipelines = dict(parse_pipelines(wanted.pipelines))
    loaded = camtools.load_model(wanted.model, wanted.weights, num_classes=wanted.classes)
    result = camtools.evaluate(
        loaded.model,
        wanted.data,
        pipelines,
        metrics=["MaxBoxAcc", "MaxBoxAccV2"],
        out=wanted.out,
        limit=wanted.limit,
        every=wanted.every,
        skip=wanted.skip,
        device=wanted.device,
        transform=loaded.preprocess,
    )
    metrics = dict(result.metrics)
    layer = wanted.layer or camtools.wrap(loaded.model).decomposition.layer
    names = (PEERS if wanted.peers == "all" else wanted.peers).split(",") if wanted.peers else []
    others = {name: peer(name, loaded.model.eval(), layer) for name in names}
    if others:
        data = Selection(wanted.data, wanted.limit, wanted.every, wanted.skip)
        out = Path(wanted.out or "runs/frontier") / "peers"
        count = camtools.wrap(loaded.model).class_weights.shape[0]
        folders = write_maps(others, data, loaded.preprocess, count, wanted.batch, out)
        theirs = camtools.evaluate(
            None,
            wanted.data,
            scoremaps=folders,
            metrics=["MaxBoxAcc", "MaxBoxAccV2"],
            limit=wanted.limit,
            every=wanted.every,
            skip=wanted.skip,
        )
        metrics |= dict(theirs.metrics)
    costs = measured(loaded.model, pipelines, others, wanted)
    rows = []
    base = metrics[next(iter(pipelines))]["MaxBoxAccV2"].value
    for name in [*pipelines, *others]:
        old, new = metrics[name]["MaxBoxAcc"], metrics[name]["MaxBoxAccV2"]
        interval = "" if new.low is None or name in others else f"{new.low:+.1f} to {new.high:+.1f}"
        gain = f"{new.value - base:+.1f}"
        rows.append((name, f"{old.value:.1f}", f"{new.value:.1f}", gain, interval, f"{costs[name]:.2f}"))
    print(table(("pipeline", "MaxBoxAcc", "MaxBoxAccV2", "gain", "95 % interval", "forwards"), rows))
    if wanted.steps:
        print()
        print(table(("pipeline", "step", "forwards"), shares_of_steps(loaded.model, pipelines, wanted)))
    if wanted.plot is not None:
        points = {name: (costs[name], metrics[name]["MaxBoxAccV2"].value) for name in [*pipelines, *others]}
        draw(points, wanted.plot, wanted.title)


def measured(
    model: torch.nn.Module, pipelines: dict[str, camtools.Pipeline], peers: dict[str, Peer], wanted: argparse.Namespace
) -> dict[str, float]:
    """Return what each pipeline and peer costs, in forwards of the bare model at 224 x 224."""
    model = model.to(wanted.device).eval()
    batch = torch.randn(wanted.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(wanted.device)

    def bare() -> object:
        with torch.inference_mode():
            return model(batch)

    contenders: dict[str, Callable[[], object]] = {"bare": bare}
    for name, pipeline in pipelines.items():
        explainer = camtools.Explainer(model, pipeline, batch_size=wanted.batch)
        contenders[name] = lambda explainer=explainer: explainer(batch)
    classes = [0] * wanted.batch
    for name, method in peers.items():
        contenders[name] = lambda method=method: method(batch, classes)
    wait = torch.cuda.synchronize if wanted.device.startswith("cuda") else lambda: None
    interleave(contenders, 1, wait)
    seconds = interleave(contenders, wanted.rounds, wait)
    return {name: ratio(name, seconds[name], seconds["bare"]).median for name in [*pipelines, *peers]}


def shares_of_steps(
    model: torch.nn.Module, pipelines: dict[str, camtools.Pipeline], wanted: argparse.Namespace
) -> list[tuple[str, str, str]]:
    """Return what each step of each pipeline takes, in forwards of the bare model: medians of rounds.

    What a pipeline takes beyond its steps is the forward with what is kept from it, and taking maps to pixels.
    """
    model = model.to(wanted.device).eval()
    batch = torch.randn(wanted.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(wanted.device)
    wait = torch.cuda.synchronize if wanted.device.startswith("cuda") else lambda: None
    rows = []
    for name, pipeline in pipelines.items():
        explainer, rounds = camtools.Explainer(model, pipeline, batch_size=wanted.batch), []
        for _ in range(wanted.rounds + 1):  # the first one warms up
            with torch.inference_mode():
                start = time.perf_counter()
                model(batch)
                wait()
                bare = time.perf_counter() - start
            seconds: Counter[str] = Counter()
            with ExitStack() as stack:
                for kind in {type(step) for step in pipeline}:
                    stack.enter_context(patch.object(kind, "__call__", timed(kind.__call__, seconds, wait)))
                explainer(batch)
            rounds.append({key: value / bare for key, value in seconds.items()})
        rows += [(name, key, f"{median(one[key] for one in rounds[1:]):.3f}") for key in rounds[0]]
    return rows


def timed(call: Callable[..., Any], seconds: Counter[str], wait: Callable[[], None]) -> Callable[..., Any]:
    """Return a step's call that adds its time to `seconds`, under the step's name."""

    def measured_call(step: camtools.steps.Step, state: camtools.steps.State) -> camtools.steps.State:
        start = time.perf_counter()
        found: camtools.steps.State = call(step, state)
        wait()
        seconds[repr(step)] += time.perf_counter() - start
        return found

    return measured_call


def draw(points: dict[str, tuple[float, float]], path: Path, title: str) -> None:
    """Draw gain against cost, with the line along which more costs more."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    best, frontier = 0.0, []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            best = points[name][1]
            frontier.append(name)
    axes.plot(*zip(*(points[name] for name in frontier), strict=True), color="0.75", zorder=1, drawstyle="steps-post")
    others = [point for name, point in points.items() if ":" in name]
    for name, (cost, value) in points.items():
        preset, theirs = name in camtools.PRESETS, ":" in name
        style = {"marker": "x" if theirs else "o", "color": "#c0392b" if preset else "#2c3e50"}
        axes.scatter(cost, value, s=36, zorder=2, **style)
        side = -1 if any(high > value and abs(at - cost) < 0.7 for at, high in others) else 1  # they lie close together
        slant = {"rotation": 32 * side, "va": "bottom" if side > 0 else "top", "rotation_mode": "anchor"}
        offset = (4, 4 * side) if theirs else (6, -3)
        axes.annotate(
            name,
            (cost, value),
            offset,
            textcoords="offset points",
            fontsize=8,
            fontweight="bold" if preset else "normal",
            **(slant if theirs else {}),
        )
    axes.set_xlabel("cost of the whole pipeline, bare forwards at 224 x 224")
    axes.set_ylabel("MaxBoxAccV2")
    axes.set_title(title, fontsize=9)
    axes.set_xlim(0, 1.3 * max(cost for cost, _ in points.values()))
    axes.grid(color="0.93")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
