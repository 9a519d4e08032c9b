"""Curves: where lines and marks are, what is written, that nothing covers anything else, what raises an error."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from camtools import InputError
from camtools.evaluation.report import curve_figure, plot_curve
from camtools.evaluation.report.curve import COLOURS
from camtools.evaluation.report.lines import available, counted, panels
from camtools.evaluation.results import Value
from camtools.metrics import PxAP


def entries(figure):
    """What the legend says."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def notes(axes):
    """What is written at marks, and where."""
    return [(text.get_text(), tuple(text.xy)) for text in axes.texts]


def marks(axes, label="_best"):
    """Where the marks of axes are, in the data's units."""
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_label() == label]


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_lines_are_the_result_s_curves_and_maxima_are_marked(make):
    result = make()
    axes = curve_figure(result).axes[0]
    thresholds, accuracy = result.curve("MaxBoxAcc")
    drawn = lines(axes)
    assert list(drawn) == ["cam", "rcam"]
    assert [line.get_color() for line in drawn.values()] == [*COLOURS[:2]]
    for name, expected in zip(result.pipelines, accuracy, strict=True):
        np.testing.assert_array_equal(drawn[name].get_xydata(), np.stack([thresholds, expected], 1))
    assert accuracy[0, 200] == 50 and accuracy[0, 205] == 0  # two of four images, up to level 51
    assert marks(axes) == [(0.0, 50.0), (0.0, 50.0)]  # the first of equal thresholds


def test_the_maximum_is_labelled_with_value_and_threshold(make):
    result = make()
    result.rows.v1[0, 2, 30:40] = 0.7  # from level 30, that is from threshold 0.118, three images are found
    figure = curve_figure(result)
    assert marks(figure.axes[0])[0] == (pytest.approx(0.118), 75.0)
    assert entries(figure) == ["cam  75.0 at 0.118", "rcam  50.0 at 0.000"]
    assert notes(figure.axes[0]) == [("75.0 at 0.118", marks(figure.axes[0])[0])]  # the highest


def test_the_calibrated_threshold_has_a_hollow_mark_and_a_key(make):
    values = {
        "cam": {"MaxBoxAcc": Value(50.0, 0.0, calibrated=0.0, calibrated_threshold=0.3)},
        "rcam": {"MaxBoxAcc": Value(50.0, 0.0, calibrated=50.0, calibrated_threshold=0.25)},
    }
    figure = curve_figure(make(values=values))
    assert marks(figure.axes[0], "_calibrated") == [(pytest.approx(0.3), 0.0), (pytest.approx(0.25), 50.0)]
    hollow = [line for line in figure.axes[0].lines if line.get_label() == "_calibrated"]
    assert all(line.get_markerfacecolor() == "white" for line in hollow)
    assert entries(figure) == [
        "cam  50.0 at 0.000, calibrated 0.0 at 0.300",
        "rcam  50.0 at 0.000, calibrated 50.0 at 0.250",
        "best for this data",
        "at the threshold chosen on the calibration data",
    ]
    assert [line.get_color() for line in hollow] == [*COLOURS[:2]]


