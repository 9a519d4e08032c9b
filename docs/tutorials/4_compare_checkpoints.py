"""
# Compare two checkpoints

Two models may name the same classes and look at different things. Was it the object
before, and is it still?
"""

# %%
# The second checkpoint here is the first after a rough compression: every weight of a
# convolution is rounded to one of 31 values per channel. Any two files that fit one
# architecture can be compared in the same way.

import tempfile

import torch
from safetensors.torch import save_file
from skimage import data
from torchvision.ops import box_iou

import camtools

before = camtools.load_model("lite0")
state = before.model.state_dict()
for name, weight in state.items():
    if weight.ndim == 4:
        step = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8) / 15
        state[name] = (weight / step).round() * step
file = f"{tempfile.mkdtemp()}/rounded.safetensors"
save_file(state, file)
after = camtools.load_model("lite0", file)

# %%
# ## The same class in both
#
# Explain one class in both, the one that the first model names: maps of different
# classes differ for that reason alone.

photos = [data.chelsea(), data.coffee(), data.camera(), data.rocket()]
first = camtools.explain(before.model, photos)
second = camtools.explain(after.model, photos, target=[exp.label for exp in first])

print(f"{'class':12} {'before':>7} {'after':>7}  IoU of boxes  correlation of maps")
for a, b in zip(first, second, strict=True):
    iou = box_iou(a.box[None].float(), b.box[None].float()).item()
    both = torch.stack([a.raw_map.flatten(), b.raw_map.flatten()])
    same = torch.corrcoef(both)[0, 1]
    print(f"{a.name:12} {a.score:7.1%} {b.score:7.1%}  {iou:12.2f}  {same:19.2f}")

# %%
# Scores say how much the answer has suffered; boxes and maps say whether the model
# still looks at the same thing.

rows = [list(pair) for pair in zip(first, second, strict=True)]
camtools.plot.compare(rows, titles=["before", "after"], image=True, height=160)

# %%
# ## With the truth
#
# Where there are boxes, `camtools.evaluate` measures. It compares pipelines on one
# model from one forward; for two models run it once for each, on the same images.
#
#     camtools evaluate --data boxfolder:VAL --model NAME --weights OLD --out runs/old
#     camtools evaluate --data boxfolder:VAL --model NAME --weights NEW --out runs/new
