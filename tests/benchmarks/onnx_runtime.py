"""How long `OnnxExplainer` takes per image, over onnxruntime on the bare model with the same preprocessing.

    python tests/benchmarks/onnx_runtime.py --model torchvision/mobilenet_v2

prints the fastest of interleaved rounds, as whatever else runs only adds to a time, then medians and their range.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from skimage import data

import camtools
from camtools import runtime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="torchvision/mobilenet_v2")
    parser.add_argument("--top-k", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    model = camtools.load_model(args.model, "random").model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        explainer = runtime.OnnxExplainer(
            camtools.to_onnx(model, place / "maps.onnx", top_k=args.top_k), session_options=options
        )
        size = explainer.metadata["input_size"]
        bare = place / "bare.onnx"
        example, batch = torch.zeros(2, *size), {0: torch.export.Dim("batch")}
        torch.onnx.export(model, (example,), bare, dynamo=True, dynamic_shapes=(batch,), verbose=False)
        session = onnxruntime.InferenceSession(bare, options)
        image = data.coffee()
        ways = {"bare": lambda: _bare(session, image, explainer.metadata), "boxes": lambda: explainer(image).boxes}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds + 3):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
    ratios = sorted(m / b for b, m in zip(times["bare"][3:], times["boxes"][3:], strict=True))
    medians = {name: statistics.median(values[3:]) * 1e3 for name, values in times.items()}
    least = {name: min(values[3:]) * 1e3 for name, values in times.items()}
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    for kind, figures in (("fastest", least), ("medians", medians)):
        print(f"{args.model}, {kind}: bare {figures['bare']:.1f} ms, with boxes {figures['boxes']:.1f} ms per image")
    print(f"ratio of the fastest {least['boxes'] / least['bare']:.3f}")
    print(f"ratio of a round {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")


def _bare(session: Any, image: Any, metadata: dict[str, Any]) -> Any:
    ready = runtime._ready(image, metadata).values[None]
    return np.argmax(session.run(None, {session.get_inputs()[0].name: ready})[0])


if __name__ == "__main__":
    main()
