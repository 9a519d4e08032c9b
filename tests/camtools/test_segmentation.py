"""Semantic masks from a classifier whose answers are known: F is the image, the classes its colours."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camtools
from camtools import Explainer, InputError, Preprocess, Segmenter, TargetError, segment
from camtools.datasets import Scenes
from camtools.datasets.scenes import scene_classifier
from camtools.drawing.colours import voc_colour
from camtools.metrics import MeanIoU
from camtools.steps import CAM, CRF, NWC, FixedThreshold
from camtools.steps.dense_crf import mean_field

NAMES = ["red", "green", "blue"]
AS_IS = Preprocess(input_size=(32, 32), resize=None, mean=(0, 0, 0), std=(1, 1, 1))
OPTIONS = {"transform": AS_IS, "class_names": NAMES, "activation": "sigmoid"}


FORWARDS: list[int] = []  # images in every forward of any `Colours`


class Colours(nn.Module):
    """Logits are 20 times the mean red, green, blue less 0.05; the map of a class is its colour channel."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, classes)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])
            self.fc.weight.zero_()
            self.fc.weight[:3] = 20 * torch.eye(3)
            self.fc.bias.fill_(-1.0)
        self.eval()

    def forward(self, x):
        FORWARDS.append(x.shape[0])
        return self.fc(self.pool(self.conv(x)).flatten(1))


