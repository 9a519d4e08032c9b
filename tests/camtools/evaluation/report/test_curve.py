"""Curves: where lines and marks are, what is written, that labels keep clear of each other, what is refused."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch

from camtools import InputError
from camtools.evaluation.report import curve_figure, plot_curve
from camtools.evaluation.report.curve import leader, place, traced
from camtools.evaluation.report.lines import available, counted, panels
from camtools.evaluation.results import Value
from camtools.metrics import PxAP


def texts(figure):
    """Everything written on a figure, but for the axes' numbers."""
    found = [text.get_text() for text in figure.texts]
    return found + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


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
    for name, expected in zip(result.pipelines, accuracy, strict=True):
        np.testing.assert_array_equal(drawn[name].get_xydata(), np.stack([thresholds, expected], 1))
    assert accuracy[0, 200] == 50 and accuracy[0, 205] == 0  # two of four images, up to level 51
    assert marks(axes) == [(0.0, 50.0), (0.0, 50.0)]  # the first of equal thresholds


def test_the_maximum_is_labelled_with_value_and_threshold(make):
    result = make()
    result.rows.v1[0, 2, 30:40] = 0.7  # from level 30, that is from threshold 0.118, three images are found
    figure = curve_figure(result)
    assert marks(figure.axes[0])[0] == (pytest.approx(0.118), 75.0)
    assert "cam  75.0 at 0.118" in texts(figure) and "rcam  50.0 at 0.000" in texts(figure)
    assert not figure.legends


def test_the_calibrated_threshold_has_a_hollow_mark_and_a_key(make):
    values = {
        "cam": {"MaxBoxAcc": Value(50.0, 0.0, calibrated=0.0, calibrated_threshold=0.3)},
        "rcam": {"MaxBoxAcc": Value(50.0, 0.0, calibrated=50.0, calibrated_threshold=0.25)},
    }
    figure = curve_figure(make(values=values))
    assert marks(figure.axes[0], "_calibrated") == [(pytest.approx(0.3), 0.0), (pytest.approx(0.25), 50.0)]
    hollow = [line for line in figure.axes[0].lines if line.get_label() == "_calibrated"]
    assert all(line.get_markerfacecolor() == "white" for line in hollow)
    found = texts(figure)
    assert "cam  50.0 at 0.000, calibrated 0.0 at 0.300" in found
    assert "at the threshold chosen on the calibration data" in found


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
    assert "cam  41.7, calibrated 40.0" in texts(figure) and "rcam  58.3" in texts(figure)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_pxap_is_a_precision_recall_curve(make):
    result = make(masks=True)
    (panel,) = panels(result, "PxAP")
    # From the top, of each image: 3 pixels on objects; then 1 more and 1 beside; then 5 beside.
    curve = np.stack([panel.lines[0].x, panel.lines[0].y], 1)
    np.testing.assert_allclose(np.unique(curve, axis=0), [[75, 100], [100, 40], [100, 80]])
    assert panel.lines[0].label == f"{75 + 25 * 0.8:.1f}" and not panel.lines[0].marked
    assert panel.lines[1].same_as == "cam"
    assert "cam = rcam  95.0" in texts(curve_figure(result, "PxAP"))


def test_pxap_is_that_of_the_metric(make):
    result = make(masks=True)
    generator = np.random.default_rng(0)
    result.rows.on_objects[:] = generator.integers(0, 9, result.rows.on_objects.shape)
    result.rows.elsewhere[:] = generator.integers(0, 30, result.rows.elsewhere.shape)
    metric = PxAP()
    metric.on_objects = torch.from_numpy(result.rows.on_objects[1].sum(0).astype(np.int64))
    metric.elsewhere = torch.from_numpy(result.rows.elsewhere[1].sum(0).astype(np.int64))
    metric._update_count = 1
    assert panels(result, "PxAP")[0].lines[1].label == f"{metric.compute().item():.1f}"


def test_peak_iou_and_what_there_is(make):
    plain, masked = make(), make(masks=True)
    assert available(plain) == ("MaxBoxAcc", "MaxBoxAccV2")
    assert available(masked) == ("MaxBoxAcc", "MaxBoxAccV2", "PxAP", "PeakIoU")
    (panel,) = panels(masked, "PeakIoU")
    assert panel.lines[0].at == (0.0, pytest.approx(100 * (0.9 + 0.6 + 0.2) / 8))


def test_the_count_names_images_and_classes(make):
    result = make()
    assert counted(result, "MaxBoxAcc") == "4 images"  # the fifth has no box
    twice = replace(result, rows=replace(result.rows, index=np.array([0, 0, 1, 2, 3])))
    assert counted(twice, "MaxBoxAcc") == "4 classes in 3 images"
    assert "4 images" in texts(curve_figure(result))


def labels(figure):
    """The extents of the labels at maxima."""
    renderer = figure.canvas.get_renderer()
    return [text.get_window_extent(renderer) for text in figure.texts if " at " in text.get_text()]


