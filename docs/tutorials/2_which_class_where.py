"""
# Which class where?

A classifier scores a thousand classes at once. One forward says where each of them
comes from.
"""

# %%
# ## The likeliest classes of one image

import matplotlib.pyplot as plt
from skimage import data

import camtools

model = camtools.load_model("lite0").model
photo = data.coffee()
found = camtools.explain(model, photo, top_k=3)

for exp in found:
    print(f"{exp.name:10} {exp.score:6.1%}  box {exp.box.tolist()}")

camtools.plot.compare(found, image=True, height=120)
# %%
# ## Classes of your choice
#
# By name, by number, or by an ImageNet id. A class that the model thinks unlikely has a
# map as well: what speaks for it, however little. Look at the score first.

found = camtools.explain(model, photo, target=["espresso", "wooden spoon", "soup bowl"])

camtools.plot.compare(found, image=True, height=120)
# %%
# A name that is none says which ones are close.

try:
    camtools.explain(model, photo, target="expresso")
except camtools.TargetError as error:
    print(error)

# %%
# ## Why this class and not that one?
#
# A plain map is an account of the score: its mean over the positions, plus the class's
# bias, is the logit. The difference of two classes' maps is then an account of the
# difference of their scores.

cat = data.chelsea()
tiger, tabby = camtools.explain(
    model, cat, target=["tiger cat", "tabby"], pipeline="cam"
)
difference = tiger.raw_map - tabby.raw_map
print(f"{tiger.caption}, {tabby.caption}")
print(f"logits differ by {tiger.logits[tiger.label] - tiger.logits[tabby.label]:.3f}")

bias = model.get_classifier().bias
of_bias = bias[tiger.label] - bias[tabby.label]
print(f"the map's mean and the biases: {difference.mean() + of_bias:.3f}")

fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
axes[0].imshow(cat)
limit = float(difference.abs().max())
shown = axes[1].imshow(difference.numpy(), cmap="coolwarm", vmin=-limit, vmax=limit)
axes[1].set_title("tiger cat (red) against tabby (blue)")
fig.colorbar(shown)
for ax in axes:
    ax.axis("off")
