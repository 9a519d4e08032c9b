"""`camtools reproduce cub` on a few drawn scenes in the place of birds, and how it chooses classes."""

import csv

import pytest
from PIL import Image
from typer.testing import CliRunner

from camtools.cli import app
from camtools.datasets import Scenes
from camtools.errors import InputError
from camtools_recipes import reproduce_cub
from camtools_recipes.reproduce_cub import CubBudget, cub_sets, run_cub, write_cub_report

TINY = CubBudget(classes=4, every=4, epochs=1, seeds=1, model="scenes", cut_after="blocks.1", conv=6, views=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder as BoxFolder reads it: 16 scenes to train with, 16 to test."""
    place = tmp_path_factory.mktemp("birds")
    for split in ("train", "test"):
        data = Scenes(split, 16, size=64)
        (place / split).mkdir()
        with (place / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class", "x0", "y0", "x1", "y1", "width", "height"])
            for i in range(16):
                record = data[i]
                record.image.save(place / split / f"{i}.png")
                name = data.classes[int(record.labels[0])]
                writer.writerow([f"{i}.png", name, *record.boxes[0].tolist(), 64, 64])
    return place


def test_classes_are_spread_and_numbered_anew(root):
    train, test = cub_sets(root, TINY)
    whole = sorted({Scenes("train", 16, size=64).classes[int(r.labels[0])] for r in Scenes("train", 16, size=64)})
    assert list(train.classes) == whole[:: len(whole) // 4][:4] == list(test.dataset.classes)
    for i in range(len(train)):
        record = train[i]
        assert record.labels.tolist() == train.labels_of(i)
        original = train.data[train.own[i]]
        assert train.classes[train.labels_of(i)[0]] == train.data.classes[int(original.labels[0])]
    assert len(test) == -(-len(test.dataset) // TINY.every)


def test_a_table_of_what_is_done(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce_cub, "READINGS", {"cam": "cam", "best": "fast"})  # the preset itself takes seconds
    rows = ["tap", "acol", "regressor of best", "decoder"]
    runs = run_cub(tmp_path, root, TINY, rows)
    assert [run.recipe for run in runs] == ["gap", *rows]
    write_cub_report(tmp_path, root, runs, TINY)
    table = (tmp_path / "table.md").read_text()
    for row in (
        "| `gap` | cam |",
        "| `gap` | best |",
        "| `gap` | centre |",
        "| `gap` | cream |",
        "| `gap` | z, centred |",
    ):
        assert row in table
    with Image.open(tmp_path / "sheet.png") as sheet:  # five models beside the image
        assert sheet.width > 6 * 150 and sheet.height > 150
    assert (tmp_path / "bars.png").exists() and len(list((tmp_path / "frozen").glob("*/features.f16"))) == 1
    capsys.readouterr()
    again = run_cub(tmp_path, root, TINY, minutes=0)  # what is done is read; nothing else begins
    assert [run.recipe for run in again] == ["gap", *rows] and not capsys.readouterr().err
    with pytest.raises(InputError, match=r"holds runs of another budget or of other settings"):
        run_cub(tmp_path, root, CubBudget())


def test_wrong_use(root, tmp_path):
    with pytest.raises(InputError, match=r"rows=\['gapp'\]: expected some of gap, tap, wgap"):
        run_cub(tmp_path, root, TINY, ["gapp"])
    with pytest.raises(InputError, match=r"holds no finished run of gap.*Give more minutes"):
        write_cub_report(tmp_path, root, run_cub(tmp_path, root, TINY, minutes=0), TINY)
    result = CliRunner().invoke(app, ["reproduce", "cub", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "cub needs --data ROOT" in result.output


def test_every_row_is_a_recipe_with_its_settings():
    from camtools.training import make_recipe

    for recipe, settings in reproduce_cub.ROWS.values():
        make_recipe(recipe, {**CubBudget().settings, **settings})