@pytest.mark.parametrize("metric", ["MaxBoxAcc", "MaxBoxAccV2", "PeakIoU"])
def test_labels_keep_clear_of_each_other_and_of_the_marks(make, metric):
    generator = np.random.default_rng(1)
    names = ("cam", "rcam", "pas", "adaptive")
    result = make(names, generator.uniform(0, 1, (4, 4)), (200, 199, 201, 198), masks=True)
    figure = curve_figure(result, metric)
    found = labels(figure)
    assert len(found) >= 4
    for number, one in enumerate(found):
        assert not any(one.overlaps(other) for other in found[:number])
        for axes in figure.axes:
            for x, y in axes.transData.transform(marks(axes)):
                assert not one.contains(x, y)
    whole = figure.bbox
    assert all(one.x0 >= 0 and one.y0 >= 0 and one.x1 <= whole.x1 and one.y1 <= whole.y1 for one in found)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_flat_curves_on_top_of_each_other_share_one_label(make, level):
    names = ("cam", "rcam", "pas")
    figure = curve_figure(make(names, np.full((3, 4), level), (255, 255, 255)))
    assert f"cam = rcam = pas  {100 * level:.1f} at 0.000" in texts(figure)
    assert len(labels(figure)) == 1
    low, high = figure.axes[0].get_ylim()
    assert low == 0 and high > 100 * level


def test_many_lines_have_a_legend_with_their_values_and_look_different(make):
    names = tuple(f"pipeline {number}" for number in range(10))
    base = np.linspace(0.1, 0.95, 40).reshape(10, 4)
    figure = curve_figure(make(names, base, tuple(range(50, 150, 10))))
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(entries) == 10 and entries[-1].startswith("pipeline 9  100.0 at 0.000")
    assert [text.get_text() for text in figure.texts if " at " in text.get_text()] == ["100.0 at 0.000"]
    looks = {
        (str(line.get_color()), str(line.get_linestyle()), str(line._dash_pattern))
        for line in lines(figure.axes[0]).values()
    }
    assert len(looks) == 10
    extent = figure.legends[0].get_window_extent(figure.canvas.get_renderer())
    assert extent.x1 <= figure.bbox.x1 and extent.y0 >= 0
    assert extent.y1 < figure.axes[0].get_tightbbox(figure.canvas.get_renderer()).y0


def test_names_are_not_read_as_formulas_and_long_ones_are_cut(make):
    name = "$NWC$_" + "AbsoluteNegative,CAM," * 20
    figure = curve_figure(make((name, "cam"), baseline="cam"))
    entry = figure.legends[0].get_texts()[0]
    assert entry.get_text().startswith("$NWC$_Absolute") and "50.0 at 0.000" in entry.get_text()
    assert not entry.get_parse_math()
    assert figure.legends[0].get_window_extent(figure.canvas.get_renderer()).x1 <= figure.bbox.x1


def test_the_image_is_rgb_and_says_its_title(make):
    found = plot_curve(make(), title="CUB $x$")
    assert found.mode == "RGB" and 1000 < found.width < 1200
    assert np.asarray(found)[0, 0].tolist() == [255, 255, 255]
    assert "CUB $x$" in texts(curve_figure(make(), title="CUB $x$"))


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


def test_what_has_no_curve_is_refused(make):
    result = make()
    with pytest.raises(
        InputError, match="'GT-known' has no curve: expected one of MaxBoxAcc, MaxBoxAccV2, PxAP, PeakIoU"
    ):
        plot_curve(result, "GT-known")
    with pytest.raises(InputError, match="PxAP has no curve here: it needs a data set with masks"):
        plot_curve(result, "PxAP")
    with pytest.raises(InputError, match="PeakIoU has no curve here: none of the 5 rows has true masks"):
        plot_curve(result, "PeakIoU")
    result.rows.v1[:] = np.nan
    with pytest.raises(InputError, match="MaxBoxAcc has no curve here: none of the 5 rows has true boxes"):
        plot_curve(result)
    with pytest.raises(InputError, match="title=3: expected a text"):
        plot_curve(make(), title=3)


# Where labels go ------------------------------------------------------------------------------------------------------


def test_a_label_goes_beside_its_anchor_and_off_the_lines():
    line = traced(np.array([[0.0, 50.0], [200.0, 50.0]]))
    assert np.hypot(*np.diff(line, axis=0).T).max() <= 1.6
    ((x, y),) = place(np.array([[100.0, 50.0]]), np.array([[40.0, 10.0]]), line, (0.0, 0.0, 200.0, 100.0))
    assert x - 8 < 100 < x + 48 and (8 <= y - 50 <= 20 or 8 <= 50 - (y + 10) <= 20)


def test_labels_of_one_anchor_do_not_overlap_and_what_finds_no_room_is_none():
    anchors, sizes = np.full((3, 2), 30.0), np.full((3, 2), (40.0, 10.0))
    nothing = np.zeros((0, 2))
    found = place(anchors, sizes, nothing, (0.0, 0.0, 100.0, 100.0))
    for number, (x, y) in enumerate(found):
        assert 0 <= x <= 60 and 0 <= y <= 90
        for other_x, other_y in found[:number]:
            assert abs(x - other_x) >= 40 or abs(y - other_y) >= 10
    assert place(anchors[:1], sizes[:1], nothing, (0.0, 0.0, 30.0, 100.0)) == [None]


def test_only_labels_far_away_have_leaders():
    assert leader((0, 0), (10, 0), (40, 10)) is None
    np.testing.assert_allclose(leader((0, 0), (100, -5), (40, 10)), [[0, 0], [96, 0]])
