"""Folders of photos: what is read of them, what is shown to the model, what is left out, and what is said of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import camtools
from camtools import Explainer, InputError, PipelineError, Preprocess
from camtools.cli import app
from camtools.defaults import DEFAULT_PRESET, DESCRIPTIONS
from camtools.images.adjusted import with_crop
from camtools.images.read import read_image
from camtools.model.device import autocast_to
from camtools.progress import progress_bar

SQUASH = Preprocess(input_size=(32, 32), resize=(32, 32))


def smooth(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    (place / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.jpg", "deep/c.png")):
        smooth(40, 60, number).save(place / name)
    return place


# What is decoded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "transform", [SQUASH, Preprocess((64, 64), 72), Preprocess((64, 96), (64, 96), crop_mode="border")]
)
def test_a_large_jpeg_is_decoded_at_a_fraction_and_lies_where_it_did(tmp_path, orientation, transform):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "photo.jpg"
    smooth(803, 1203).save(file, exif=exif, quality=97, subsampling=0)
    whole, part = read_image(file), read_image(file, least=transform.least)
    assert part.size == whole.size and part.image.width * part.image.height * 4 <= 803 * 1203
    (x, geometry), (y, same) = transform(whole), transform(part)
    assert same == geometry and (x - y).abs().max() < 0.06
    assert np.array_equal(part.pixels(), whole.image)
    shown = np.asarray(part.shown((80, 60)), dtype=float)
    assert np.abs(shown - np.asarray(whole.shown((80, 60)))).max() < 6
    larger = part.shown((part.size[0] // 2, part.size[1] // 2))  # more than is at hand: read again
    assert np.abs(np.asarray(larger, dtype=float) - whole.shown((larger.height, larger.width))).max() < 6


def test_boxes_of_a_large_jpeg_are_in_its_own_pixels(make_tiny, tmp_path):
    smooth(600, 900).save(tmp_path / "photo.jpg", quality=97, subsampling=0)
    explainer = Explainer(make_tiny(5), "cam", transform=SQUASH)
    part, whole = explainer(tmp_path / "photo.jpg"), explainer(Image.open(tmp_path / "photo.jpg"))
    assert part.size == (600, 900) and part.input_image.box is not None and whole.input_image.box is None
    assert (part.boxes - whole.boxes).abs().max() <= 9  # a third of one of the model's pixels
    assert part.image.size == (900, 600)


# What the model is shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crop", "shape", "everything"),
    [("model", (64, 64), False), ("squash", (64, 64), True), ("pad", (64, 64), True), ("full", (64, 96), True)],
)
def test_crops(crop, shape, everything):
    transform = with_crop(Preprocess((64, 64), 72), crop)
    x, geometry = transform(read_image(np.zeros((100, 150, 3), np.uint8)))
    assert tuple(x.shape[1:]) == shape and geometry.covers_all == everything
    with pytest.raises(InputError, match="crop='some': expected one of 'model', 'squash', 'pad', 'full'"):
        with_crop(transform, "some")


def test_nothing_of_an_image_is_lost_by_default(make_tiny):
    image = np.asarray(smooth(100, 150))
    assert camtools.explain(make_tiny(5), image).seen == (0, 0, 150, 100)
    assert camtools.explain(make_tiny(5), image, crop="model").seen != (0, 0, 150, 100)
    own = Preprocess((64, 64), 72)
    assert camtools.explain(make_tiny(5), image, transform=own).seen[0] > 0  # the caller's own is taken as it is
    assert camtools.explain(make_tiny(5), image, transform=own, crop="pad").seen == (0, 0, 150, 100)
    with pytest.raises(InputError, match="crop='pad' cannot change"):
        camtools.explain(make_tiny(5), image, transform=lambda image: torch.zeros(3, 8, 8), crop="pad")


def test_what_the_model_did_not_see_is_hatched(make_tiny):
    exp = camtools.explain(make_tiny(5), np.full((90, 200, 3), 40, np.uint8), transform=Preprocess((64, 64), 64))
    plain = np.asarray(exp.overlay(boxes="none", legend=False)).astype(int)
    x0, _, x1, _ = exp.seen
    white = (plain == 255).all(-1)
    assert white[:, :x0].any() and white[:, x1:].any() and not white[:, x0:x1].any()
    assert 0.05 < white[:, :x0].mean() < 0.5


def test_the_default_preset_and_text(make_tiny):
    image = np.asarray(smooth(40, 60))
    assert camtools.explain(make_tiny(5), image).pipeline == DEFAULT_PRESET == "fast"
    assert {name: preset.description for name, preset in camtools.PRESETS.items()} == DESCRIPTIONS
    exp = camtools.explain(make_tiny(5), image, pipeline="NWC,IVR(45)")
    assert exp.pipeline == "NWC,IVR(45)" and repr(exp.pixel_steps[0]) == "IVR(percentile=45)"
    with pytest.raises(PipelineError, match="'cam,rcam' are 2 pipelines: expected one"):
        Explainer(make_tiny(5), "cam,rcam")


# The forward ----------------------------------------------------------------------------------------------------------


class Viewing(nn.Module):
    """A model that wants its memory in one piece."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.layouts = []

    def forward(self, x):
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.fc(self.conv(x).view(len(x), 4, -1).permute(0, 2, 1).reshape(-1).view(len(x), -1, 4).mean(1))


