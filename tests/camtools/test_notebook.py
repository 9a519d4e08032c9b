"""How results look in a notebook and as text."""

import base64
import io
import pickle
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import camtools
from camtools.datasets import Scenes
from camtools.datasets.scenes import scene_classifier
from camtools.drawing.colours import voc_colour
from camtools.notebook import MOST, ResultList, html_table
from camtools.training import FinetuneResult


@pytest.fixture(scope="module")
def images():
    return [Scenes("test", n=2)[i].image for i in range(2)]


@pytest.fixture(scope="module")
def exp(images):
    return camtools.explain(scene_classifier(), images[0])


def embedded(html):
    """The images in a page."""
    found = re.findall(r'src="data:image/jpeg;base64,(.*?)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_an_explanation_is_its_overlay_with_a_caption(exp):
    overlay = exp.overlay()
    with Image.open(io.BytesIO(exp._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(overlay))
    html = exp._repr_html_()
    [shown] = embedded(html)
    assert np.abs(np.asarray(shown, float) - np.asarray(overlay)).mean() < 6  # JPEG
    assert f"{exp.caption} · fast</figcaption>" in html


def test_large_images_are_shrunk():
    big = camtools.explain(scene_classifier(), Image.new("RGB", (2000, 1000), "red"))
    with Image.open(io.BytesIO(big._repr_png_())) as shown:
        assert max(shown.size) == 800


def test_lists_are_lists_and_show_each_result(images):
    model = scene_classifier()
    found = camtools.explain(model, images)
    assert isinstance(found, list) and found == list(found) and len(embedded(found._repr_html_())) == 2
    grid = camtools.explain(model, images, top_k=3)
    assert [len(row) for row in grid] == [3, 3] and grid._repr_html_().count("display:flex") == 2
    assert len(embedded(grid._repr_html_())) == 6
    assert len(embedded(camtools.segment(model, images)._repr_html_())) == 2
    many = ResultList(found * MOST)
    assert len(embedded(many._repr_html_())) == MOST and f"and {MOST} more" in many._repr_html_()
    assert ResultList([])._repr_html_() == "<code>[]</code>"
    assert pickle.loads(pickle.dumps(ResultList([1, 2]))) == [1, 2]


def test_a_segmentation(images):
    seg = camtools.segment(scene_classifier(), images[0])
    assert seg.caption == ", ".join(f"{n} {s:.1%}" for n, s in zip(seg.names, seg.scores, strict=True))
    assert seg.caption in seg._repr_html_()
    axes = seg.plot()
    [patch], [text] = axes.get_legend().get_patches(), axes.get_legend().get_texts()
    assert text.get_text() == seg.names[0]
    colour = torch.tensor(patch.get_facecolor()[:3]) * 255
    assert tuple(colour.round().int().tolist()) == voc_colour(seg.values[0])
    plt.close(axes.figure)


def test_plot_draws_pixels_on_axes(exp):
    figure, axes = plt.subplots()
    assert exp.plot(axes, boxes="none") is axes
    assert np.array_equal(axes.images[0].get_array(), np.asarray(exp.overlay(legend=False, boxes="none")))
    assert axes.get_title() == exp.caption
    plt.close(figure)
    own = exp.plot()
    assert own.figure is not figure
    plt.close(own.figure)


def test_show_hands_the_overlay_to_the_viewer(exp, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda image, title=None: shown.append((image.size, title)))
    exp.show()
    assert shown == [(exp.overlay().size, exp.caption)]


def test_a_loaded_model_in_one_line():
    loaded = camtools.load_model("scenes")
    text = repr(loaded)
    assert text.startswith("LoadedModel('scenes', model: SceneNet, parameters: 0.")
    assert "classes: 8: disc, ring, triangle, ..." in text and len(text) < 400
    assert "<td>SceneNet</td>" in loaded._repr_html_() and "scenes</caption>" in loaded._repr_html_()


def test_an_evaluation_in_a_line_per_pipeline():
    data = Scenes("test", n=4)
    result = camtools.evaluate(scene_classifier(), data, "cam,rcam", protocol="native", bootstrap=0, progress=False)
    first, cam, rcam = repr(result).splitlines()
    assert first.startswith("EvaluationResult(4 images") and first.endswith("; per cent")
    assert cam.startswith("  cam: ") and rcam.startswith("  rcam: ") and rcam.endswith(")")
    for name, value in result.metrics["cam"].items():
        assert f"{name} {value.value:.1f}" in cam
        assert f"<th>{name}</th>" in result._repr_html_()
    assert result._repr_html_().count("<tr>") == 3


def test_a_finetune_in_one_line():
    rows = [{"epoch": 0.0, "val_accuracy": 50.0}, {"epoch": 1.0, "loss": 0.25, "val_accuracy": 75.0}]
    result = FinetuneResult(torch.nn.Linear(1, 1), [*rows, {"epoch": 2.0, "loss": 0.2}], 1, ("a",), {})
    assert repr(result) == "FinetuneResult(Linear, epoch 1 of 2: loss 0.25, val_accuracy 75)"
    html = result._repr_html_()
    assert "<th>epoch</th><th>val_accuracy</th><th>loss</th>" in html
    assert "<tr><td>1</td><td>75</td><td>0.25</td></tr>" in html and "best epoch: 1" in html


def test_tables_escape():
    assert html_table([("<b>", 1)]) == "<table><tbody><tr><td>&lt;b&gt;</td><td>1</td></tr></tbody></table>"
