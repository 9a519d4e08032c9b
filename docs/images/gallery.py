"""Draw docs/images/gallery: ten photographs under every preset, by the model lite0.

    pip install ".[demo]" && python docs/images/gallery.py

The photographs come with scikit-image (public domain) and matplotlib (Grace Hopper, a
work of the U.S. Navy, public domain).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.cbook
from PIL import Image
from skimage import data

import camtools

OUT = Path(__file__).parent / "gallery"
SIZE = 150  # of a panel's height, in pixels
CLASSES = {  # None: the likeliest
    "cat": None,
    "coffee": None,
    "tripod": None,
    "rocket": None,
    "motorcycle": "moped",
    "astronaut": "space shuttle",
    "uniform": "military uniform",
    "clock": "analog clock",
    "horse": "sorrel",
    "bricks": "stone wall",
}


def photos() -> dict[str, object]:
    """Return the photographs by name."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = Image.open(file).convert("RGB")
    return {
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "tripod": data.camera(),
        "rocket": data.rocket(),
        "motorcycle": data.stereo_motorcycle()[0],
        "astronaut": data.astronaut(),
        "uniform": hopper,
        "clock": data.clock(),
        "horse": data.horse(),
        "bricks": data.brick(),
    }


def main() -> None:
    OUT.mkdir(exist_ok=True)
    model = camtools.load_model("lite0").model
    explainers = [camtools.Explainer(model, name) for name in camtools.PRESETS]
    for name, photo in photos().items():
        target = CLASSES[name]
        found = [explainer(photo, target=target) for explainer in explainers]
        drawn = camtools.plot.compare(found, image=True, columns=3, height=SIZE)
        drawn.save(OUT / f"{name}.jpg", quality=85, optimize=True)
        best = found[-2]
        print(f"{name:12} {best.caption:26} likeliest: {int(best.logits.argmax())}")


if __name__ == "__main__":
    main()
