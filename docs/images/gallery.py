"""Draw docs/images/gallery and docs/images/first.jpg by the model lite0.

The gallery has ten photographs under every preset, the other four under `best`.

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
    known = photos()
    four = [known[name] for name in ("cat", "tripod", "coffee", "motorcycle")]
    best = explainers[list(camtools.PRESETS).index("best")](four)
    first = camtools.plot.compare(best, columns=4, height=150)
    first.save(OUT.parent / "first.jpg", quality=85, optimize=True)
    for name, photo in known.items():
        target = CLASSES[name]
        found = [explainer(photo, target=target) for explainer in explainers]
        drawn = camtools.plot.compare(found, image=True, columns=3, height=SIZE)
        drawn.save(OUT / f"{name}.jpg", quality=85, optimize=True)
        print(f"{name:12} {found[0].caption}")


if __name__ == "__main__":
    main()
