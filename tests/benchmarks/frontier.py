r"""What pipelines gain, and what they cost: MaxBoxAccV2 against the time of bare forwards, as a table and a plot.

    python tests/benchmarks/frontier.py --data boxfolder:../shared/data/ilsvrc_val/test --limit 1000 \
        --model torchvision/mobilenet_v2 --weights ../shared/weights/mobilenet_v2_imagenet.safetensors \
        --out runs/frontier --plot docs/images/frontier.png

Every pipeline is evaluated under the WSOL protocol with each image's own class (one pass of `camtools.evaluate` for
all, which resumes). The cost is that of everything from the ready batch to the masks at the protocol's size, over that
of the bare model on the same batch: medians of interleaved rounds in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from ratios import interleave, ratio, table

import camtools
from camtools.pipeline.text import parse_pipelines

PIPELINES = (
    "cam,rcam,adaptive,cream,rcam+crf,fast,best;Affinity(1,2);NWC,Affinity(2,2);"
    "Enlarge(1.43);Enlarge(2);Enlarge(1.43),NWC,Affinity(2,3);Enlarge(2),Affinity(2,3)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--classes", type=int, help="classes of the model, where not the usual 1,000")
    parser.add_argument("--weights")
    parser.add_argument("--pipelines", default=PIPELINES)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
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
    costs = measured(loaded.model, pipelines, wanted)
    rows = []
    for name in pipelines:
        old, new = result.metrics[name]["MaxBoxAcc"], result.metrics[name]["MaxBoxAccV2"]
        gain = "" if new.delta is None else f"{new.delta:+.1f}"
        interval = "" if new.low is None else f"{new.low:+.1f} to {new.high:+.1f}"
        rows.append((name, f"{old.value:.1f}", f"{new.value:.1f}", gain, interval, f"{costs[name]:.2f}"))
    print(table(("pipeline", "MaxBoxAcc", "MaxBoxAccV2", "gain", "95 % interval", "forwards"), rows))
    if wanted.plot is not None:
        points = {name: (costs[name], result.metrics[name]["MaxBoxAccV2"].value) for name in pipelines}
        draw(points, wanted.plot, wanted.title)


def measured(
    model: torch.nn.Module, pipelines: dict[str, camtools.Pipeline], wanted: argparse.Namespace
) -> dict[str, float]:
    """Return what each pipeline costs, in forwards of the bare model at 224 x 224."""
    model = model.to(wanted.device).eval()
    batch = torch.randn(wanted.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(wanted.device)

    def bare() -> object:
        with torch.inference_mode():
            return model(batch)

    contenders: dict[str, Callable[[], object]] = {"bare": bare}
    for name, pipeline in pipelines.items():
        explainer = camtools.Explainer(model, pipeline, batch_size=wanted.batch)
        contenders[name] = lambda explainer=explainer: explainer(batch)
    wait = torch.cuda.synchronize if wanted.device.startswith("cuda") else lambda: None
    interleave(contenders, 1, wait)
    seconds = interleave(contenders, wanted.rounds, wait)
    return {name: ratio(name, seconds[name], seconds["bare"]).median for name in pipelines}


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
    for name, (cost, value) in points.items():
        preset = name in camtools.PRESETS
        axes.scatter(cost, value, s=36, color="#c0392b" if preset else "#2c3e50", zorder=2)
        label = axes.annotate(name, (cost, value), (6, -3), textcoords="offset points", fontsize=8)
        label.set_fontweight("bold" if preset else "normal")
    axes.set_xlabel("cost of the whole pipeline, bare forwards at 224 x 224")
    axes.set_ylabel("MaxBoxAccV2")
    axes.set_title(title, fontsize=9)
    axes.set_xlim(0, 1.3 * max(cost for cost, _ in points.values()))
    axes.grid(color="0.93")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
