"""Figures: where panels, boxes and colours are, what is written, and what raises an error."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import camtools
from camtools import InputError, Preprocess
from camtools.drawing.legend import INK, Bar, Key, legend
from camtools.drawing.overlay import BOX, TRUTH
from camtools.drawing.panels import fit
from camtools.drawing.trace import CHANGE, SIGNED
from camtools.explanation import Explanation
from camtools.images.geometry import Geometry
from camtools.images.read import read_image
from camtools.pipeline.trace import TraceStep
from camtools.plot import _titles, best_iou, compare, plot_trace

PLAIN = Preprocess(input_size=(8, 8), resize=(8, 8))
GREY = (100, 110, 120)
GAP = 11  # the letters' size at panels of up to 200 pixels


def explanation(height=40, width=60, box=(30, 5, 50, 25), name="red kite", pipeline="", value=0.0, **fields):
    """An explanation of a grey image with an even map and one box."""
    pixels = np.full((height, width, 3), GREY, np.uint8)
    boxes = torch.tensor([box] if box else [], dtype=torch.int64).reshape(-1, 4)
    given = {"grid_map": torch.full((height, width), value), "raw_map": torch.zeros(4, 6), "boxes": boxes}
    given |= {"box_scores": torch.full((len(boxes),), 0.876), "geometry": Geometry.identity((height, width))}
    facts = {"label": 3, "name": name, "score": 0.876, "threshold": 0.5, "exact": True, "layer": "layer4"}
    rest = {"logits": torch.zeros(5), "input_image": read_image(pixels), "transform": PLAIN, "pipeline": pipeline}
    return Explanation(**{**given, **facts, **rest, **fields})


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def where(values, colour):
    return (values == colour).all(-1)


def extent(mask):
    """The half-open box of what is true, xyxy."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.fixture
def written(monkeypatch):
    """Every text that is written on an image."""
    texts, text_of = [], ImageDraw.ImageDraw.text

    def text(draw, position, words, **options):
        texts.append(words)
        text_of(draw, position, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


# Side by side ---------------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_after_enlarging():
    found = pixels(compare([explanation()], height=80, alpha=0.0))
    panel = found[GAP : GAP + 80, GAP : GAP + 120]  # twice as large
    assert where(panel, GREY).mean() > 0.8
    green = where(panel, BOX)
    assert extent(green) == [60, 10, 100, 50]
    assert green[10:50, 60:62].all() and green[10:50, 98:100].all() and green[10:12, 60:100].all()
    assert not green[12:48, 62:98].any() and where(panel, INK)[9, 59:101].all()
    assert (found[:, :GAP] == 255).all() and (found[:GAP] == 255).all()


@pytest.mark.parametrize("colormap", ["inferno", "viridis"])
@pytest.mark.parametrize(("value", "alpha"), [(0.0, 0.5), (0.7, 0.5), (1.0, 0.8), (0.4, 0.0)])
def test_the_maps_colours(value, alpha, colormap):
    found = pixels(compare([explanation(value=value)], height=80, alpha=alpha, colormap=colormap, boxes="none"))
    expected = (1 - alpha) * np.array(GREY) + alpha * 255 * np.array(matplotlib.colormaps[colormap](value)[:3])
    assert np.abs(found[GAP : GAP + 80, GAP : GAP + 120] - expected).max() <= 1.6  # the map's 256 colours


def test_the_truth_is_blue_and_dashed():
    exp = explanation()
    truth = torch.tensor([[4.0, 4, 24, 34], [float("nan")] * 4])
    panel = pixels(compare([exp], truth=truth, height=80, alpha=0.0))[GAP : GAP + 80, GAP : GAP + 120]
    blue = where(panel, TRUTH)
    assert extent(blue) == [8, 8, 48, 68]
    line = blue[8, 8:48]
    assert line[0] and line[-1] and 0.4 < line.mean() < 0.7  # whole corners, gaps in between
    assert where(panel, INK)[8, 8:48][~line].all()
    assert extent(where(panel, BOX)) == [60, 10, 100, 50]


def test_the_plain_image_comes_first():
    truth = np.array([[4, 4, 24, 34]])
    found = pixels(compare([explanation(value=0.5)] * 2, truth=truth, image=True, height=80))
    first = found[GAP : GAP + 80, GAP : GAP + 120]
    assert not where(first, BOX).any() and extent(where(first, TRUTH)) == [8, 8, 48, 68]
    assert first[70, 100].tolist() == list(GREY)
    second = found[GAP : GAP + 80, 2 * GAP + 120 : 2 * GAP + 240]
    assert extent(where(second, BOX)) == [60, 10, 100, 50] and extent(where(second, TRUTH)) == [8, 8, 48, 68]


def test_true_masks_are_outlined():
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:30, 5:25] = True
    panel = pixels(compare([explanation(box=None)], truth_masks=mask, height=80, alpha=0))[GAP : GAP + 80, GAP:120]
    blue = where(panel, TRUTH)
    assert extent(blue) == [10, 20, 50, 60] and blue[20:22, 10:50].all() and not blue[22:58, 12:48].any()
    assert where(panel, INK)[19, 10:50].all() and panel[30, 30].tolist() == list(GREY)


