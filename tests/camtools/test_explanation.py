"""What an explanation says about itself, and that `save` writes all of it or nothing."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camtools
from camtools import Explainer, InputError, Preprocess
from camtools.boxes import SPECK, boxes_from_masks
from camtools.drawing.legend import Key
from camtools.explanation import Explanation
from camtools.images.geometry import Geometry
from camtools.images.read import read_image
from camtools.model.outputs import probabilities
from camtools.steps import ScoreThreshold, Sigmoid

PLAIN = Preprocess(input_size=(8, 8), resize=(8, 8))
FILES = ["manifest.json", "map.npz", "mask.png", "overlay.jpg"]


def explanation(name="red kite", height=40, width=60, parts=((30, 5, 50, 25), (2, 30, 12, 38)), source=None, seed=0):
    """An explanation whose mask is a few rectangles, xyxy."""
    rng = np.random.default_rng(seed)
    values = 0.1 * torch.from_numpy(rng.random((height, width), dtype=np.float32))
    for x0, y0, x1, y1 in parts:
        values[y0:y1, x0:x1] += 0.9
    image = read_image(source or rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Explanation(
        label=3,
        name=name,
        score=0.87654,
        grid_map=values,  # on a grid as fine as the image
        raw_map=values[:5, :6] - 0.5,
        threshold=0.5,
        geometry=Geometry.identity((height, width)),
        boxes=torch.tensor(parts, dtype=torch.int64).reshape(-1, 4),
        box_scores=torch.tensor([0.875, 0.5])[: len(parts)],
        exact=True,
        layer="layer4",
        logits=torch.arange(5.0),
        input_image=image,
        transform=PLAIN,
    )


@pytest.fixture
def exp():
    return explanation()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# The explanation itself -----------------------------------------------------------------------------------------------


def test_properties(exp, tmp_path):
    assert exp.box.tolist() == [30, 5, 50, 25]
    assert exp.size == (40, 60)
    assert exp.source is None
    assert exp.image.size == (60, 40) and exp.image.mode == "RGB"
    assert explanation(parts=()).box is None
    file = tmp_path / "image.png"
    Image.new("L", (60, 40), 77).save(file)
    assert explanation(source=file).source == str(file)
    assert np.array_equal(np.asarray(explanation(source=file).image), np.full((40, 60, 3), 77))


class Linear(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        self.append(torch.nn.Linear(2, 2)).eval()


def test_the_image_of_a_ready_tensor_is_shown_unnormalised():
    transform = Preprocess.imagenet()
    pixels = torch.rand(3, 20, 30)
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    exp = camtools.explain(Linear(), (pixels - mean) / std, transform=transform)
    shown = np.asarray(exp.image).transpose(2, 0, 1)
    assert np.abs(shown - pixels.numpy() * 255).max() <= 0.51


def test_repr_says_what_matters(exp, tmp_path):
    assert repr(exp) == (
        "Explanation(3 'red kite', score=0.877, box=(30, 5, 50, 25) of 2, map=40 x 60 from 5 x 6, exact at 'layer4')"
    )
    file = tmp_path / "image.png"
    Image.new("L", (60, 40)).save(file)
    other = explanation(parts=(), source=file).cpu()
    object.__setattr__(other, "exact", False)
    assert repr(other).endswith(f"box=none of 0, map=40 x 60 from 5 x 6, linearised at 'layer4', {str(file)!r})")


def test_to_dict_goes_through_json(exp):
    assert json.loads(json.dumps(exp.to_dict())) == {
        "source": None,
        "height": 40,
        "width": 60,
        "label": 3,
        "name": "red kite",
        "score": 0.87654,
        "box": [30, 5, 50, 25],
        "boxes": [[30, 5, 50, 25], [2, 30, 12, 38]],
        "cut": [False, False],
        "seen": [0, 0, 60, 40],
        "box_scores": [0.875, 0.5],
        "threshold": 0.5,
        "exact": True,
        "layer": "layer4",
        "pipeline": "",
        "map_size": [5, 6],
    }
    empty = explanation(parts=()).to_dict()
    assert (empty["box"], empty["boxes"]) == (None, [])


def test_cpu_copies_nothing_on_the_cpu(exp):
    assert exp.cpu().grid_map is exp.grid_map and exp.cpu().label == 3


@pytest.mark.gpu
def test_explanations_on_a_gpu(exp, cuda, tmp_path):
    moved = Explanation(**{**vars(exp), **{key: getattr(exp, key).to(cuda) for key in ("grid_map", "raw_map")}})
    assert moved.map.is_cuda and moved.cpu().map.device.type == "cpu" and torch.equal(moved.cpu().mask, exp.mask)
    assert np.array_equal(np.asarray(moved.overlay()), np.asarray(exp.overlay()))
    assert moved.to_coco() == exp.to_coco()
    assert torch.equal(Explanation.load(moved.save(tmp_path)).map, exp.map)


def test_probabilities():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    e = np.exp([1.0, 2.0, 4.0])
    assert probabilities(logits, "softmax")[0].tolist() == pytest.approx((e / e.sum()).tolist())
    assert probabilities(logits, "sigmoid")[0].tolist() == pytest.approx((e / (1 + e)).tolist())
    assert probabilities(logits[:, :1], "softmax")[:, 0].tolist() == pytest.approx([e[0] / (1 + e[0]), 0.5])
    assert probabilities(logits.half(), "softmax").dtype == torch.float32


# Overlay --------------------------------------------------------------------------------------------------------------


def test_overlay_draws_the_boxes_asked_for(exp):
    images = {
        boxes: np.asarray(exp.overlay(boxes=boxes, legend=False)).astype(int) for boxes in ("none", "largest", "all")
    }
    assert all(image.shape == (40, 60, 3) for image in images.values())
    green = {key: (image == (80, 255, 120)).all(-1) for key, image in images.items()}
    assert not green["none"].any()
    assert green["largest"][6:24, 30].all() and green["largest"][24, 31:49].all()
    assert not green["largest"][30:38, 2].any()
    assert green["all"][30:38, 2].all() and green["all"][30:38, 11].all() and green["all"][6:24, 30].all()
    assert np.array_equal(np.asarray(exp.overlay())[:40, :60], images["largest"])


@pytest.mark.parametrize("size", [(72, 96), (300, 200), (256, 386), (60, 900), (900, 60), (8, 8), (1, 1), (1500, 2000)])
@pytest.mark.parametrize("boxes", ["largest", "all", "none"])
def test_the_legend_leaves_the_image_alone(size, boxes):
    height, width = size
    exp = explanation("a rather long name for a bird", height, width, ((0, 0, max(1, width // 2), height),))
    plain, whole = (np.asarray(exp.overlay(boxes=boxes, legend=legend)) for legend in (False, True))
    assert plain.shape == (height, width, 3)
    assert np.array_equal(whole[:height, :width], plain)
    beside = whole.shape[0] == height  # narrow and high: beside it; else below
    assert beside == (size == (900, 60)), whole.shape
    assert whole.shape[1] == max(width, 13 * max(11, round((height * width) ** 0.5 / 34))) or beside
    strip = whole[:, width:] if beside else whole[height:]
    assert (strip[:3] == 255).all() and (strip[:, :3] == 255).all() and (strip[:, -3:] == 255).all()
    rest = whole[:height, width:]
    assert beside or (rest == 255).all()


def test_the_legend_says_what_the_box_is(exp, monkeypatch):
    said = []
    monkeypatch.setattr("camtools.drawing.overlay.Key", lambda *words: said.append(words) or Key(*words))
    for boxes in ("largest", "all", "none"):
        exp.overlay(boxes=boxes)
    explanation(parts=()).overlay()
    full = ("red kite 87.7%",)  # too long for 60 pixels
    assert said == [
        ("box: largest part above it", (80, 255, 120)), full, ("boxes: parts above it", (80, 255, 120)), full, full,
        ("no box: nothing above the threshold", None), full,
    ]  # fmt: skip
    said.clear()
    explanation("kite", 300, 400).overlay()
    assert said == [("box: largest part above it", (80, 255, 120))]  # the caption is whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": "some"}, r"boxes='some': expected one of 'largest', 'all', 'none'"),
        ({"alpha": 1.5}, r"alpha=1\.5: expected a weight between 0"),
        ({"alpha": -0.1}, r"alpha=-0\.1: expected"),
        ({"alpha": float("nan")}, r"alpha=nan: expected"),
        ({"colormap": "rainbows"}, r"colormap='rainbows' is not one of matplotlib's; try 'inferno'"),
    ],
)
def test_overlay_options_that_are_wrong(exp, options, message):
    with pytest.raises(InputError, match=message):
        exp.overlay(**options)


# COCO -----------------------------------------------------------------------------------------------------------------


def test_to_coco_is_a_data_set_of_one_image(exp, tmp_path):
    file = tmp_path / "image.png"
    Image.new("L", (60, 40)).save(file)
    data = json.loads(json.dumps(explanation(source=file).to_coco(7, first_annotation_id=100)))
    assert data["images"] == [{"id": 7, "file_name": "image.png", "height": 40, "width": 60}]
    assert data["categories"] == [{"id": 4, "name": "red kite"}]
    assert [a["id"] for a in data["annotations"]] == [100, 101]
    assert [a["bbox"] for a in data["annotations"]] == [[30, 5, 20, 20], [2, 30, 10, 8]]
    assert [a["area"] for a in data["annotations"]] == [400, 80]
    for annotation, (x0, y0, x1, y1) in zip(data["annotations"], exp.boxes.tolist(), strict=True):
        assert (annotation["image_id"], annotation["category_id"], annotation["iscrowd"]) == (7, 4, 0)
        assert annotation["score"] == pytest.approx(0.87654 * float(exp.map[y0:y1, x0:x1].max()))
    plain = exp.to_coco(category_id=0)
    assert plain["images"][0]["file_name"] == "1"
    assert plain["categories"][0]["id"] == plain["annotations"][0]["category_id"] == 0
    assert plain["annotations"][0]["id"] == 1
    assert explanation(parts=()).to_coco()["annotations"] == []


# Save -----------------------------------------------------------------------------------------------------------------


def check_saved(exp, directory):
    """All four files are there, and say what the explanation says."""
    with Image.open(directory / "mask.png") as mask:
        assert mask.mode == "1" and np.array_equal(np.asarray(mask), exp.mask.numpy())
    with Image.open(directory / "overlay.jpg") as overlay:
        assert (
            np.abs(np.asarray(overlay).astype(float) - np.asarray(exp.overlay(size=1280))).mean() < 15
        )  # noise as a JPEG
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    assert manifest.pop("files") == {"overlay": "overlay.jpg", "mask": "mask.png", "map": "map.npz"}
    assert manifest.pop("rebuild")["pixel_steps"] == [repr(step) for step in exp.pixel_steps]
    assert manifest == exp.to_dict()
    loaded = Explanation.load(directory)
    assert loaded.to_dict() == exp.to_dict() and repr(loaded) == repr(exp)
    for field in ("map", "mask", "grid_map", "raw_map", "logits", "boxes"):
        one, other = getattr(loaded, field), getattr(exp, field)
        assert one.dtype == other.dtype and torch.equal(one, other), field


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_saved_files_read_back_equal(exp, tmp_path, kind):
    place = tmp_path / "several" / "levels"
    assert exp.save(kind(place)) == place
    check_saved(exp, place)
    assert names(place) == FILES
    assert names(tmp_path) == ["several"]


def test_an_explanation_without_a_box_is_saved_too(tmp_path):
    exp = explanation(parts=())
    check_saved(exp, exp.save(tmp_path))


def test_an_older_explanation_is_replaced_and_other_files_stay(exp, tmp_path):
    explanation("an older one", 20, 20, ((3, 4, 8, 9),)).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "photo.png").write_bytes(b"mine too")
    exp.save(tmp_path)
    check_saved(exp, tmp_path)
    assert names(tmp_path) == sorted([*FILES, "notes.txt", "photo.png"])
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "photo.png").read_bytes() == b"mine too"


def test_names_of_any_alphabet(tmp_path):
    exp = explanation("птица\n鳥 “quoted” \\")
    check_saved(exp, exp.save(tmp_path / "鳥"))
    assert "птица" in (tmp_path / "鳥" / "manifest.json").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_file_name_that_is_no_text(tmp_path):
    file = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        Image.new("L", (60, 40)).save(file)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    exp = explanation(source=file)
    check_saved(exp, exp.save(tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert os.fsencode(manifest["source"]).endswith(b"caf\xe9.png")


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def breaking(monkeypatch, step):
    """Make one step of saving fail."""
    if step == "map":
        monkeypatch.setattr(np, "savez", full)
    elif step in ("overlay", "mask"):
        save = Image.Image.save

        def fail(image, path, *args, **kwargs):
            if step in str(path):
                path.write_bytes(b"half a pict")
                full()
            return save(image, path, *args, **kwargs)

        monkeypatch.setattr(Image.Image, "save", fail)
    else:
        method, name = {
            "manifest": ("write_text", "manifest.json"),
            "first move": ("replace", "overlay.jpg"),
            "second move": ("replace", "mask.png"),
            "last move": ("replace", "manifest.json"),
        }[step]
        original = getattr(Path, method)

        def fail(path, *args, **kwargs):
            staged = path.parent.name.startswith(".camtools-")
            return full() if path.name == name and staged else original(path, *args, **kwargs)

        monkeypatch.setattr(Path, method, fail)


STEPS = ["overlay", "mask", "map", "manifest", "first move", "second move", "last move"]


@pytest.mark.parametrize("step", STEPS)
def test_nothing_is_left_where_saving_fails(exp, tmp_path, monkeypatch, step):
    place = tmp_path / "several" / "levels"
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    breaking(monkeypatch, step)
    for directory in (place, used):
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\).*nothing half-written"):
            exp.save(directory)
    assert names(tmp_path) == ["used"]
    assert names(used) == ["notes.txt"] and (used / "notes.txt").read_text() == "mine"
    monkeypatch.undo()
    check_saved(exp, exp.save(place))


@pytest.mark.parametrize("step", STEPS)
def test_an_older_explanation_survives_where_saving_fails(exp, tmp_path, monkeypatch, step):
    older = explanation("an older one", 20, 20, ((3, 4, 8, 9),))
    older.save(tmp_path)
    breaking(monkeypatch, step)
    with pytest.raises(InputError, match="No space left on device"):
        exp.save(tmp_path)
    monkeypatch.undo()
    check_saved(older, tmp_path)
    assert names(tmp_path) == FILES
    check_saved(exp, exp.save(tmp_path))


def test_an_interruption_leaves_the_older_explanation(exp, tmp_path, monkeypatch):
    older = explanation("an older one", 20, 20, ((3, 4, 8, 9),))
    older.save(tmp_path / "out")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    for place in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            exp.save(tmp_path / place)
    monkeypatch.undo()
    check_saved(older, tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_directory_in_the_place_of_a_file_is_not_touched(exp, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"cannot be written \({name} is a directory there\)"):
        exp.save(tmp_path)
    assert names(tmp_path) == [name] and names(tmp_path / name) == ["mine.txt"]


def test_a_file_in_the_place_of_the_directory(exp, tmp_path):
    (tmp_path / "out").write_text("mine")
    for place in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(InputError, match=r"out.* cannot be written \(.+\): expected a directory"):
            exp.save(place)
    assert (tmp_path / "out").read_text() == "mine" and names(tmp_path) == ["out"]


def test_a_directory_that_is_read_only(exp, tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write anywhere")
        for place in (tmp_path, tmp_path / "new"):
            with pytest.raises(InputError, match="cannot be written"):
                exp.save(place)
        assert names(tmp_path) == []
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("failing", ["mkdir", "mkdtemp"])
def test_a_directory_that_refuses(exp, tmp_path, monkeypatch, failing):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp" if failing == "mkdtemp" else "pathlib.Path.mkdir", refuse)
    with pytest.raises(InputError, match=r"new cannot be written \(Permission denied\): expected a directory"):
        exp.save(tmp_path / "new")
    assert names(tmp_path) == []


def test_links_in_the_place_of_files_are_replaced_not_followed(exp, tmp_path):
    elsewhere = tmp_path / "elsewhere.npz"
    elsewhere.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "map.npz").symlink_to(elsewhere)
    (out / "mask.png").symlink_to(tmp_path / "nothing there")
    check_saved(exp, exp.save(out))
    assert elsewhere.read_text() == "mine" and not (out / "map.npz").is_symlink()


def test_what_explain_returns_can_be_saved(make_tiny, tmp_path):
    images = [np.full((30, 40, 3), 9, np.uint8), np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)]
    found = Explainer(make_tiny(5), transform=Preprocess(input_size=(32, 32), resize=(32, 32)))(images, top_k=2)
    for i, exp in enumerate(one for ones in found for one in ones):
        check_saved(exp, exp.save(tmp_path / str(i)))
    with torch.no_grad():
        check_saved(found[0][0], found[0][0].save(tmp_path / "again"))


# The map on the grid, and what is made of it ------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [*camtools.PRESETS, [Sigmoid(bias=[0.1, -2, 0, 1, 3]), ScoreThreshold(0.5)]])
def test_what_is_made_later_is_what_the_boxes_were_drawn_around(make_tiny, pipeline, tmp_path):
    """In a batch and alone, cropped and whole, and from the files: the same bits."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((70, 90), (48, 48), (70, 90), (33, 101))]
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    found = Explainer(make_tiny(5), pipeline, transform=Preprocess(input_size=(32, 32), resize=36))(paths, top_k=3)
    traced = Explainer(make_tiny(5), pipeline, transform=Preprocess(input_size=(32, 32), resize=36), trace=True)
    for of_image, again in zip(found, traced(paths, top_k=3), strict=True):
        for exp, whole in zip(of_image, again, strict=True):
            assert torch.equal(exp.map, whole.trace[-1].map) and torch.equal(exp.mask, whole.trace[-1].mask)
            assert exp.boxes.tolist() == boxes_from_masks(exp.mask, SPECK)[0].tolist() == whole.boxes.tolist()
            check_saved(exp, exp.save(tmp_path / "out"))


