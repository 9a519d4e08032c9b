"""
# Explain your first image

A classifier names what it sees in a photograph. This shows where.
"""

# %%
# The classifier is `lite0`.

import camtools
from skimage import data

loaded = camtools.load_model("lite0")
exp = camtools.explain(loaded.model, data.chelsea(), transform=loaded.preprocess)
exp

# %%
# Its numbers

print(exp.name, round(exp.score, 2), exp.box.tolist())

# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots()
exp.plot(ax)