@pytest.mark.parametrize(
    ("box", "true", "expected"),
    [
        ((0, 0, 10, 10), [[0, 0, 10, 10]], 1.0),
        ((0, 0, 10, 10), [[10, 0, 20, 10]], 0.0),
        ((0, 0, 10, 10), [[5, 0, 15, 10]], 1 / 3),
        ((0, 0, 10, 10), [[50, 50, 60, 60], [5, 5, 15, 15]], 25 / 175),
        ((0, 0, 4, 2), [[0, 0, 4, 4.5]], 8 / 18),
    ],
)
def test_iou_with_the_true_box_that_fits_best(box, true, expected):
    assert best_iou(torch.tensor(box), torch.tensor(true, dtype=torch.float64)) == pytest.approx(expected)


def test_what_is_written(written):
    exps = [explanation(pipeline="cam"), explanation(pipeline="rcam", box=None)]
    compare(exps, truth=torch.tensor([[30, 5, 50, 45]]), image=True, height=120)
    assert [words for words in written if words.startswith("score")] == [
        "score 87.6%, IoU 0.50", "score 87.6%, no box: IoU 0",
    ]  # fmt: skip
    assert [words for words in written if words in ("image", "cam", "rcam")] == ["image", "cam", "rcam"]
    assert written[-5:] == ["class map, normalised", "0", "1", "predicted box", "true box"]
    written.clear()
    compare(exps, titles=["one", "two"], height=120)
    assert [words for words in written if words.startswith("score")] == ["score 87.6%", "score 87.6%, no box"]
    assert "one" in written and "two" in written and "cam" not in written and "true box" not in written


def test_titles_name_the_layers_where_they_differ(written):
    compare([explanation(pipeline="cam"), explanation(pipeline="cam", layer="layer3")], height=120)
    assert {"cam at layer4", "cam at layer3"} <= set(written)


def test_a_grid_titles_its_columns_once_unless_they_differ(written):
    row = [explanation(pipeline="cam"), explanation(pipeline="rcam")]
    compare([row, row, row], height=80)
    assert written.count("cam") == written.count("rcam") == 1
    written.clear()
    compare([row, row[::-1]], height=80)
    assert written.count("cam") == written.count("rcam") == 2


def test_a_grid_keeps_columns_proportions_and_each_rows_truth():
    wide, tall = explanation(40, 80, None), explanation(80, 40, None)
    truth = [torch.tensor([[0, 0, 80, 40]]), None]
    found = pixels(compare([[wide, wide], [tall, tall]], truth=truth, height=100, alpha=0.0))
    grey = where(found, GREY)
    rows = np.flatnonzero(grey.sum(1) > 60)
    first, second = rows[rows < rows[0] + 100], rows[rows >= rows[0] + 100]
    assert second[0] + 99 == second[-1]
    starts = GAP + 75, 2 * GAP + 275  # 50 wide, in the middle of the columns' 200
    for start in starts:
        assert extent(grey[second[0] : second[-1] + 1, start - 75 : start + 125]) == [75, 0, 125, 100]
    blue = where(found, TRUTH)
    assert extent(blue[: first[-1] + 5]) == [GAP, GAP, 2 * GAP + 400, GAP + 100]
    assert not blue[second[0] : second[-1]].any()


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (300, 200, (360, 240)), (200, 300, (160, 240)), (128, 128, (240, 240)), (4000, 3000, (320, 240)),
        (600, 200, (720, 240)), (900, 60, (720, 48)), (60, 900, (48, 720)), (60, 300, (80, 400)), (1, 4000, (1, 720)),
    ],
)  # fmt: skip
def test_the_size_of_a_panel(width, height, expected):
    assert fit(width, height, 240) == expected