def test_v2_has_a_panel_for_each_iou_and_the_mean(make):
    value = Value(41.7, (0.1, 0.2, 0.3), calibrated=40.0, calibrated_threshold=(0.05, 0.1, 0.15))
    result = make(values={"cam": {"MaxBoxAccV2": value}, "rcam": {"MaxBoxAccV2": Value(58.3)}})
    figure = curve_figure(result, "MaxBoxAccV2")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["IoU ≥ 0.3", "IoU ≥ 0.5", "IoU ≥ 0.7", "mean, one threshold for all"]
    # cam has 0.9, 0.6, 0.2, 0; rcam 0.5, 0.8, 0.2, 0.4
    best = [[round(y, 4) for _, y in marks(axes)] for axes in figure.axes]
    assert best == [[50, 75], [50, 50], [25, 25], [41.6667, 50]]
    assert [marks(axes, "_calibrated") for axes in figure.axes] == [
        [(pytest.approx(tau), level)] for tau, level in ((0.05, 50.0), (0.1, 50.0), (0.15, 25.0))
    ] + [[]]
    assert entries(figure)[:2] == ["cam  41.7, calibrated 40.0", "rcam  58.3"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_pxap_is_a_precision_recall_curve(make):
    result = make(masks=True)
    (panel,) = panels(result, "PxAP").values()
    # From the top, of each image: 3 pixels on objects; then 1 more and 1 beside; then 5 beside.
    curve = np.stack([panel[0].x, panel[0].y], 1)
    np.testing.assert_allclose(np.unique(curve, axis=0), [[75, 100], [100, 40], [100, 80]])
    assert panel[0].label == f"{75 + 25 * 0.8:.1f}" and panel[0].best is None
    figure = curve_figure(result, "PxAP")
    assert entries(figure) == ["cam  95.0", "rcam  95.0 (same curve as cam)"]
    assert not marks(figure.axes[0]) and not notes(figure.axes[0])


def test_pxap_is_that_of_the_metric(make):
    result = make(masks=True)
    generator = np.random.default_rng(0)
    result.rows.on_objects[:] = generator.integers(0, 9, result.rows.on_objects.shape)
    result.rows.elsewhere[:] = generator.integers(0, 30, result.rows.elsewhere.shape)
    metric = PxAP()
    metric.on_objects = torch.from_numpy(result.rows.on_objects[1].sum(0).astype(np.int64))
    metric.elsewhere = torch.from_numpy(result.rows.elsewhere[1].sum(0).astype(np.int64))
    metric._update_count = 1
    assert panels(result, "PxAP")[""][1].label == f"{metric.compute().item():.1f}"


def test_peak_iou_and_what_there_is(make):
    plain, masked = make(), make(masks=True)
    assert available(plain) == ("MaxBoxAcc", "MaxBoxAccV2")
    assert available(masked) == ("MaxBoxAcc", "MaxBoxAccV2", "PxAP", "PeakIoU")
    (panel,) = panels(masked, "PeakIoU").values()
    line = panel[0]
    assert (line.x[line.best], line.y[line.best]) == (0.0, pytest.approx(100 * (0.9 + 0.6 + 0.2) / 8))


def test_the_count_names_images_and_classes(make):
    result = make()
    assert counted(result, "MaxBoxAcc") == "4 images"  # the fifth has no box
    twice = replace(result, rows=replace(result.rows, index=np.array([0, 0, 1, 2, 3])))
    assert counted(twice, "MaxBoxAcc") == "4 classes in 3 images"
    assert curve_figure(result).axes[0].get_title(loc="right") == "4 images"


def boxes(figure):
    """The extents of all texts, after what they say."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in (legend.get_title(), *legend.get_texts()))]
    for axes in figure.axes:
        texts += axes.texts
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            shown = [tick.label1 for tick in axis.get_major_ticks() if limits[0] <= tick.get_loc() <= limits[1]]
            texts += [axis.label, *shown]
        texts += [child for child in axes.get_children() if isinstance(child, Text) and child not in axes.texts]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible() and text.get_text()]


@pytest.mark.parametrize(
    ("metric", "count", "length"),
    [
        *((metric, 10, 300) for metric in ("MaxBoxAcc", "MaxBoxAccV2", "PxAP", "PeakIoU")),
        *(("MaxBoxAccV2", *size) for size in ((1, 3), (1, 300), (10, 3))),
        ("PxAP", 1, 3),
    ],
)
def test_nothing_covers_anything_else(make, metric, count, length):
    generator = np.random.default_rng(1)
    names = tuple(f"{number} {'abc ' * length}"[:length] for number in range(count))
    values = {
        name: {
            "MaxBoxAcc": Value(50.0, 0.0, calibrated=50.0, calibrated_threshold=0.3),
            "MaxBoxAccV2": Value(50.0, (0.0,) * 3, calibrated=50.0, calibrated_threshold=(0.3,) * 3),
        }
        for name in names
    }
    until = tuple(generator.integers(150, 250, count).tolist())
    result = make(names, generator.uniform(0, 1, (count, 4)), until, values=values, masks=True)
    figure = curve_figure(result, metric, title="word " * length)
    FigureCanvasAgg(figure).draw()
    found = boxes(figure)
    for number, (words, box) in enumerate(found):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, words
        for other_words, other in found[:number]:
            assert not box.overlaps(other), (words, other_words)
    areas = [axes.get_window_extent() for axes in figure.axes]
    inside = [words for words, box in found if any(box.overlaps(area) for area in areas)]
    assert inside == [words for axes in figure.axes for words, _ in notes(axes)]  # only what is written at marks
    for axes in figure.axes:
        for note in axes.texts:
            box = note.get_window_extent()
            for line in axes.lines:  # it is above all lines and marks
                x, y = axes.transData.transform(line.get_xydata()).T
                assert not ((x >= box.x0) & (x <= box.x1) & (y >= box.y0)).any()


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_flat_curves_on_top_of_each_other_say_so(make, level):
    names = ("cam", "rcam", "pas")
    figure = curve_figure(make(names, np.full((3, 4), level), (255, 255, 255)))
    shown = f"{100 * level:.1f} at 0.000"
    twin = " (same curve as cam)"
    assert entries(figure) == [f"cam  {shown}", f"rcam  {shown}{twin}", f"pas  {shown}{twin}"]
    assert notes(figure.axes[0]) == [(shown, (0.0, 100 * level))]
    low, high = figure.axes[0].get_ylim()
    assert low == 0 and high > 100 * level


def test_many_lines_have_a_legend_with_their_values_and_look_different(make):
    names = tuple(f"pipeline {number}" for number in range(10))
    base = np.linspace(0.1, 0.95, 40).reshape(10, 4)
    figure = curve_figure(make(names, base, tuple(range(50, 150, 10))))
    assert len(entries(figure)) == 10 and entries(figure)[-1].startswith("pipeline 9  100.0 at 0.000")
    assert [words for words, _ in notes(figure.axes[0])] == ["100.0 at 0.000"]
    looks = {
        (str(line.get_color()), str(line.get_linestyle()), str(line._dash_pattern))
        for line in lines(figure.axes[0]).values()
    }
    assert len(looks) == 10
    extent = figure.legends[0].get_window_extent()
    assert extent.x1 <= figure.bbox.x1 and extent.y0 >= 0
    assert extent.y1 < figure.axes[0].get_tightbbox().y0


def test_names_are_not_read_as_formulas_and_long_ones_are_cut(make):
    name = "$NWC$_" + "AbsoluteNegative,CAM," * 20
    figure = curve_figure(make((name, "cam"), baseline="cam"))
    entry = figure.legends[0].get_texts()[0]
    assert entry.get_text().startswith("$NWC$_Absolute") and "50.0 at 0.000" in entry.get_text()
    assert not entry.get_parse_math()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_the_image_is_rgb_and_says_its_title(make):
    found = plot_curve(make(), title="CUB $x$")
    assert found.mode == "RGB" and 1000 < found.width < 1200
    assert np.asarray(found)[0, 0].tolist() == [255, 255, 255]
    (text,) = curve_figure(make(), title="CUB $x$").texts
    assert text.get_text() == "CUB $x$" and not text.get_parse_math()


def test_matplotlib_s_settings_do_not_matter_and_are_left_alone(make):
    expected = np.asarray(plot_curve(make()))
    before = dict(matplotlib.rcParams)
    changed = {"text.color": "red", "axes.facecolor": "black", "font.size": 30, "axes.grid": True, "xtick.color": "red"}
    with matplotlib.rc_context({**changed, "figure.facecolor": "black", "lines.linewidth": 9, "axes.edgecolor": "red"}):
        found = np.asarray(plot_curve(make()))
    np.testing.assert_array_equal(found, expected)
    assert dict(matplotlib.rcParams) == before


def test_pyplot_knows_nothing_of_the_figures(make):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot_curve(make())
    assert pyplot.get_fignums() == before


def test_what_has_no_curve_raises_an_error(make):
    result = make()
    with pytest.raises(
        InputError, match="'GT-known@own' has no curve: expected one of MaxBoxAcc, MaxBoxAccV2, PxAP, PeakIoU"
    ):
        plot_curve(result, "GT-known@own")
    with pytest.raises(InputError, match="PxAP has no curve here: none of the 5 rows has true masks"):
        plot_curve(result, "PxAP")
    with pytest.raises(InputError, match="PeakIoU has no curve here: none of the 5 rows has true masks"):
        plot_curve(result, "PeakIoU")
    result.rows.v1[:] = np.nan
    with pytest.raises(InputError, match="MaxBoxAcc has no curve here: none of the 5 rows has true boxes"):
        plot_curve(result)
    with pytest.raises(InputError, match="title=3: expected a text"):
        plot_curve(make(), title=3)
