"""`write_report`: which files, what is in them, and that they come all or none."""

import numpy as np
import pytest
import torch
from PIL import Image

from camtools import InputError
from camtools.evaluation.report import change_sheet, contact_sheet, markdown, plot_curve, write_report


def dark(record, label):
    return torch.zeros(7, 7)


MAPS = {"cam": dark, "rcam": dark}
CURVES = ["curve-MaxBoxAcc.png", "curve-MaxBoxAccV2.png"]


def same(path, image):
    with Image.open(path) as found:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def test_the_files_are_what_the_functions_return(make, records, tmp_path):
    result = make()
    (tmp_path / "mine.txt").write_text("kept")
    found = write_report(result, tmp_path, records, MAPS, best=1, worst=2)
    names = ["table.md", *CURVES, "sheet-cam.png", "sheet-rcam.png", "changes-rcam.png"]
    assert found == [tmp_path / name for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "mine.txt"])
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == markdown(result)
    same(tmp_path / CURVES[0], plot_curve(result))
    same(tmp_path / "sheet-rcam.png", contact_sheet(result, records, MAPS, "rcam", best=1, worst=2))
    same(tmp_path / "changes-rcam.png", change_sheet(result, records, MAPS, "rcam", gained=1, lost=2))


def test_without_images_there_are_no_sheets_and_names_become_file_names(make, records, tmp_path):
    assert [path.name for path in write_report(make(), tmp_path / "new" / "one")] == ["table.md", *CURVES]
    names = ("a/b c", "A-b-c", "..")
    base = np.full((3, 4), 0.7)
    found = write_report(
        make(names, base, (51,) * 3), tmp_path, records, dict.fromkeys(names, dark), pipelines=names[:2]
    )
    assert [path.name for path in found[3:]] == ["sheet-a-b-c.png", "sheet-A-b-c-2.png", "changes-A-b-c-2.png"]


def test_with_masks_there_are_their_curves(make, tmp_path):
    names = [path.name for path in write_report(make(masks=True), tmp_path)]
    assert names == ["table.md", *CURVES, "curve-PxAP.png", "curve-PeakIoU.png"]


def test_after_an_error_everything_is_as_before(make, records, tmp_path):
    def broken(record, label):
        raise RuntimeError("no map")

    (tmp_path / "table.md").write_text("older")
    with pytest.raises(RuntimeError, match="no map"):
        write_report(make(), tmp_path, records, {"cam": dark, "rcam": broken})
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "older"
    with pytest.raises(RuntimeError):
        write_report(make(), tmp_path / "new", records, {"cam": dark, "rcam": broken})
    assert not (tmp_path / "new").exists()


def test_what_raises_an_error(make, records, tmp_path):
    result = make()
    with pytest.raises(InputError, match="records came without maps"):
        write_report(result, tmp_path, records)
    with pytest.raises(InputError, match="maps came without records"):
        write_report(result, tmp_path, maps=MAPS)
    with pytest.raises(InputError, match="pipelines='cam': expected a list of names"):
        write_report(result, tmp_path, records, MAPS, pipelines="cam")
    with pytest.raises(InputError, match="pipeline='pas': expected one of"):
        write_report(result, tmp_path, records, MAPS, pipelines=["pas"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the report cannot be written to .*file: .*Name another folder"):
        write_report(result, tmp_path / "file")