def test_batches_are_channels_last_and_models_that_cannot_are_given_others(make_tiny):
    seen, model = [], make_tiny(5)
    model.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    strides = [parameter.stride() for parameter in model.parameters()]
    explainer = Explainer(model, "cam")
    explainer(torch.randn(3, 3, 24, 24))
    assert seen[-1] and strides == [parameter.stride() for parameter in model.parameters()]
    stubborn = Viewing().eval()
    found = Explainer(stubborn, "cam")(torch.randn(3, 3, 24, 24))
    assert len(found) == 3


@pytest.mark.parametrize("precision", ["bf16", "auto", "float32"])
def test_precision(make_tiny, precision):
    x, model = torch.randn(4, 3, 24, 24), make_tiny(5)
    expected = Explainer(model, "cam")(x, target=1)
    found = Explainer(model, "cam", precision=precision)(x, target=1)
    for one, other in zip(found, expected, strict=True):
        assert one.grid_map.dtype == torch.float32 and one.exact == other.exact
        assert one.score == pytest.approx(other.score, abs=0.02)
        assert (one.map - other.map).abs().max() < 0.1
    with autocast_to("bf16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with pytest.raises(InputError, match="precision='int4': expected one of 'float32', 'bf16', 'auto'"):
        Explainer(model, precision="int4")


# Long lists -----------------------------------------------------------------------------------------------------------


def test_a_broken_file_is_left_out(make_tiny, folder):
    (folder / "broken.jpg").write_bytes(b"no image")
    paths = [folder / name for name in ("a.jpg", "broken.jpg", "b.jpg")]
    explainer = Explainer(make_tiny(5), "cam", batch_size=2)
    with pytest.raises(InputError, match=r"image 1 .*broken"):
        explainer(paths)
    with pytest.warns(UserWarning, match=r"left out: image 1 .*broken"):
        found = explainer(paths, errors="skip")
    assert [exp and Path(exp.source).name for exp in found] == ["a.jpg", None, "b.jpg"]
    told = []
    streamed = explainer.stream(paths, top_k=2, errors=lambda *what: told.append(what), workers=2)
    assert [Path(exps[0].source).name for exps in streamed] == ["a.jpg", "b.jpg"]
    [(image, error)] = told
    assert image == paths[1] and "is not an image" in str(error)
    with pytest.raises(InputError, match="errors='ignore': expected 'raise', 'skip'"):
        next(explainer.stream(paths, errors="ignore"))


def test_streams_of_folders_patterns_lists_and_data_sets(make_tiny, folder, tmp_path):
    explainer = Explainer(make_tiny(5), "cam")
    names = lambda images: [Path(exp.source).name for exp in explainer.stream(images)]  # noqa: E731
    assert names(folder) == ["a.jpg", "b.jpg", "c.png"] and names(str(folder / "*.jpg")) == ["a.jpg", "b.jpg"]
    (tmp_path / "list.txt").write_text(f"{folder / 'b.jpg'}\n\n{folder / 'a.jpg'}\n")
    assert names(tmp_path / "list.txt") == ["b.jpg", "a.jpg"]

    class Labelled:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return smooth(40, 60, index), index

    assert [exp.size for exp in explainer.stream(Labelled(), progress=True)] == [(40, 60)] * 2
    with pytest.raises(InputError, match=r"neither a folder nor a pattern nor a list .* pass \['"):
        next(explainer.stream(str(folder / "a.jpg")))


def test_heic(make_tiny, folder, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    pillow_heif.register_heif_opener()
    smooth(64, 96).save(folder / "d.heic", quality=95)
    found = list(Explainer(make_tiny(5), "cam").stream(folder))
    assert [(Path(exp.source).name, exp.size) for exp in found[2:]] == [("d.heic", (64, 96)), ("c.png", (40, 60))]
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r'is HEIC, which needs pillow-heif: pip install "camtools\[heif\]"'):
        read_image(folder / "d.heic")


def test_progress_as_lines(capsys, monkeypatch):
    monkeypatch.setattr("camtools.progress.EVERY", 0)
    with progress_bar(3, "Explaining", plain=True) as advance:
        advance(1)
        advance(2, "soon")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Explaining: 1 of 3 images, ") and lines[1].startswith(
        "Explaining, soon: 3 of 3 images, "
    )
    assert lines[1].endswith(", 0 s left")