@pytest.mark.parametrize(
    ("count", "columns", "expected"), [(3, None, (3, 1)), (10, None, (4, 3)), (10, 10, (10, 1)), (5, 2, (2, 3))]
)
def test_a_list_breaks_into_rows(count, columns, expected):
    found = pixels(compare([explanation(200, 300, None)] * count, columns=columns, alpha=0.0))
    grey = where(found, GREY)
    assert grey[:, : 13 + 360].any(1).sum() == expected[1] * 240
    assert found.shape[1] == 13 + expected[0] * (360 + 13)


@pytest.mark.parametrize(
    "name", ["w" * 80, "black and gold garden spider, Argiope aurantia " * 2, "鳥" * 40, "", "a\nb"]
)
@pytest.mark.parametrize("size", [(60, 900), (900, 60), (96, 96), (1, 1)])
def test_any_name_and_shape(name, size):
    exp = explanation(*size, box=(0, 0, 1, 1), name=name, pipeline=name)
    found = pixels(compare([exp, exp], titles=[name, name], truth=torch.tensor([[0, 0, 1, 1]]), image=True))
    for x in (0, found.shape[1] - 1):  # nothing runs over the edge
        assert (found[:, x] == 255).all()


def test_the_legends_bar_is_the_colour_map():
    found = pixels(compare([explanation()], height=80, colormap="viridis"))
    colours = np.rint(matplotlib.colormaps["viridis"](np.linspace(0, 1, 15 * 11))[:, :3] * 255).astype(int)
    assert sum(np.array_equal(line[GAP : GAP + 165], colours) for line in found) == 10


def test_legend_entries_flow_and_wrap():
    entries = [Bar("class map", "inferno"), Key("a", BOX), Key("b", TRUTH, dashed=True)]
    one, several = legend(entries, 400, 11), legend(entries, 180, 11)
    assert one.width == 400 and several.width == 180 and several.height > one.height
    assert where(pixels(one), BOX).any() and where(pixels(one), TRUTH).any()
    assert legend([Key("word " * 50)], 100, 11).height > 4 * 11


ONE = explanation()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, r"compare got an empty list: expected a list of Explanations"),
        ([[]], {}, r"compare got an empty list"),
        (ONE, {}, r"compare got .*: expected a list of Explanations"),
        (7, {}, r"compare got 7: expected a list"),
        (["a.png"], {}, r"compare got 'a.png': expected"),
        ([[ONE], ONE], {}, r"compare got \[Explanation.*: expected a list"),
        ([ONE], {"titles": ["a", "b"]}, r"titles=\['a', 'b'\]: expected 1, one per explanation"),
        ([[ONE, ONE]], {"titles": "ab"}, r"titles='ab': expected 2, one per column"),
        ([ONE], {"truth": torch.zeros(4)}, r"truth: boxes have shape \(4,\): expected \(N, 4\)"),
        ([ONE], {"truth": [torch.zeros(1, 4)] * 2}, r"truth has 2 items for 1 explanations: expected one tensor"),
        ([[ONE]], {"truth": []}, r"truth has 0 items for 1 rows"),
        ([ONE], {"truth": 5}, r"truth is int: expected one tensor, or a list with one per explanation"),
        ([ONE], {"truth": ["x"]}, r"truth holds 'x': expected tensors"),
        ([ONE], {"truth_masks": torch.zeros(4, 4, 3)}, r"truth_masks: a mask has shape \(4, 4, 3\): expected \(H, W\)"),
        ([ONE], {"truth_masks": torch.zeros(60, 40)}, r"truth_masks: expected \(H, W\) = \(40, 60\).* not \(60, 40\)"),
        ([ONE], {"height": 0}, r"height=0: expected a whole number of at least 16"),
        ([ONE], {"height": 99.5}, r"height=99\.5: expected a whole number"),
        ([ONE], {"columns": 0}, r"columns=0: expected a whole number of at least 1"),
        ([[ONE]], {"columns": 2}, r"columns=2: a list of lists has its own rows"),
        ([ONE], {"alpha": 2}, r"alpha=2: expected a weight"),
        ([ONE], {"colormap": "x"}, r"colormap='x' is not one of matplotlib's"),
        ([ONE], {"boxes": "x"}, r"boxes='x': expected one of"),
        ([ONE, explanation(50, 50)], {"image": True}, r"image=True: expected explanations of one image in a row"),
    ],
)  # fmt: skip
def test_what_raises_an_error(given, options, message):
    with pytest.raises(InputError, match=message):
        compare(given, **options)


