"""Contact sheets: which images in which order, their boxes, maps and IoU, and what raises an error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from camtools import Explainer, InputError, Preprocess
from camtools.drawing.overlay import BOX, TRUTH
from camtools.drawing.text import font
from camtools.evaluation.report import change_sheet, contact_sheet, explainer_map, model_maps, saved_maps
from camtools.evaluation.report.ranking import best_levels, changes, extremes, row_ious
from camtools.evaluation.report.sheet import Sheets

BASE = ((0.9, 0.6, 0.2, 0.0), (0.5, 0.8, 0.2, 0.4))


def dark(record, label):
    """A map of zeros."""
    return torch.zeros(7, 7)


MAPS = {"cam": dark, "rcam": dark}


def where(image, colour):
    """The half-open box of a colour, xyxy."""
    mask = (np.asarray(image) == colour).all(-1)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


# Which images -------------------------------------------------------------------------------------------------------


def test_best_and_worst_are_in_order_without_ties_changing_it():
    ious = np.array([0.5, 0.9, np.nan, 0.0, 0.9, 0.0])
    best, worst = extremes(ious, 3, 2)
    assert best.tolist() == [1, 4, 0] and worst.tolist() == [3, 5]
    best, worst = extremes(ious, 4, 4)  # none is in both
    assert best.tolist() == [1, 4, 0, 3] and worst.tolist() == [5]
    assert [part.tolist() for part in extremes(ious, 0, 0)] == [[], []]


def test_gains_and_losses_leave_out_what_did_not_change():
    one, other = np.array([0.5, 0.9, np.nan, 0.1, 0.2]), np.array([0.4, 0.2, 0.3, 0.9, 0.2])
    gained, lost = changes(one, other, 5, 5)
    assert gained.tolist() == [1, 0] and lost.tolist() == [3]
    assert changes(one, other, 1, 0)[0].tolist() == [1]


def test_iou_of_the_own_and_of_the_best_box(make):
    result = make()
    result.rows.v1[1, :4, 30] = 1.0  # rcam: all four are found at level 30 alone
    assert best_levels(result) == [0, 30]
    np.testing.assert_allclose(row_ious(result, "own")[:, :4], BASE, rtol=1e-6)
    np.testing.assert_allclose(row_ious(result, "best")[:, :4], [BASE[0], [1, 1, 1, 1]], rtol=1e-6)


def test_sections(make, records):
    sheets = Sheets(make(), records, MAPS)
    best, worst = sheets.best_and_worst(best=2, worst=1)
    assert (best.rows, worst.rows) == ((0, 1), (3,))
    assert best.title == "cam: best 2 of 4, by the IoU of the box at its own threshold"
    assert sheets.best_and_worst("rcam", 1, 1)[0].rows == (1,)
    gained, lost = sheets.gained_and_lost("rcam")
    assert (gained.rows, lost.rows) == ((3, 1), (0,))
    assert gained.title == "rcam: largest gains against cam, 2 of 2"


def test_without_own_boxes_those_at_the_best_threshold_count(make, records):
    result = make()
    result.rows.own_iou[:] = np.nan
    best, _ = Sheets(result, records, MAPS).best_and_worst(best=2)
    assert best.title == "cam: best 2 of 4, by the IoU of the box at the best threshold"
    assert best.rows == (0, 1)


# What is drawn --------------------------------------------------------------------------------------------------------


def test_captions_say_iou_and_change(make, records, written):
    contact_sheet(make(), records, MAPS, best=1, worst=1)
    assert "cam: best 1 of 4, by the IoU of the box at its own" in " ".join(written)
    ids = [words for words in written if words.endswith(".jpg")]
    assert ids == ["0.jpg", "3.jpg"]
    captions = [words for words in written if "IoU" in words and "by" not in words]
    assert captions == ["IoU 0.90", "IoU 0.50 (−0.40)", "no box, IoU 0.00", "IoU 0.40 (+0.40)"]
    assert "class 3" in written and "truth" in written and "true box" in written


def test_a_sheet_of_changes_shows_the_two(make, records, written):
    names = ("cam", "pas", "rcam")
    result = make(names, (*BASE, BASE[1]), (51, 51, 51))
    change_sheet(result, records, dict.fromkeys(names, dark), "rcam", gained=1, lost=1)
    assert "pas" not in written and written.count("rcam") == written.count("cam") == 2
    assert [words for words in written if words.endswith(".jpg")] == ["3.jpg", "0.jpg"]


def test_boxes_are_where_the_rows_have_them(make, records):
    sheets = Sheets(make(), records, MAPS, "own", 40, 0.5, "inferno")
    plain, found = sheets.cell(0, None), sheets.cell(0, 0)  # 40 x 20 pixels, shown at the most, 53 x 26
    assert sheets.width == 53 and plain.size == found.size == (53, 26)
    scale = np.array([53 / 40, 26 / 20] * 2)
    assert where(plain, TRUTH) == np.rint(np.array([4, 4, 16, 16]) * scale).tolist()
    assert not (np.asarray(plain) == BOX).all(-1).any()
    assert where(found, BOX) == np.rint(np.array([2, 4, 14, 16]) * scale).tolist()
    assert not (np.asarray(sheets.cell(3, 0)) == BOX).all(-1).any()  # it has none
    assert sheets.cell(0, 0) is found  # each is made once


def test_the_map_is_the_pipeline_s_for_the_row_s_class(make, records):
    asked = []

    def half(record, label):
        asked.append((record.id, label))
        return np.repeat([[0.0, 1.0]], 2, axis=0)

    sheets = Sheets(make(), records, {"cam": dark, "rcam": half}, "own", 60, 1.0, "gray")
    pixels = np.asarray(sheets.cell(2, 1))
    assert asked == [("2.jpg", 2)]
    assert pixels[-1, 0].tolist() == [0, 0, 0] and pixels[-1, -1].tolist() == [255, 255, 255]
    assert np.asarray(sheets.cell(2, 0))[-1, -1].tolist() == [0, 0, 0]


def test_the_best_box_is_that_of_the_map_at_the_best_threshold(make, records):
    values = np.zeros((30, 30))
    values[10:20, 5:15] = 1.0
    result = make()
    result.rows.v1[0, :4, 128] = 1.0  # cam's best threshold is that of level 128
    sheets = Sheets(result, records, {"cam": lambda record, label: values, "rcam": dark}, "best", 300, 0.0, "gray")
    found = where(sheets.cell(2, 0), BOX)  # 30 x 30 pixels, ten times as large
    assert np.abs(np.array(found) - [50, 100, 150, 200]).max() <= 3
    assert not (np.asarray(sheets.cell(2, 1)) == BOX).all(-1).any()


def test_strips_keep_their_proportions_and_sheets_their_width(make, records):
    result = make()
    strip = replace(records[1], image=Image.new("RGB", (5, 400)))
    records[1] = strip
    sizes = result.rows.sizes.copy()
    sizes[1] = 5, 400
    result = replace(result, rows=replace(result.rows, sizes=sizes))
    assert Sheets(result, records, MAPS, "own", 160, 0.5, "gray").cell(1, None).size == (2, 160)
    sheet = contact_sheet(result, records, MAPS, best=4, worst=0)
    assert sheet.mode == "RGB" and sheet.width <= 1900


def test_a_section_without_images_says_so(make, records, written):
    result = make(base=(BASE[0], BASE[0]))
    change_sheet(result, records, MAPS, "rcam")
    assert "rcam: largest gains against cam, 0 of 0: none" in written


def test_long_names_do_not_leave_their_cell(make, records, written):
    name = "AbsoluteNegative,CAM,IVR(45),MinMax," * 5
    contact_sheet(make(("cam", name)), records, {"cam": dark, name: dark}, best=1, worst=0, height=64)
    captions = [words for words in written if words.startswith(("Absolute", "CAM", "no box", "IoU"))]
    assert captions and all(font(11).getlength(words) <= 85 for words in captions)


# Where maps come from -------------------------------------------------------------------------------------------------


def test_maps_of_a_model_are_those_of_explain_under_the_protocol(records):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    model = torch.nn.Sequential(*layers, torch.nn.Linear(4, 5)).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    record = replace(records[0], image=Image.fromarray(pixels))
    found = model_maps(model, "cam,rcam", transform=Preprocess.imagenet())
    squash = replace(Preprocess.imagenet(), input_size=(224, 224), resize=(224, 224), crop_mode="squash")
    assert list(found) == ["cam", "rcam"]
    for name, map_of in found.items():
        expected = Explainer(model, name, transform=squash)(record.image, target=3).map
        torch.testing.assert_close(map_of(record, 3), expected)
        assert expected.shape == (20, 40)
    native = model_maps(model, "cam", protocol="native", transform=Preprocess.imagenet())["cam"](record, 3)
    assert not torch.allclose(native, found["cam"](record, 3), atol=0.05)  # it sees the centre only
    own = explainer_map(Explainer(model, "cam", transform=squash))
    torch.testing.assert_close(own(record, 1), found["cam"](record, 1))


def test_saved_maps_are_read_by_id(records, tmp_path):
    values = np.arange(224 * 224, dtype=np.float64).reshape(224, 224)
    np.save(tmp_path / "0.jpg.npy", values)
    found = saved_maps({"mine": tmp_path})["mine"](records[0], 0)
    np.testing.assert_allclose(found, values / values.max())
    with pytest.raises(InputError, match="is not a folder"):
        saved_maps(tmp_path / "none")


# What raises an error -----------------------------------------------------------------------------------------------


def test_wrong_arguments(make, records):
    result = make()
    with pytest.raises(InputError, match="maps has 'cam': expected one for each pipeline, also 'rcam'"):
        contact_sheet(result, records, {"cam": dark})
    with pytest.raises(InputError, match="pipeline='pas': expected one of the evaluation's, 'cam', 'rcam'"):
        contact_sheet(result, records, MAPS, "pas")
    with pytest.raises(InputError, match="pipeline='cam' is the baseline"):
        change_sheet(result, records, MAPS, "cam")
    with pytest.raises(InputError, match="best=-1: expected a whole number of at least 0"):
        contact_sheet(result, records, MAPS, best=-1)
    with pytest.raises(InputError, match=r"lost=1\.5: expected a whole number of at least 0"):
        change_sheet(result, records, MAPS, "rcam", lost=1.5)
    with pytest.raises(InputError, match="by='worst': expected 'own'"):
        contact_sheet(result, records, MAPS, by="worst")
    with pytest.raises(InputError, match="height=3: expected a whole number of at least 32"):
        contact_sheet(result, records, MAPS, height=3)


def test_wrong_records_and_maps(make, records):
    result = make()
    with pytest.raises(InputError, match=r"records\[0\] is '1.jpg', not '0.jpg': expected the data that was evaluated"):
        contact_sheet(result, {0: records[1]}, MAPS)
    with pytest.raises(InputError, match=r"records has no 0, which is '0\.jpg'"):
        contact_sheet(result, {}, MAPS)
    with pytest.raises(InputError, match=r"records\[0\] is int: expected a camtools.datasets.Record"):
        contact_sheet(result, {0: 3}, MAPS)
    with pytest.raises(InputError, match=r"maps\['cam'\] returned the shape \(1, 7, 7\) for '0.jpg'"):
        contact_sheet(result, records, {**MAPS, "cam": lambda record, label: torch.zeros(1, 7, 7)})
    with pytest.raises(InputError, match=r"maps\['cam'\] returned NoneType for '0.jpg'"):
        contact_sheet(result, records, {**MAPS, "cam": lambda record, label: None})
