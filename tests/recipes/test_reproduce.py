"""`camtools reproduce scenes`: the arithmetic of its report on rows by hand; runs that are skipped or refused."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from camtools.datasets.scenes import Scenes
from camtools.errors import InputError
from camtools.evaluation import EvaluationResult
from camtools.evaluation.bootstrap import image_weights
from camtools.evaluation.rows import Ranked, Rows
from camtools.training.validation import top1_hits
from camtools_recipes import reproduce
from camtools_recipes.reproduce import MULTI, SINGLE, Budget, InMemory, RecipeRun, run_all
from camtools_recipes.reproduce_report import ReportCell, bars, csv, lines, markdown, write_report

TINY = Budget(train=6, multi=6, test=4, epochs=1, multi_epochs=1, seeds=1)


def made(ious, ranks=None, detections=None):
    """A result whose boxes have the same IoU at every threshold: `ious` by pipeline."""
    count = len(next(iter(ious.values())))
    levels = np.repeat(np.array(list(ious.values()), dtype=np.float32)[:, :, None], 256, axis=2)
    parts = len(ious)
    rows = Rows(
        index=np.arange(count),
        ids=[str(i) for i in range(count)],
        labels=np.zeros(count, dtype=np.int64),
        names=["a"] * count,
        sizes=np.full((count, 2), 8),
        truth=[np.array([[0.0, 0, 4, 4]], dtype=np.float32)] * count,
        rank=np.array(ranks or [0] * count),
        score=np.ones(count, dtype=np.float32),
        v1=levels,
        v2=levels,
        own_iou=levels[:, :, 0],
        own_threshold=np.full((parts, count), 0.2, dtype=np.float32),
        own_box=np.zeros((parts, count, 4), dtype=np.float32),
        pointing=np.ones((parts, count), dtype=np.float32),
    )
    return EvaluationResult(tuple(ious), rows, {}, [], {}, next(iter(ious)), detections or {})


def gap(seed, ious, ranks=None):
    return RecipeRun("gap", seed, made({"cam": ious, "rcam": [1.0] * len(ious), "adaptive": [0.0] * len(ious)}, ranks))


def tap(seed, ious, ranks=None):
    return RecipeRun("tap", seed, made({"cam": [0.0] * len(ious), "tap": ious}, ranks))


def line_of(found, recipe, reading):
    return next(line for line in found if (line.recipe, line.reading) == (recipe, reading))


def test_values_and_differences_by_hand():
    runs = [
        gap(0, [0.8, 0.4, 0.1, 0.6], ranks=[0, 1, 0, 0]),
        gap(1, [0.8, 0.8, 0.0, 0.0], ranks=[0, 0, 0, 0]),
        tap(0, [1.0, 1.0, 1.0, 1.0], ranks=[0, 0, 3, 2]),
        tap(1, [0.8, 0.8, 0.4, 0.0], ranks=[0, 0, 0, 9]),
    ]
    single, multi = lines(runs, replicates=50)
    assert multi == []
    assert [(line.recipe, line.reading) for line in single] == [
        ("gap", "cam"), ("gap", "rcam"), ("gap", "adaptive"), ("tap", "rcam"), ("tap", "cam")
    ]  # fmt: skip
    base = line_of(single, "gap", "cam").cells
    # IoU at least 0.3, 0.5, 0.7: 3, 2, 1 of four with the first seed, 2, 2, 2 with the second
    assert base["MaxBoxAccV2"] == ReportCell(50.0, (50.0, 50.0))
    assert base["top-1"] == ReportCell(87.5, (75.0, 100.0))
    assert base["PxAP"] == ReportCell(None)  # no pixels were counted
    own = line_of(single, "tap", "rcam").cells
    assert own["MaxBoxAccV2"].values == (100.0, pytest.approx(100 * (3 + 2 + 2) / 12))
    assert own["MaxBoxAccV2"].value == pytest.approx(100 * 19 / 24)
    assert own["MaxBoxAccV2"].delta == pytest.approx(100 * 19 / 24 - 50)
    assert own["top-1"].delta == pytest.approx((50 + 75) / 2 - 87.5)
    assert list(line_of(single, "tap", "rcam").alike) == ["MaxBoxAccV2"]
    assert line_of(single, "tap", "rcam").alike["MaxBoxAccV2"].delta == pytest.approx(100 * 19 / 24 - 100)
    assert line_of(single, "tap", "cam").alike["MaxBoxAccV2"].delta == -50.0
    assert line_of(single, "gap", "rcam").alike == {}
    assert line_of(single, "gap", "rcam").cells["MaxBoxAccV2"].delta == 50.0
    assert line_of(single, "tap", "cam").cells["MaxBoxAccV2"].delta == -50.0


def test_intervals_that_can_be_told():
    same = [[1.0] * 5, [0.0] * 5]  # every image alike: only the seeds' draw changes anything
    runs = [gap(0, [0.0] * 5), gap(1, [0.0] * 5), *(tap(seed, same[seed]) for seed in (0, 1))]
    cell = line_of(lines(runs)[0], "tap", "rcam").cells["MaxBoxAccV2"]
    assert (cell.value, cell.delta, cell.low, cell.high) == (50.0, 50.0, 0.0, 100.0)  # a quarter draws one seed twice
    sure = [gap(0, [0.0] * 5), tap(0, [1.0] * 5)]
    cell = line_of(lines(sure)[0], "tap", "rcam").cells["MaxBoxAccV2"]
    assert (cell.delta, cell.low, cell.high) == (100.0, 100.0, 100.0)
    twins = [gap(0, [0.9, 0.1, 0.4]), tap(0, [0.9, 0.1, 0.4])]
    cell = line_of(lines(twins)[0], "tap", "rcam").cells["MaxBoxAccV2"]
    assert (cell.delta, cell.low, cell.high) == (0.0, 0.0, 0.0)  # paired: the same images are drawn for both


def test_intervals_are_of_images_and_seeds():
    random = np.random.default_rng(5)
    theirs, ours = (random.uniform(size=(3, 12)).astype(np.float32) for _ in range(2))
    runs = [gap(s, theirs[s].tolist()) for s in range(3)] + [tap(s, ours[s].tolist()) for s in range(3)]
    cell = line_of(lines(runs, replicates=200)[0], "tap", "rcam").cells["MaxBoxAccV2"]
    images, seeds = image_weights(12, 200), image_weights(3, 200, seed=1)
    expected = []
    for drawn, times in zip(images, seeds, strict=True):
        chosen, total = np.repeat(np.arange(12), drawn), []
        for seed in np.repeat(np.arange(3), times):
            hits = [np.mean([(one[seed, chosen] >= at).mean() for at in (0.3, 0.5, 0.7)]) for one in (ours, theirs)]
            total.append(100 * (hits[0] - hits[1]))
        expected.append(np.mean(total))
    assert [cell.low, cell.high] == pytest.approx(np.percentile(expected, [2.5, 97.5]).tolist())


def test_a_regressor_has_boxes_and_no_maps():
    found = RecipeRun("cream_regressor", 0, made({"cam": [1.0] * 4, "cream_regressor": [1.0] * 4}))
    found = dataclasses.replace(found, ious=np.array([0.8, 0.6, 0.4, 0.0]))
    single, _ = lines([gap(0, [0.0] * 4), found], replicates=20)
    cells = line_of(single, "cream_regressor", "its own boxes").cells
    assert cells["MaxBoxAccV2"].value == pytest.approx(100 * (3 + 2 + 1) / 12)
    assert cells["PxAP"] == ReportCell(None) and cells["top-1"].value == 100.0
    assert len([line for line in single if line.recipe == "cream_regressor"]) == 1


def test_scenes_of_several_classes_are_compared_with_wildcat():
    def ranked(correct):
        count = len(correct)
        images, zeros = np.arange(count), np.zeros(count, dtype=np.int64)
        score = np.linspace(0.9, 0.1, count).astype(np.float32)
        return {"boxes": Ranked(images, zeros, score, np.array(correct), images, zeros)}

    runs = [
        RecipeRun(
            name, 0, made({"cam": [0.0] * 2, name: ious}, detections={name: ranked(hits), "cam": ranked([False] * 2)})
        )
        for name, ious, hits in (("wildcat", [0.4, 0.0], [False, True]), ("excam", [0.6, 0.0], [True, True]))
    ]
    single, multi = lines(runs, replicates=20)
    assert single == [] and [line.recipe for line in multi] == ["wildcat", "wildcat", "excam", "excam"]
    base, own = line_of(multi, "wildcat", "sigmoid").cells, line_of(multi, "excam", "sigmoid").cells
    assert base["LocalizationMAP"].value == 25.0  # of two objects the second detection finds one, at precision 1/2
    assert own["LocalizationMAP"].value == 100.0 and own["LocalizationMAP"].delta == 75.0
    assert own["MaxBoxAccV2"].delta == pytest.approx(100 * 2 / 6 - 100 / 6)


def test_texts_and_bars():
    runs = [gap(0, [0.0, 0.4]), tap(0, [0.0, 0.4])]
    single, _ = lines(runs, replicates=10)
    text = markdown(single)
    assert text.splitlines()[:3] == [
        "| recipe | read with | top-1 | MaxBoxAccV2 | PxAP | MaxBoxAccV2 to `gap` read alike |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `gap` | cam | 100.0 | 16.7 |  |  |",
    ]
    row = "| `tap` | rcam | 100.0 (+0.0, +0.0 to +0.0) | 16.7 (+0.0, +0.0 to +0.0) |  | -83.3, -100.0 to -66.7 |"
    assert row in text
    rows = csv(single).splitlines()
    assert rows[0] == "recipe,reading,metric,value,delta,low,high,seeds"
    assert "gap,cam,MaxBoxAccV2,16.6667,,,,16.6667" in rows and "tap,rcam,PxAP,,,,," in rows
    assert markdown([]) == ""
    image = bars(single, [])
    assert image.mode == "RGB" and len(image.getcolors(1 << 20)) > 2


def test_records_are_made_once():
    scenes = Scenes("train", 3)
    kept = InMemory("train", 3)
    assert kept.record(1) is kept.record(1) and kept.labels_of(1) == scenes.labels_of(1)
    assert kept.record(1).id == scenes.record(1).id and repr(kept) == repr(scenes)


def test_every_recipe_has_settings_that_it_takes():
    from camtools.training import make_recipe

    for name, options in {**SINGLE, **MULTI}.items():
        recipe = make_recipe(name, options)
        assert {key: getattr(recipe.config, key) for key in options} == options
    assert Budget.quick(2).seeds == 2 and Budget.quick(2).train < Budget().train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recipes that were run, and their report."""
    place = tmp_path_factory.mktemp("scenes")
    runs = run_all(place, TINY, ["tap"], device="cpu")
    return place, runs, write_report(place, runs, TINY, device="cpu")