def test_maps_are_made_when_asked_for_and_not_kept(make_tiny):
    explainer = Explainer(make_tiny(5), "cam", transform=PLAIN)
    found = explainer([np.full((600, 800, 3), value, np.uint8) for value in range(4)])
    sizes = [value.nbytes for exp in found for value in vars(exp).values() if isinstance(value, torch.Tensor)]
    assert sum(sizes) < 4 * 600 * 800 * 4 / 100  # a hundredth of what the maps would be: the masks' outlines
    assert found[0].map is found[0].map and found[0].map.shape == (600, 800)


def test_an_overlay_of_another_size(exp):
    assert exp.overlay(legend=False, size=1000).size == (60, 40)
    small = exp.overlay(legend=False, size=30, alpha=0)
    assert small.size == (30, 20)
    green = (np.asarray(small) == (80, 255, 120)).all(-1)
    assert green[3:12, 15].all() and green[11, 15:25].all() and not green[:, :15].any()  # (30, 5, 50, 25) halved
    assert exp.map_at((20, 30)).shape == (20, 30)
    with pytest.raises(InputError, match="size=0"):
        exp.overlay(size=0)


def test_what_is_asked_for_is_saved_and_an_older_results_files_go(exp, tmp_path):
    exp.save(tmp_path, ["overlay", "mask", "map", "crops"], overlay_size=30, overlay_format="png")
    assert names(tmp_path) == ["crop-1.png", "crop-2.png", "manifest.json", "map.npz", "mask.png", "overlay.png"]
    for number, box in enumerate(exp.boxes.tolist(), 1):
        assert np.array_equal(Image.open(tmp_path / f"crop-{number}.png"), exp.image.crop(box))
    assert np.array_equal(Image.open(tmp_path / "overlay.png"), exp.overlay(size=30))
    exp.save(tmp_path, ["mask"])
    assert names(tmp_path) == ["manifest.json", "mask.png"]
    exp.save(tmp_path, [])
    assert names(tmp_path) == ["manifest.json"]
    for options, message in [
        ({"files": ["maps"]}, r"files=\['maps'\]: expected a list of any of 'overlay', 'mask', 'map', 'crops'"),
        ({"files": "map"}, r"files='map': expected a list"),
        ({"overlay_size": 0}, r"overlay_size=0"),
        ({"overlay_format": "gif"}, r"overlay_format='gif': expected 'jpg' or 'png'"),
    ]:
        with pytest.raises(InputError, match=message):
            exp.save(tmp_path, **options)