def painted(height, width, *squares):
    """A black image (H, W, 3) uint8; each square is (channel, x0, y0, x1, y1, value)."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for channel, x0, y0, x1, y1, value in squares:
        image[y0:y1, x0:x1, channel] = value
    return image


TWO = painted(32, 32, (0, 2, 3, 18, 15, 255), (2, 10, 18, 30, 30, 255))
RED = painted(32, 32, (0, 4, 4, 20, 20, 255))
BLACK = painted(32, 32)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(one, other, **tolerance):
    assert (one.classes, one.names, one.size) == (other.classes, other.names, other.size)
    assert one.scores == pytest.approx(other.scores, abs=1e-6)
    torch.testing.assert_close(one.probabilities, other.probabilities, **(tolerance or {"rtol": 0, "atol": 1e-6}))
    assert (one.mask != other.mask).float().mean() <= (0.01 if tolerance else 0)


# Which class wins a pixel ---------------------------------------------------------------------------------------------


def test_squares_of_two_colours():
    found = segment(Colours(), TWO, **OPTIONS)
    expected = torch.zeros(32, 32, dtype=torch.int64)
    expected[3:15, 2:18] = 1
    expected[18:30, 10:30] = 3
    assert found.mask.dtype == torch.int64
    assert torch.equal(found.mask, expected)
    blue, red = ((20 * area / 1024 - 1) for area in (240, 192))
    assert (found.classes, found.names) == ((2, 0), ("blue", "red"))  # likeliest first
    assert found.scores == pytest.approx([1 / (1 + math.exp(-blue)), 1 / (1 + math.exp(-red))], abs=1e-6)
    assert torch.equal(found.masks, torch.stack([expected == 3, expected == 1]))
    assert [boxes.tolist() for boxes in found.boxes] == [[[10, 18, 30, 30]], [[2, 3, 18, 15]]]
    assert (found.exact, found.layer, found.crf, found.pipeline) == (True, "conv", None, "rcam")


def test_probabilities_in_numbers():
    #                       pixel:    0    1    2    3    4
    red, green = torch.tensor([[1.0, 0.5, 0.0, 0.2, 0.6], [0.0, 0.5, 1.0, 0.1, 0.8]])
    x = torch.stack([red, green, torch.zeros(5)])[:, None]
    found = Segmenter(Colours(), "cam", background=0.25, **OPTIONS)(x, classes=["red", "green"])
    # Odds against the background: m / (1 - m) * .75 / .25.
    columns = [(1, 3, 3), None, None, (1, 0.75, 1 / 3), (1, 4.5, 12)]
    for pixel, odds in ((1, columns[0]), (3, columns[3]), (4, columns[4])):
        expected = torch.tensor(odds) / sum(odds)
        torch.testing.assert_close(found.probabilities[:, 0, pixel], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.probabilities.sum(0), torch.ones(1, 5))
    assert found.mask.tolist() == [[1, 1, 2, 0, 2]]  # at pixel 1 both are equal: the first that was named
    assert found.backgrounds == (0.25, 0.25)
    torch.testing.assert_close(found.maps, torch.stack([red, green])[:, None])
    swapped = Segmenter(Colours(), "cam", background=0.25, **OPTIONS)(x, classes=[1, 0])
    assert swapped.mask.tolist() == [[1, 2, 2, 0, 2]]
    lower = Segmenter(Colours(), "cam", background=0.19, **OPTIONS)(x, classes=[0, 1])
    assert lower.mask.tolist() == [[1, 1, 2, 1, 2]]


@pytest.mark.parametrize("pipeline", ["cam", "rcam", "adaptive"])
def test_a_single_class_at_the_pipelines_threshold_is_what_explain_gives(tiny, pipeline):
    images = [noise(40, 52), noise(33, 33, 1)]
    masks = Segmenter(tiny, pipeline, background=None, transform=AS_IS)(images, classes=[1])
    exps = Explainer(tiny, pipeline, transform=AS_IS)(images, target=[1, 1])
    for found, exp in zip(masks, exps, strict=True):
        assert torch.equal(found.maps[0], exp.map)
        assert found.backgrounds == (exp.threshold,)
        assert found.scores == (pytest.approx(exp.score),)
        certain = (exp.map - exp.threshold).abs() > 1e-5
        assert torch.equal((found.mask == 2) & certain, exp.mask & certain)
        assert certain.float().mean() > 0.99
        assert 0 < exp.mask.float().mean() < 1


def test_the_highest_map_above_the_background_wins(tiny):
    found = segment(tiny, noise(64, 48), classes=[0, 1, 2], background=0.4, transform=AS_IS)
    best, which = found.maps.max(0)
    torch.testing.assert_close(found.mask, torch.where(best > 0.4, which + 1, 0))
    assert set(found.mask.unique().tolist()) == {0, 1, 2, 3}


def test_an_even_map_never_wins():
    found = segment(Colours(), RED, classes=["green", "red"], background=0.01, **OPTIONS)
    assert not found.masks[0].any()
    assert int(found.masks[1].sum()) == 256


# Which classes are looked for ----------------------------------------------------------------------------------------


def test_classes_above_the_score():
    model = Colours()
    sigmoid = [segment(model, TWO, min_score=p, **OPTIONS).names for p in (0.0, 0.9, 0.96, 0.99)]  # .976, .940, .269
    assert sigmoid == [("blue", "red", "green"), ("blue", "red"), ("blue",), ()]
    assert segment(model, TWO, **OPTIONS).names == ("blue", "red")  # above .5
    softmax = OPTIONS | {"activation": "softmax"}
    assert segment(model, TWO, **softmax).names == ("blue", "red")  # .714, .280, .007
    assert segment(model, TWO, min_score=0.5, **softmax).names == ("blue",)


def test_an_image_without_any_class_is_background():
    found = segment(Colours(), [BLACK, TWO], **OPTIONS)
    assert found[0].classes == ()
    assert not found[0].mask.any()
    assert found[0].probabilities.shape == (1, 32, 32) and (found[0].probabilities == 1).all()
    assert (found[0].boxes, found[0].masks.shape, found[0].maps.shape) == ((), (0, 32, 32), (0, 32, 32))
    assert found[1].mask.any()
    assert repr(found[0]) == "Segmentation(32 x 32, background only)"
    assert repr(found[1]) == "Segmentation(32 x 32, 'blue' 23.4%, 'red' 18.8%)"


def test_classes_by_name_and_number_for_all_images_or_each():
    segmenter = Segmenter(Colours(), **OPTIONS)
    assert segmenter(TWO, classes="RED").classes == (0,)
    assert segmenter(TWO, classes=torch.tensor([2, 1])).classes == (2, 1)
    assert [s.classes for s in segmenter([TWO, RED], classes=["blue", 1])] == [(2, 1), (2, 1)]
    assert [s.classes for s in segmenter([TWO, RED], classes=2)] == [(2,), (2,)]
    each = segmenter([TWO, RED, BLACK, RED], classes=[["green"], None, [], [2, 0]])
    assert [s.classes for s in each] == [(1,), (0,), (), (2, 0)]
    assert [s.classes for s in segmenter.stream(iter([TWO, BLACK]), classes=[1])] == [(1,), (1,)]


@pytest.mark.parametrize(
    ("images", "classes", "words"),
    [
        (TWO, ["grey"], "no class named 'grey'"),
        (TWO, [3], "Class index 3 is out of range"),
        (TWO, ["red", 0], r"classes=\['red', 0\] names a class twice: these are classes \[0, 0\]"),
        (TWO, [], "classes is empty: expected at least one class, or None"),
        (TWO, [[0]], "classes has 1 items, lists among them, for a single image: expected a flat list"),
        ([TWO, RED], [[0], [1], [2]], "classes has 3 items, lists among them, for 2 images"),
    ],
)
def test_classes_that_cannot_be(images, classes, words):
    with pytest.raises(TargetError, match=words):
        Segmenter(Colours(), **OPTIONS)(images, classes=classes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"background": 0}, "background=0: expected a number, 0 < background < 1"),
        ({"background": 1.0}, "background=1.0: expected"),
        ({"background": True}, "background=True: expected"),
        ({"background": math.nan}, "background=nan: expected"),
        ({"min_score": 1}, "min_score=1: expected a number, 0 <= min_score < 1"),
        ({"min_score": -0.1}, "min_score=-0.1: expected"),
        ({"crf": "yes"}, "crf='yes': expected True, False, or a camtools.steps.CRF"),
        ({"activation": "relu"}, "activation='relu': expected 'softmax' or 'sigmoid'"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number"),
    ],
)
def test_arguments_that_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        Segmenter(Colours(), **OPTIONS | options)
    with pytest.raises(InputError, match=words):
        segment(Colours(), TWO, **OPTIONS | options)


# Batches, devices, the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("crf", [None, CRF(backend="torch", scale=0.5, iterations=2)], ids=["plain", "crf"])
def test_batches_of_any_sizes_and_numbers_of_classes(tiny, crf):
    images = [noise(40, 52), noise(33, 33, 1), noise(40, 52, 2), noise(33, 33, 3), noise(40, 52, 4)]
    classes = [[0], [2, 1, 0], [1, 2], [], [0, 1, 2]]
    transform = Preprocess(input_size=(32, 32), resize=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    segmenter = Segmenter(tiny, crf=crf, transform=transform, batch_size=4)
    together = segmenter(images, classes=classes)
    for image, wanted, found in zip(images, classes, together, strict=True):
        (alone,) = segmenter([image], classes=[wanted])
        assert_same(found, alone, **({"rtol": 0, "atol": 1e-4} if crf else {}))
    assert [s.size for s in together] == [(40, 52), (33, 33), (40, 52), (33, 33), (40, 52)]
    assert [len(s.probabilities) for s in together] == [2, 4, 3, 1, 4]


def test_one_forward_serves_all_classes_and_the_model_stays_as_it_was():
    model = Colours().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    segmenter = Segmenter(model, batch_size=2, crf=CRF(backend="torch"), **OPTIONS)
    segmenter(TWO)  # the first finds out where the features are
    FORWARDS.clear()
    segmenter([TWO, RED, BLACK], classes=[0, 1, 2])
    assert FORWARDS == [2, 1]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_streams_and_ready_tensors():
    segmenter = Segmenter(Colours(), batch_size=2, **OPTIONS)
    images = [TWO, RED, BLACK]
    listed = segmenter(images)
    for one, other in zip(listed, segmenter.stream(iter(images)), strict=True):
        assert_same(one, other)
    ready = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in images]).float() / 255
    for one, other in zip(listed, segmenter(ready), strict=True):
        assert_same(one, other)


def test_pixels_that_a_crop_cut_off_are_background():
    crop = Preprocess(input_size=(32, 32), resize=32, mean=(0, 0, 0), std=(1, 1, 1))
    image = painted(32, 64, (0, 0, 0, 64, 20, 255))
    found = segment(Colours(), image, **OPTIONS | {"transform": crop})
    assert found.mask[:20, 16:48].eq(1).all()
    assert not found.mask[:, :16].any() and not found.mask[:, 48:].any() and not found.mask[20:].any()


def test_on_every_device(device):
    found = segment(Colours(), [TWO, RED], device=device, **OPTIONS)
    assert found[0].mask.device.type == device.type
    for one, other in zip(found, segment(Colours(), [TWO, RED], **OPTIONS), strict=True):
        assert_same(one.cpu(), other)


def test_linearised_heads_have_masks_too():
    torch.manual_seed(3)
    conv = nn.Conv2d(3, 4, 4, stride=4)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    model = nn.Sequential(conv, nn.ReLU(), *head).eval()
    found = segment(model, noise(32, 32), classes=[0, 1], background=0.4, transform=AS_IS)
    assert found.exact is False
    best, which = found.maps.max(0)
    assert torch.equal(found.mask, torch.where(best > 0.4, which + 1, 0))


# CRF -----------------------------------------------------------------------------------------------------------------


def test_one_class_under_a_crf_is_the_crf_step():
    kernels = {"gaussian": (2, 1), "bilateral": (8, 20, 2), "iterations": 4, "backend": "torch", "scale": 1}
    image = noise(24, 20)
    found = segment(Colours(), image, classes=[0], background=0.35, crf=CRF(**kernels), pipeline="cam", **OPTIONS)
    steps = [*camtools.preset("cam")[:-1], CRF(background=0.35, **kernels), FixedThreshold(0.5)]
    exp = camtools.explain(Colours(), image, target=0, pipeline=steps, **OPTIONS)
    torch.testing.assert_close(found.probabilities[1], exp.map, atol=1e-5, rtol=0)
    assert found.crf.startswith("CRF(background=0.5, eps=0.01, gaussian=(2, 1)")
    assert 0 < found.masks.float().mean() < 1


def test_several_classes_under_a_crf_are_one_problem():
    kernels = {"gaussian": (2, 1), "bilateral": (8, 20, 2), "iterations": 4}
    image = noise(24, 20)
    crf = CRF(eps=0.05, backend="torch", scale=1, **kernels)
    found = segment(Colours(), image, classes=[2, 0], background=0.3, crf=crf, **OPTIONS)
    maps = torch.from_numpy(image[..., [2, 0]]).permute(2, 0, 1).double()
    low, high = (f(maps.flatten(1), 1, keepdim=True)[..., None] for f in (torch.amin, torch.amax))
    share = ((maps - low) / (high - low)).clamp(0.05, 0.95)
    weights = torch.cat([torch.ones(1, 24, 20), share / (1 - share) * 0.7 / 0.3])
    images = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
    expected = mean_field(-weights.log()[None], images, **kernels)[0]
    torch.testing.assert_close(found.probabilities.double(), expected, atol=1e-4, rtol=0)
    assert torch.equal(found.mask, torch.tensor([0, 3, 1])[found.probabilities.argmax(0)])


def test_both_backends_agree_where_the_mask_is_decided():
    pytest.importorskip("pydensecrf", reason="needs pydensecrf: pip install 'camtools[crf]'")
    kernels = {"gaussian": (2, 1), "bilateral": (20, 20, 2), "iterations": 4}
    image = np.maximum(TWO, noise(32, 32) // 8)
    lattice, exact = (
        segment(Colours(), image, classes=[0, 2], crf=CRF(backend=backend, **kernels), **OPTIONS)
        for backend in ("pydensecrf", "torch")
    )
    decided = exact.probabilities.amax(0) > 0.9
    assert decided.float().mean() > 0.9
    assert torch.equal(lattice.mask[decided], exact.mask[decided])
    assert set(exact.mask.unique().tolist()) == {0, 1, 3}


def test_a_crf_draws_a_coarse_mask_to_the_edges():
    image = painted(64, 64, (0, 17, 13, 45, 51, 255), (1, 17, 13, 45, 51, 128))
    coarse = Preprocess(input_size=(8, 8), resize=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    options = OPTIONS | {"transform": coarse}
    crf = CRF(gaussian=None, bilateral=(30, 20, 5), backend="torch", scale=1)
    plain = segment(Colours(), image, classes="red", background=0.4, **options)
    refined = segment(Colours(), image, classes="red", background=0.4, crf=crf, **options)
    truth = torch.from_numpy(image[..., 0] > 0)
    wrong = [int(((one.mask == 1) != truth).sum()) for one in (plain, refined)]
    assert wrong[0] > 50 and wrong[1] == 0


def test_true_is_the_default_crf():
    segmenter = Segmenter(Colours(), crf=True, **OPTIONS)
    assert isinstance(segmenter.crf, CRF)
    assert Segmenter(Colours(), crf=False, **OPTIONS).crf is None
    assert "crf=CRF(" in repr(segmenter)


# What can be done with the result -------------------------------------------------------------------------------------


def test_the_palette_image_has_vocs_values():
    image = segment(Colours(), TWO, **OPTIONS).to_image()
    assert image.mode == "P"
    values = np.asarray(image)
    assert (values[5, 5], values[20, 20], values[0, 0]) == (1, 3, 0)
    assert image.convert("RGB").getpixel((20, 20)) == voc_colour(3) == (128, 128, 0)


def test_more_classes_than_a_byte_are_numbered_in_their_order():
    model = Colours(classes=300)
    found = segment(model, TWO, classes=[299, 0, 2], transform=AS_IS)
    assert found.values == (1, 2, 3)
    assert np.unique(np.asarray(found.to_image())).tolist() == [0, 2, 3]  # the model sees class 299 nowhere
    assert found.mask.unique().tolist() == [0, 1, 3]
    assert [entry["value"] for entry in found.to_dict()["classes"]] == [1, 2, 3]
    assert segment(Colours(classes=254), TWO, classes=[253], transform=AS_IS).values == (254,)
    many = segment(model, TWO, classes=list(range(255)), transform=AS_IS)
    with pytest.raises(InputError, match="255 classes do not fit into an image with a palette: expected at most 254"):
        many.to_image()


def test_saved_files_come_back(tmp_path):
    found = segment(Colours(), TWO, **OPTIONS)
    folder = found.save(tmp_path / "new" / "two")
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "mask.png", "overlay.jpg"]
    assert np.array_equal(np.asarray(Image.open(folder / "mask.png")), found.mask.numpy())
    assert Image.open(folder / "mask.png").mode == "P"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == {**found.to_dict(), "files": {"overlay": "overlay.jpg", "mask": "mask.png"}}
    blue = manifest["classes"][0]
    assert (blue["value"], blue["label"], blue["name"], blue["pixels"]) == (3, 2, "blue", 240)
    assert (blue["box"], blue["boxes"]) == ([10, 18, 30, 30], [[10, 18, 30, 30]])
    segment(Colours(), RED, **OPTIONS).save(folder)
    assert np.unique(np.asarray(Image.open(folder / "mask.png"))).tolist() == [0, 1]


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        segment(Colours(), TWO, **OPTIONS).save(tmp_path / "file")
    many = segment(Colours(classes=300), TWO, classes=list(range(255)), transform=AS_IS)
    with pytest.raises(InputError, match="do not fit"):
        many.save(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_overlay_tints_classes_and_leaves_the_rest():
    found = segment(Colours(), TWO, **OPTIONS)
    plain = found.overlay(alpha=0.5, legend=False)
    assert plain.size == (32, 32)
    pixels = np.asarray(plain).astype(int)
    assert np.abs(pixels[9, 9] - [(255 + 128) / 2, 0, 0]).max() <= 1  # half red, half VOC's dark red
    assert np.abs(pixels[24, 20] - [64, 64, 255 / 2]).max() <= 1
    assert pixels[31, 0].tolist() == [0, 0, 0]
    for alpha, expected in ((0.0, (255, 0, 0)), (1.0, (128, 0, 0))):
        assert found.overlay(alpha=alpha, legend=False).getpixel((9, 9)) == expected
    whole = np.asarray(found.overlay())
    assert whole.shape[0] > 32 or whole.shape[1] > 32
    assert np.array_equal(whole[:32, :32], np.asarray(plain))
    legend = whole.copy()
    legend[:32, :32] = 255
    for value in (1, 3):  # the legend shows both colours
        assert (legend == voc_colour(value)).all(-1).any()
    with pytest.raises(InputError, match=r"alpha=1.5: expected a weight between 0"):
        found.overlay(alpha=1.5)


def test_the_overlay_of_nothing_is_the_image():
    found = segment(Colours(), BLACK, **OPTIONS)
    assert not np.asarray(found.overlay(legend=False)).any()
    assert np.asarray(found.overlay()).any()  # a legend that says so


# On images with a truth ---------------------------------------------------------------------------------------------


def test_scenes_with_several_classes():
    data = Scenes("test", n=24, objects=(1, 3))
    records = [data[i] for i in range(24)]
    images, truths = [r.image for r in records], [r.semantic() for r in records]

    def score(masks):
        metric = MeanIoU(9, include_background=False)
        metric.update(masks, truths)
        return metric.compute().item()

    found = Segmenter(scene_classifier(), pipeline=[NWC(), CAM()])(images, classes=[r.classes for r in records])
    assert [sorted(s.classes) for s in found] == [sorted(r.classes) for r in records]
    masks = [s.mask for s in found]
    shifted = [torch.where(m > 0, m % 8 + 1, 0) for m in masks]  # the same areas, of the wrong classes
    assert score(masks) > 10 + score(shifted)
    assert score([torch.zeros_like(t) for t in truths]) == 0


def test_streams_go_on_without_what_cannot_be_read(tmp_path):
    for name in ("1.png", "3.png"):
        Image.fromarray(TWO).save(tmp_path / name)
    (tmp_path / "2.png").write_bytes(b"no image")
    segmenter = Segmenter(Colours(), **OPTIONS)
    left_out = []
    found = list(segmenter.stream(tmp_path, errors=lambda image, error: left_out.append((image.name, str(error)))))
    assert [one.source for one in found] == [str(tmp_path / "1.png"), str(tmp_path / "3.png")]
    assert [name for name, _ in left_out] == ["2.png"] and "2.png" in left_out[0][1]
    with pytest.warns(UserWarning, match=r"left out: .*2\.png"):
        assert len(list(segmenter.stream(str(tmp_path / "*.png"), errors="skip", workers=2))) == 2
    with pytest.raises(InputError, match="errors='ignore': expected 'raise', 'skip'"):
        next(segmenter.stream(tmp_path, errors="ignore"))
