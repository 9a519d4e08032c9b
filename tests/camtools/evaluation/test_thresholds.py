"""Thresholds chosen on other data: what they are, what they give, and how they get into a pipeline."""

import json

import numpy as np
import pytest

import camtools
from camtools.errors import InputError, PipelineError
from camtools.evaluation.results import LEVEL_OF
from camtools.evaluation.thresholds import calibrated


@pytest.fixture
def result(model, images, drawing, tmp_path, options):
    drawing(tmp_path / "other", count=9, seed=4)
    data, other = f"boxfolder:{images}", f"boxfolder:{tmp_path / 'other'}"
    return camtools.evaluate(model, data, "cam,rcam", calibrate=other, out=tmp_path / "out", **options)


def test_the_threshold_is_the_other_datas_and_the_value_is_at_it(result, model, tmp_path, options):
    other = camtools.evaluate(model, f"boxfolder:{tmp_path / 'other'}", "cam,rcam", **options)
    for name in ("cam", "rcam"):
        for metric in ("MaxBoxAcc", "MaxBoxAccV2", "Top-1 Loc@best"):
            value = result.metrics[name][metric]
            assert value.calibrated_threshold == other.metrics[name][metric].threshold
            assert value.calibrated <= value.value
    p, level = 1, int(result.metrics["rcam"]["MaxBoxAcc"].calibrated_threshold * 255)
    assert result.metrics["rcam"]["MaxBoxAcc"].calibrated == pytest.approx(
        100 * (result.rows.v1[p, :, level] >= 0.5).mean()
    )
    taus = result.metrics["rcam"]["MaxBoxAccV2"].calibrated_threshold
    hits = [
        (result.rows.v2[p, :, int(tau * 255)] >= np.float32(iou)).mean()
        for tau, iou in zip(taus, (0.3, 0.5, 0.7), strict=True)
    ]
    assert result.metrics["rcam"]["MaxBoxAccV2"].calibrated == pytest.approx(100 * np.mean(hits))
    assert result.metrics["cam"]["GT-known@own"].calibrated is None
    assert result.settings["calibration"]["images"] == 9
    assert LEVEL_OF[-1] == 254


def test_the_file_and_explain(result, model, images, tmp_path, options):
    data = json.loads((tmp_path / "out" / "threshold.json").read_text())
    tau = result.metrics["rcam"]["MaxBoxAcc"].calibrated_threshold
    assert data["thresholds"]["rcam"]["MaxBoxAcc"] == tau
    assert data["calibration"]["images"] == 9
    for source in (tmp_path / "out", str(tmp_path / "out" / "threshold.json"), result, tau):
        pipeline = calibrated("rcam", source)
        assert pipeline.summary == f"NWC, CAM, MinMax, FixedThreshold({tau})"
    found = camtools.explain(
        model, images / "000.png", pipeline=pipeline, target="red", transform=options["transform"],
        class_names=options["class_names"],
    )  # fmt: skip
    assert found.threshold == pytest.approx(tau)


def test_errors(result, tmp_path):
    with pytest.raises(InputError, match="has no pipeline 'adaptive': expected one of 'cam', 'rcam'; give name="):
        calibrated("adaptive", tmp_path / "out")
    with pytest.raises(InputError, match="no single threshold of 'MaxBoxAccV2' for 'cam': expected one of 'MaxBoxAcc'"):
        calibrated("cam", tmp_path / "out", metric="MaxBoxAccV2")
    with pytest.raises(InputError, match="holds no thresholds"):
        calibrated("cam", tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(
        InputError, match=r"expected the threshold\.json that camtools evaluate --calibrate has written"
    ):
        calibrated("cam", tmp_path / "list.json")
    (tmp_path / "null.json").write_text('{"thresholds": {"cam": null}}')
    with pytest.raises(InputError, match="holds no thresholds"):
        calibrated("cam", tmp_path / "null.json")
    with pytest.raises(PipelineError, match="0 <= theta < 1"):
        calibrated("cam", 1.0)


def test_what_was_made_of_other_results_goes(result, model, images, tmp_path, options):
    """Thresholds, the report and batches of the calibration are not those of a later run without them."""
    out, data = tmp_path / "out", f"boxfolder:{images}"
    made = ("table.md", "curve-MaxBoxAcc.png", "sheet-cam.png", "changes-rcam.png", "detections.parquet")
    for name in (*made, "notes.md"):
        (out / name).write_text("older")
    camtools.evaluate(model, data, "cam,rcam", calibrate=f"boxfolder:{tmp_path / 'other'}", out=out, **options)
    assert all((out / name).exists() for name in made), "the same results: what was made of them is right"
    camtools.evaluate(model, data, "cam,rcam", out=out, **options)
    assert not any((out / name).exists() for name in (*made, "threshold.json"))
    assert (out / "calibration" / "run.json").exists(), "they may be wanted again"
    camtools.evaluate(model, data, "cam", out=out, fresh=True, **options)
    assert sorted(p.name for p in out.iterdir()) == ["notes.md", "results.json", "rows.parquet", "run.json", "shards"]
