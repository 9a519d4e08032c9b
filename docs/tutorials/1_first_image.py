"""
# Explain your first image

From a photograph to a class, a map, a mask and a box: where does the classifier see
what it says?
"""

# %%
# `lite0` is a small ImageNet classifier that needs no download. The photograph is an
# array here; a path, a PIL image or a tensor would do as well.

import tempfile

from skimage import data

import camtools

model = camtools.load_model("lite0").model
exp = camtools.explain(model, data.coffee())
exp

# %%
# A notebook shows an explanation as its image; elsewhere `exp.show()` does. It holds
# what is drawn: the class and its probability, the box in pixels of the photograph, the
# mask and the map.

print(f"{exp.name}: {exp.score:.1%}")
print(f"box x0, y0, x1, y1: {exp.box.tolist()}")
print(f"mask: {exp.mask.float().mean():.0%} of the image")
print(f"map: {tuple(exp.map.shape)}, from {exp.map.min():.1f} to {exp.map.max():.1f}")

# %%
# ## Another preset
#
# The map says which positions speak for the class; how it becomes a mask is the
# pipeline's business. `cam` is the plain class activation map, `fast` (what you get
# without asking) lets it spread over what looks alike, `best` adds gradients of earlier
# stages.

found = [
    camtools.explain(model, data.coffee(), pipeline=name)
    for name in ("cam", "fast", "best")
]
camtools.plot.compare(found, image=True, height=120)

# %%
# [Which method shall I use?](../../choose.md) has figures for all of them.
#
# ## Keep it
#
# `save` writes the overlay, the mask, the map and a manifest; `Explanation.load` brings
# the explanation back.

folder = tempfile.mkdtemp()
exp.save(folder)
again = camtools.Explanation.load(folder)
print(again.name, again.box.tolist() == exp.box.tolist())

# %%
# ## Your own model
#
# Any classifier of timm or torchvision, or a module of your own, takes the place of
# `model`. camtools finds by itself the features that enter its pooling, and says
# whether the map is made of the classifier's own weights (*exact*) or of gradients at
# the head.

print(exp.layer, "exact" if exp.exact else "linearised")