def test_what_cannot_be_loaded(exp, tmp_path):
    for make in (lambda: None, lambda: exp.save(tmp_path, ["mask"])):
        make()
        with pytest.raises(InputError, match="holds no whole explanation with its map"):
            Explanation.load(tmp_path)
    document = json.loads((exp.save(tmp_path) / "manifest.json").read_text())
    document["rebuild"]["pixel_steps"] = ["Mine(3)"]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"'Mine\(3\)' is no step of camtools"):
        Explanation.load(tmp_path)


def test_the_image_of_a_loaded_explanation_is_its_file(tmp_path):
    file = tmp_path / "image.png"
    Image.new("RGB", (60, 40), (10, 20, 30)).save(file)
    loaded = Explanation.load(explanation(source=file).save(tmp_path / "out"))
    assert loaded.image.getpixel((0, 0)) == (10, 20, 30)
    Image.new("RGB", (30, 40)).save(file)
    with pytest.raises(InputError, match=r"has 30 x 40 pixels, 60 x 40 when it was explained"):
        loaded.overlay()
    with pytest.raises(InputError, match="this image has no pixels"):
        Explanation.load(explanation().save(tmp_path / "out")).overlay()


def test_boxes_at_the_border_of_what_was_seen_are_marked():
    exp = explanation(parts=((20, 5, 40, 25), (21, 30, 30, 38)))
    assert exp.cut == (False, False) and exp.seen == (0, 0, 60, 40)
    crop = Geometry.from_resize_crop((40, 60), (40, 60), (40, 20))  # columns 20 to 40
    exp = replace(exp, geometry=crop)
    assert exp.cut == (True, False) and exp.seen == (20, 0, 40, 40)