def test_a_quick_run(folder):
    place, runs, paths = folder
    assert [(run.recipe, run.seed) for run in runs] == [("gap", 0), ("tap", 0)]
    assert [path.name for path in paths] == ["table.md", "table.csv", "bars.png", "sheet.png"]
    rows = runs[1].result.rows
    accuracy = 100 * top1_hits(rows, np.unique(rows.index)).mean()
    value = runs[1].result.metrics["tap"]["MaxBoxAccV2"].value
    assert f"| `tap` | rcam | {accuracy:.1f}" in (place / "table.md").read_text()
    assert f"tap,rcam,MaxBoxAccV2,{value:.4f}," in (place / "table.csv").read_text()
    with Image.open(place / "sheet.png") as image:
        assert image.height > 4 * 150  # a row a scene
    settings = (place / "tap" / "seed0" / "config.json").read_text()
    assert '"theta"' in settings and '"epochs": 1' in settings


def test_finished_runs_are_skipped_and_others_are_not(folder, monkeypatch):
    place, runs, _ = folder
    trained = []

    def note(name, *_):
        trained.append(name)

    monkeypatch.setattr(reproduce, "_run", note)
    again = run_all(place, TINY, ["tap"], device="cpu")
    assert trained == []
    assert [run.result.metrics for run in again] == [run.result.metrics for run in runs]
    hidden = place / "tap" / "seed0" / "test"
    hidden.rename(place / "hidden")
    try:
        with pytest.raises(InputError, match="holds no results of an evaluation"):
            run_all(place, TINY, ["tap"], device="cpu")  # as the runs are not made here
    finally:
        (place / "hidden").rename(hidden)
    assert trained == ["tap"]


def test_refusals(folder, tmp_path, monkeypatch):
    place, _, _ = folder
    with pytest.raises(InputError, match=r"holds runs of another budget or of other settings \(plan.json\)"):
        run_all(place, dataclasses.replace(TINY, train=7), ["tap"])
    monkeypatch.setitem(SINGLE, "tap", {"lr": 0.5})
    with pytest.raises(InputError, match="Choose another folder"):
        run_all(place, TINY, ["tap"])
    for names in (["tpa"], []):
        with pytest.raises(InputError, match=r"expected some of gap, tap, wgap, minmaxcam, .*excam"):
            run_all(tmp_path / "new", TINY, names)
    assert not (tmp_path / "new").exists()


def test_more_seeds_go_into_the_same_folder(folder, monkeypatch):
    monkeypatch.setattr(reproduce, "_run", lambda name, seed, own, *_: todo.append((name, seed)))
    todo = []
    with pytest.raises(InputError, match="holds no results"):
        run_all(folder[0], dataclasses.replace(TINY, seeds=2), ["tap"])
    assert todo == [("gap", 1)]