# Step by step ---------------------------------------------------------------------------------------------------------


RAW = torch.tensor([[-2.0, 0.0], [1.0, 4.0]])


def traced(*steps, **fields):
    return explanation(40, 40, (0, 0, 20, 40), trace=steps, **fields)


def panels(exp, count, height=64):
    """The figure of a trace in one row, and its maps' thumbnails, (height, height, 3) each."""
    figure = pixels(plot_trace(exp, height=height, columns=99))
    starts = [12 + (96 + 12) * (k + 1) + (96 - height) // 2 for k in range(count)]
    grey = where(figure[:, : 12 + 96], GREY)
    top = extent(grey)[1]
    return figure, [figure[top : top + height, x : x + height] for x in starts]


def colour(name, value):
    return np.rint(np.array(matplotlib.colormaps[name](float(value))[:3]) * 255).astype(int).tolist()


def test_signed_maps_are_centred_on_zero_and_normalised_ones_are_not():
    first = TraceStep("CAM()", "map", RAW)
    scaled = TraceStep("MinMax()", "refine", (RAW + 2) / 6, normalised=True)
    _, (one, other) = panels(traced(first, scaled), 2)
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = (16 + 32 * y, 16 + 32 * x)
        assert one[at].tolist() == colour(SIGNED, np.float32(0.5 + RAW[y, x] / 8))
        assert other[at].tolist() == colour("inferno", (RAW[y, x] + 2) / 6)
    assert (one[:32, :32] == one[0, 0]).all()  # cells stay visible


def test_changes_are_of_maps_brought_to_one_scale(written):
    after = TraceStep("Square()", "refine", torch.tensor([[0.0, 1 / 3], [1 / 4, 1.0]]) ** 2, normalised=True)
    before = TraceStep("MinMax()", "refine", torch.tensor([[0.0, 1 / 3], [1 / 4, 1.0]]), normalised=True)
    figure, _ = panels(traced(before, after), 2)
    assert "−0.22 to 0" in written and written.count("2 × 2") == 2 and written.count("0 to 1") == 2
    low, slight = colour(CHANGE, 0.0), colour(CHANGE, np.float32(0.5 - 0.5 * (3 / 16) / (2 / 9)))
    assert where(figure, low).sum() >= 32 * 32 and where(figure, slight).sum() >= 32 * 32


@pytest.mark.parametrize(
    ("values", "normalised", "words"),
    [
        (RAW, False, "unchanged"),
        (3 * RAW + 1, False, "unchanged but for its scale"),
        ((RAW + 2) / 6, True, "unchanged but for its scale"),
        (torch.zeros(6, 6), False, "the same map on the image’s pixels"),
        (RAW.clamp_min(0), False, "−0.33 to 0"),
    ],
)
def test_what_is_said_of_a_change(written, values, normalised, words):
    plot_trace(
        traced(TraceStep("CAM()", "map", RAW), TraceStep("x", "refine", values, normalised=normalised)), height=200
    )
    said = " ".join(written)
    assert words in said and "the first map" in said and "−2 to 4" in said
    assert ("unchanged but" in said) == ("but" in words)
    assert ("change, own scale" in said) == words.startswith("−")  # only where a change is drawn


def test_a_threshold_shows_mask_and_boxes(written):
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[:, :20] = True
    values = torch.rand(40, 40)
    exp = traced(
        TraceStep("MinMax()", "refine", values, normalised=True),
        TraceStep("PaS()", "threshold", values, mask, normalised=True),
    )
    _, (_, shown) = panels(exp, 2)
    assert shown[32, 16].tolist() == list(GREY) and shown[32, 48].tolist() == [33] * 3  # 0.3 of the mean
    assert extent(where(shown, BOX)) == [0, 0, 32, 64]
    assert "mask keeps 50.0%" in " ".join(written) and "map unchanged" in " ".join(written)
    assert written[-1] == "dark: outside the mask" and "normalised map" in written


def test_a_map_of_zeros_and_one_of_negatives(written):
    zeros, negative = TraceStep("a", "map", torch.zeros(2, 2)), TraceStep("b", "map", torch.full((2, 2), -3.0))
    _, (one, other) = panels(traced(zeros, negative), 2)
    assert one[5, 5].tolist() == colour(SIGNED, 0.5) and other[5, 5].tolist() == colour(SIGNED, 0.0)
    assert "unchanged but for" in " ".join(written)


def test_without_a_trace_the_way_out_is_named():
    with pytest.raises(InputError, match=r"no trace.*Explain with trace=True: explain\(model, image, trace=True\)"):
        explanation().plot_trace()
    step = TraceStep("CAM()", "map", RAW)
    for options, message in (({"height": 3}, "height=3: expected"), ({"columns": 0}, "columns=0: expected"),
                             ({"colormap": "x"}, "colormap='x' is not one")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            traced(replace(step, normalised=True)).plot_trace(**options)


@pytest.mark.parametrize("size", [(60, 900), (900, 60), (33, 47), (1, 1), (300, 400)])
@pytest.mark.parametrize("pipeline", ["cam", "rcam", "adaptive"])
def test_real_traces_of_any_shape(make_tiny, size, pipeline):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    transform = Preprocess(input_size=(32, 32), resize=(32, 32))
    exp = camtools.explain(make_tiny(), image, pipeline=pipeline, transform=transform, trace=True)
    before = matplotlib.rcParams.copy()
    found = pixels(exp.plot_trace())
    assert (found[:, [0, -1]] == 255).all() and found.shape[1] < 1650
    assert np.array_equal(found, pixels(camtools.plot.plot_trace(exp)))
    assert matplotlib.rcParams == before


def test_images_are_not_changed():
    image = Image.new("RGB", (60, 40), GREY)
    exp = replace(explanation(), input_image=read_image(image))
    compare([exp], truth=torch.tensor([[1, 1, 9, 9]]), height=40)
    exp.overlay()
    assert np.array_equal(np.asarray(exp.image), np.full((40, 60, 3), GREY))


def test_titles_are_the_classes_where_nothing_else_differs():
    from camtools.datasets import Scenes
    from camtools.datasets.scenes import scene_classifier

    model, image = scene_classifier(), Scenes("test", n=1)[0].image
    three = camtools.explain(model, image, top_k=3)
    one = [camtools.explain(model, image, pipeline=name) for name in ("cam", "rcam")]
    assert _titles([three], None, False) == [[exp.name for exp in three]]
    assert _titles([one], None, False) == [["cam", "rcam"]]
    assert _titles([one, three], None, True) == [["cam", "rcam"], [exp.name for exp in three]]


def test_a_class_that_is_the_title_is_not_said_again(written):
    compare([explanation(name="owl"), explanation(name="red kite")], height=40)
    assert [words for words in written if words in ("owl", "red kite")] == ["owl", "red kite"]
    written.clear()
    compare([explanation(pipeline="cam"), explanation(pipeline="fast")], height=40)
    assert [words for words in written if words == "red kite"] == ["red kite"] * 2
