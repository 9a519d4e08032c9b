"""Real photographs of dogs through real classifiers: the answers, the boxes, and the places they point to."""

import csv
import importlib.util
from collections import Counter
from functools import cache

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision import transforms

import camtools
from camtools import Explainer, Preprocess
from camtools.classes.names import resolve_target

IMAGES = 10


@pytest.fixture(scope="module")
def classifier(shared):
    """Builds a real classifier by name, once."""
    spec = importlib.util.spec_from_file_location("shared_weights_load", shared / "weights" / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cache(lambda name: module.classifier(name)[0])


@pytest.fixture(scope="module")
def dogs(shared):
    """Ten images of one dog each: file, class index, and box xyxy."""
    folder = shared / "data" / "ilsvrc_woof"
    with (folder / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    count = Counter(row["file"] for row in rows)
    single = [row for row in rows if count[row["file"]] == 1]
    names = camtools.classes.names.imagenet_names()
    return [
        (
            folder / "test" / row["file"],
            resolve_target(row["class"], names),
            [float(row[key]) for key in ("x0", "y0", "x1", "y1")],
        )
        for row in single[:: len(single) // IMAGES][:IMAGES]
    ]


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize(
    ("name", "pipeline", "right", "overlap"),
    [
        ("mobilenet_v2", "cam", 9, 0.66),
        ("mobilenet_v2", "rcam", 9, 0.64),
        ("mobilenet_v2", "adaptive", 9, 0.61),
        ("resnet50", "cam", 7, 0.64),
    ],
)
def test_dogs_are_recognised_and_boxed(classifier, dogs, name, pipeline, right, overlap):
    explainer = Explainer(classifier(name), pipeline)
    files, classes, boxes = zip(*dogs, strict=True)
    explanations = explainer(files, [[cls] for cls in classes])
    best = list(explainer.stream(files))
    assert sum(exp.label == cls for exp, cls in zip(best, classes, strict=True)) >= right
    overlaps = [iou(of_image[0].box.tolist(), box) for of_image, box in zip(explanations, boxes, strict=True)]
    assert np.mean(overlaps) >= overlap
    for file, exp in zip(files, best, strict=True):
        with Image.open(file) as image:
            assert exp.size == (image.height, image.width) == tuple(exp.map.shape)
        assert exp.exact and exp.source == str(file) and exp.name == camtools.classes.names.imagenet_names()[exp.label]


def test_the_map_is_weights_times_features_worked_out_by_hand(classifier, dogs):
    """From torchvision's own transforms and layers alone, and `interpolate` and array slices for the way back."""
    model, (file, cls, _) = classifier("mobilenet_v2"), dogs[0]
    image = Image.open(file).convert("RGB")
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), normalise])(image)[None]
    with torch.no_grad():
        features, logits = model.features(x), model(x)
    raw = (model.classifier[1].weight[cls][:, None, None] * features[0]).sum(0).detach()
    full = torch.nn.functional.interpolate(raw[None, None], (image.height, image.width), mode="bilinear")[0, 0]
    exp = camtools.explain(model, file, target=cls, pipeline="cam", transform=Preprocess.imagenet(squash=True))
    torch.testing.assert_close(exp.logits, logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(exp.raw_map, raw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(exp.map, (full - full.min()) / (full.max() - full.min()), rtol=0, atol=1e-4)
    assert torch.equal(exp.mask, exp.map > exp.threshold) and exp.threshold == pytest.approx(0.2)


def test_the_models_own_preprocessing_and_its_crop(classifier, dogs):
    model = classifier("mobilenet_v2")
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    own = transforms.Compose([transforms.Resize(232), transforms.CenterCrop(224), transforms.ToTensor(), normalise])
    files = [file for file, _, _ in dogs[:4]]
    ours = camtools.explain(model, files, crop="model")
    for file, exp, measured in zip(files, ours, camtools.explain(model, files, transform=own), strict=True):
        with torch.no_grad():
            logits = model(own(Image.open(file).convert("RGB"))[None])[0]
        torch.testing.assert_close(exp.logits, logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(measured.logits, logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(measured.map, exp.map, rtol=0, atol=0.03)
        unseen = exp.map[:, : int((exp.size[1] - 224 * min(exp.size) / 232) / 2 - 1)]
        assert not unseen.any() or exp.size[0] >= exp.size[1]


@pytest.mark.parametrize("axis", [0, 1], ids=["one above the other", "side by side"])
def test_a_dog_and_a_cup_are_found_where_they_are(classifier, dogs, axis):
    size = (448, 224) if axis == 0 else (224, 448)
    transform = Preprocess(input_size=size, resize=size)
    dog = np.asarray(Image.open(dogs[0][0]).convert("RGB").resize((240, 240)))
    cup = np.asarray(Image.fromarray(skimage.data.coffee()).resize((240, 240)))
    for images, classes in (([dog, cup], [dogs[0][1], "espresso"]), ([cup, dog], ["espresso", dogs[0][1]])):
        image = np.concatenate(images, axis)
        explanations = camtools.explain(
            classifier("mobilenet_v2"), image, target=classes, pipeline="rcam", transform=transform
        )
        for half, exp in enumerate(explanations):
            assert np.unravel_index(int(exp.map.argmax()), exp.map.shape)[axis] // 240 == half
            halves = [int(part.sum()) for part in exp.mask.split(240, dim=axis)]
            assert halves[half] > 3 * halves[1 - half]


def test_a_mirrored_image_has_mirrored_boxes(classifier, dogs):
    explainer = Explainer(classifier("mobilenet_v2"))
    images = [Image.open(file).convert("RGB") for file, _, _ in dogs]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    classes = [cls for _, cls, _ in dogs]
    overlaps = []
    for exp, other in zip(explainer(images, classes), explainer(mirrored, classes), strict=True):
        (x0, y0, x1, y1), width = other.box.tolist(), other.size[1]
        overlaps.append(iou(exp.box.tolist(), (width - x1, y0, width - x0, y1)))
    assert np.mean(overlaps) > 0.8


def test_one_photograph_in_many_encodings(classifier, dogs, tmp_path):
    explainer = Explainer(classifier("mobilenet_v2"))
    file, cls, _ = dogs[0]
    image = Image.open(file).convert("RGB")
    grey = np.asarray(image.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "same.png")
    image.convert("RGBA").save(tmp_path / "rgba.webp", lossless=True)
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.quantize(256).save(tmp_path / "palette.png")
    Image.fromarray(grey).save(tmp_path / "grey.jpg", quality=95)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=100, exif=exif)
    expected = explainer(file)
    assert expected.label == cls
    for exp in explainer(sorted(tmp_path.iterdir())):
        assert (exp.label, exp.size) == (cls, expected.size), exp.source
        assert iou(exp.box.tolist(), expected.box.tolist()) > 0.75, exp.source


def test_overlays_show_the_photograph_and_the_box(classifier, dogs, tmp_path):
    explainer = Explainer(classifier("mobilenet_v2"))
    shapes = {exp.size[0] > exp.size[1] for exp in explainer.stream(file for file, _, _ in dogs)}
    assert shapes == {True, False}  # tall ones and wide ones
    for i, exp in enumerate(explainer.stream(file for file, _, _ in dogs)):
        with Image.open(exp.save(tmp_path / str(i), overlay_format="png") / "overlay.png") as overlay:
            shown = np.asarray(overlay).astype(int)
        x0, y0, x1, y1 = exp.box.tolist()
        line = (shown == (80, 255, 120)).all(-1)
        assert line[y0:y1, x0].mean() > 0.95 and line[y0:y1, x1 - 1].mean() > 0.8 and line[y1 - 1, x0:x1].all()
        plain = np.asarray(exp.overlay(alpha=0, boxes="none", legend=False)).astype(int)
        untouched = (plain == np.asarray(exp.image)).all(-1).mean()
        assert 0.8 < untouched < 1  # all but the caption