# The command ----------------------------------------------------------------------------------------------------------


def run(folder, *args):
    result = CliRunner().invoke(app, ["explain", str(folder), "--model", "scenes", *map(str, args)])
    assert result.exit_code == 0, result.stderr
    return result


def test_a_line_per_image(folder, tmp_path):
    result = run(folder, "--format", "jsonl", "--out", tmp_path / "out", "--save", "none", "--progress", "plain")
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["folder"] for entry in entries] == ["a", "b", "deep/c"]
    assert "Explaining: 3 of 3 images" in result.stderr
    assert [path.name for path in (tmp_path / "out" / "a").iterdir()] == ["manifest.json"]
    assert entries == json.loads((tmp_path / "out" / "manifest.json").read_text())["images"]


def test_what_is_saved(folder, tmp_path):
    options = ["--save", "overlay,crops", "--overlay-size", 30, "--overlay-format", "png", "--pipeline", "NWC,IVR(45)"]
    run(folder, "--out", tmp_path / "out", *options, "--crop", "pad", "--activation", "sigmoid", "--workers", 2)
    files = sorted(path.name for path in (tmp_path / "out" / "a").iterdir())
    assert files[-2:] == ["manifest.json", "overlay.png"] and files[0] == "crop-1.png"
    with Image.open(tmp_path / "out" / "a" / "overlay.png") as overlay:
        assert 30 <= overlay.width < 200
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert (settings["crop"], settings["pipeline"], settings["activation"]) == ("pad", "NWC,IVR(45)", "sigmoid")
    wrong = CliRunner().invoke(app, ["explain", str(folder), "--model", "scenes", "--save", "pictures"])
    assert wrong.exit_code == 2 and "any of overlay,mask,map,crops" in " ".join(wrong.stderr.replace("│", "").split())


def test_many_images_are_summed_up(folder):
    for number in range(20):
        smooth(20, 30, number).save(folder / f"{number}.png")
    table = run(folder).stdout
    assert "Images" in table and "a.jpg" not in table
    assert sum(int(line.strip("│ ").split()[-1]) for line in table.splitlines() if line.startswith("│")) == 23


def test_help_lists_the_presets():
    text = " ".join(CliRunner().invoke(app, ["explain", "--help"], env={"COLUMNS": "200"}).stdout.split())
    assert all(f"{name}:" in text for name in DESCRIPTIONS)
