"""
# Fine-tune for better boxes

A classifier that was trained for classes alone looks at what tells them apart. A recipe
trains it on, with image labels only, so that its maps cover more of the object. What
does that gain, and what does reading the maps in another way gain?
"""

# %%
# ## Data and start
#
# Drawn scenes have true boxes and masks, so everything can be measured; the recipe
# never sees them. With your own images these would be
# `camtools.datasets.ImageFolder("train")`, and a folder with a CSV of boxes to
# measure by ([data sets](../../datasets.md)).

import camtools
from camtools.datasets import Scenes

train, test = Scenes("train", n=120), Scenes("test", n=60)
start = camtools.load_model("scenes")

# %%
# ## One epoch
#
# `cream` fine-tunes plainly, and keeps a bank of what each class and its surroundings
# look like in the features. `result.pipeline` is how its maps want to be read.
# `camtools finetune` lists all recipes, and [recipes](../../recipes.md) explains
# them.

result = camtools.finetune(
    "cream",
    "scenes",
    train,
    epochs=1,
    lr=0.001,
    unit=True,
    centre=True,
    progress=False,
)
print(f"accuracy in training: {result.history[-1]['accuracy']:.1f} %")
print(result.pipeline.summary)

# %%
# ## Was it worth it?
#
# Both models on the same test scenes, with readings that need no training beside it. In
# per cent: MaxBoxAccV2 at the best threshold for the data, GT-known at the pipeline's
# own.


def measured(model, pipelines):
    found = camtools.evaluate(
        model, test, pipelines, protocol="native", bootstrap=100, progress=False
    )
    return {
        name: (values["MaxBoxAccV2"].value, values["GT-known@own"].value)
        for name, values in found.metrics.items()
    }


readings = {"cam": "cam", "fast": "fast", "best": "best"}
before = measured(start.model, readings)
after = measured(result.model, readings | {"cream": result.pipeline})
print(f"{'reading':10} {'before':>12} {'after':>12}")
for name in after:
    cells = [
        "{:5.1f} {:5.1f}".format(*found[name]) if name in found else "-"
        for found in (before, after)
    ]
    print(f"{name:10} {cells[0]:>12} {cells[1]:>12}")

# %%
# Read as `cream`, the maps are better than the plain ones of before; and a preset gains
# more than the epoch did. That is so on photographs as well
# ([results](../../results.md#recipes)): try presets first, then a threshold from images
# of your own, then a recipe, and read the trained model with the preset again.

records = [test[i] for i in range(3)]
rows = []
for record in records:
    rows.append(
        [
            camtools.explain(model, record.image, target=record.label, pipeline=how)
            for model, how in (
                (start.model, "cam"),
                (result.model, result.pipeline),
                (result.model, "best"),
            )
        ]
    )
camtools.plot.compare(
    rows,
    titles=["before, cam", "after, cream", "after, best"],
    truth=[record.boxes for record in records],
)
