"""Pipelines from inputs of other sizes, and pipelines that look at earlier stages, beside plain ones."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camtools
from camtools.classes.matching import match_classes
from camtools.datasets import BoxFolder
from camtools.evaluation.sample import prepare
from camtools.images.preprocess import Preprocess
from camtools.images.read import read_image
from camtools.steps import NWC, Affinity, Enlarge

FORWARDS: list[tuple[int, int]] = []  # batch and width of every forward of any `Staged`


class Staged(nn.Module):
    """Maps are the mean of a colour in 16 x 16 pixels; a stage before has those of 8 x 8. Logits are their mean."""

    def __init__(self, only: int = 0) -> None:
        super().__init__()
        self.only = only
        self.early = nn.AvgPool2d(8)
        self.late = nn.Conv2d(3, 3, 2, stride=2, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.late.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2) / 4)
            self.fc.weight.copy_(10 * torch.eye(3) - 2)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        FORWARDS.append((x.shape[0], x.shape[-1]))
        if self.only and x.shape[-1] != self.only:
            raise ValueError(f"takes {self.only} pixels")
        return self.fc(self.pool(self.late(self.early(x))).flatten(1))


PIPELINES = {
    "cam": [],
    "larger": [Enlarge(1.43), NWC()],
    "largest": [Enlarge(2), Affinity(1)],
    "also larger": [Enlarge(1.43), Affinity(1, power=5)],
    "spread": [NWC(), Affinity(1)],
}


def two_sizes(folder):
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        if number % 3 == 0:
            Image.open(path).resize((168, 168)).save(path)
    return folder


def numbers(result, column):
    rows = result.rows
    return {name: np.asarray(getattr(rows, name))[column] for name in ("v1", "v2", "own_box", "own_iou", "pointing")}


@pytest.mark.parametrize("protocol", ["wsol", "native"])
def test_together_equals_one_by_one(images, options, protocol):
    data = BoxFolder(two_sizes(images), classes=options["class_names"])
    together = camtools.evaluate(Staged(), data, PIPELINES, protocol=protocol, **options)
    assert list(together.metrics) == list(PIPELINES) and len(together.rows.ids) == 12
    for column, (name, steps) in enumerate(PIPELINES.items()):
        alone = camtools.evaluate(Staged(), data, {name: steps}, protocol=protocol, **options)
        expected = numbers(alone, 0)
        for key, found in numbers(together, column).items():
            np.testing.assert_allclose(found, expected[key], rtol=1e-4, atol=1e-4, err_msg=f"{name}: {key}")
        assert alone.metrics[name]["MaxBoxAccV2"].value == pytest.approx(together.metrics[name]["MaxBoxAccV2"].value)
    np.testing.assert_array_equal(together.rows.score, alone.rows.score)


def test_they_are_not_all_the_same(images, options):
    """Else the test above would pass with one input for all."""
    data = BoxFolder(images, classes=options["class_names"])
    found = camtools.evaluate(Staged(), data, PIPELINES, **options)
    ious = np.stack([numbers(found, column)["own_iou"] for column in range(len(PIPELINES))])
    assert len(np.unique(ious, axis=0)) == len(PIPELINES)


def test_native_is_what_explain_gives(images, options):
    data = BoxFolder(two_sizes(images), classes=options["class_names"])
    rows = camtools.evaluate(Staged(), data, PIPELINES, protocol="native", **options).rows
    for column, (name, steps) in enumerate(PIPELINES.items()):
        explainer = camtools.Explainer(Staged(), steps, transform=options["transform"])
        for i in range(len(data)):
            found = explainer(data[i].image, target=data[i].label)
            expected = found.box if found.box is not None else (0, 0, 0, 0)
            assert rows.own_box[column, i].tolist() == list(expected), name
            assert rows.score[i] == pytest.approx(found.score, rel=1e-5)


def test_one_forward_a_batch_and_size(images, options):
    """Pipelines of one scale share a forward, and an image needs one more for every other scale."""
    data = BoxFolder(images, classes=options["class_names"])
    model = camtools.wrap(Staged())
    model.activations(torch.rand(1, 3, 224, 224), pyramid=1)
    FORWARDS.clear()
    camtools.evaluate(model, data, PIPELINES, **options)
    batches = [one for one in FORWARDS if one[0] > 1]
    assert sorted(batches) == sorted([(4, 224), (4, 320), (4, 448)] * 3)


def test_a_model_of_one_size_gives_the_plain_maps_and_says_so(images, options):
    data = BoxFolder(images, classes=options["class_names"])
    pipelines = {"plain": [Affinity(1)], "large": [Enlarge(2), Affinity(1)]}
    with pytest.warns(UserWarning) as caught:
        found = camtools.evaluate(Staged(224), data, pipelines, **options)
    assert [str(one.message) for one in caught] == [
        "Staged can't be run on 448 x 448 pixels, so the step Enlarge does nothing: maps are made from the model's own "
        "input size. Leave Enlarge out to silence this."
    ]
    one, other = numbers(found, 0), numbers(found, 1)
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])
    with pytest.warns(UserWarning, match="448 x 448"):
        alone = camtools.evaluate(Staged(224), data, {"large": pipelines["large"]}, **options)
    for key, value in numbers(alone, 0).items():
        np.testing.assert_array_equal(value, one[key])


def test_without_enlarge_nothing_is_tried(images, options):
    data = BoxFolder(images, classes=options["class_names"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        camtools.evaluate(Staged(224), data, {"a": [Enlarge(1)], "b": [Affinity(2)]}, **options)


def test_an_image_that_cannot_be_read_is_left_out(drawing, tmp_path, options):
    data = BoxFolder(drawing(tmp_path / "broken", broken=2), classes=options["class_names"])
    found = camtools.evaluate(Staged(), data, {"a": [Enlarge(2)]}, **options)
    assert len(found.rows.ids) == 11 and len(found.failed) == 1


def test_a_sample_has_the_larger_inputs(images, options):
    data = BoxFolder(images, classes=options["class_names"])
    classes = match_classes(data.classes, range(3), 3, options["class_names"])
    transform = Preprocess.imagenet(64)
    record = data[0]
    found = prepare(record, 0, classes, transform, scales=(1.43, 2))
    assert sorted(found.larger) == [1.43, 2]
    image = read_image(record.image)
    assert found.tensor.equal(transform(image)[0])
    assert found.larger[2].equal(Preprocess((128, 128), 146)(image)[0])  # int(64 / 0.875) = 73
    assert found.larger[1.43].equal(Preprocess((96, 96), 110)(image)[0])  # 109.5 rounds to even
    assert prepare(record, 0, classes, transform).larger == {}
    assert prepare(record, 0, classes, None, scales=(2,)).larger == {}
