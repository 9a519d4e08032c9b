"""
# Label a folder for a detector

A classifier knows classes, no boxes. Its maps give boxes that are good enough to start
a detector from, or to correct by hand instead of drawing each.
"""

# %%
# A folder of photographs, as you have one:

import tempfile
from pathlib import Path

import torch
from skimage import data, io

import camtools

work = Path(tempfile.mkdtemp())
folder = work / "photos"
folder.mkdir()
for name in ("chelsea", "coffee", "camera", "rocket"):
    io.imsave(folder / f"{name}.png", getattr(data, name)())

# %%
# ## From images to labels
#
# `stream` reads, explains and forgets: a folder may have any size. `export` writes any
# number of formats in one run. On the command line the same is
# `camtools explain photos --model lite0 --pipeline best --export labels.csv
# --export coco.json --export yolo:detector`.

loaded = camtools.load_model("lite0")
explainer = camtools.Explainer(loaded.model, "best")
camtools.export(
    explainer.stream(folder),
    [f"{work}/labels.csv", f"{work}/coco.json", f"yolo:{work}/detector"],
    root=folder,
    class_names=explainer.class_names,
)
print((work / "labels.csv").read_text())

# %%
# ## Look before you train
#
# The score says how sure the classifier is of the class, not how well the box fits.
# Leave out what it doubts, and look at the rest: `--report report.html` makes a page
# with every image and a slider for the threshold.

found = explainer(sorted(folder.glob("*.png")))
kept = [exp for exp in found if exp.score > 0.3]
print("kept:", [exp.name for exp in kept])
camtools.plot.compare(found, height=150)

# %%
# ## One epoch of a detector
#
# `labels.csv` is a data set again, `boxfolder:` on the command line. Here it feeds
# one of torchvision's detectors: classes from 1, since 0 is its background.
# Ultralytics reads `detector/data.yaml` as it is.

from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.transforms.functional import pil_to_tensor

from camtools.datasets import BoxFolder

records = BoxFolder(folder, work / "labels.csv")
number = {name: i for i, name in enumerate(records.classes, 1)}
print(number)

torch.manual_seed(0)
detector = ssdlite320_mobilenet_v3_large(
    weights=None, weights_backbone=None, num_classes=len(number) + 1
).train()
optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
for start in range(0, len(records), 2):
    batch = [records[i] for i in range(start, start + 2)]
    images = [pil_to_tensor(record.image) / 255 for record in batch]
    targets = [
        {"boxes": record.boxes.float(), "labels": record.labels + 1} for record in batch
    ]
    loss = sum(detector(images, targets).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"batch {start // 2}: loss {loss.item():.2f}")
