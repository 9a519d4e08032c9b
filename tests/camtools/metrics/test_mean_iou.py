import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from camtools.errors import InputError
from camtools.metrics import MeanIoU, semantic_iou

PREDS = torch.tensor([[[0, 1, 1], [2, 2, 0]]])
TARGET = torch.tensor([[[0, 1, 2], [2, 255, 0]]])


def scene(count=5, classes=6):
    target = torch.randint(0, classes - 1, (count, 15, 20))  # the last class occurs nowhere
    preds = torch.where(torch.rand(target.shape) < 0.6, target, torch.randint(0, classes - 1, target.shape))
    target[torch.rand(target.shape) < 0.1] = 255
    return preds, target


def test_hand_worked():
    mean, per_class = semantic_iou(PREDS, TARGET, 4)
    assert per_class == {0: 100.0, 1: 50.0, 2: 50.0}  # the pixel of 255 is left out; class 3 occurs nowhere
    assert mean.item() == pytest.approx(200 / 3) and mean.dtype == torch.float64


def test_without_the_background_its_pixels_are_still_mistakes():
    mean, per_class = semantic_iou(
        torch.tensor([[[0, 1, 1, 0]]]), torch.tensor([[[0, 1, 1, 1]]]), 2, include_background=False
    )
    assert per_class == {1: pytest.approx(200 / 3)} and mean.item() == pytest.approx(200 / 3)


def test_a_class_only_predicted_counts_as_zero():
    assert semantic_iou(torch.tensor([[[0, 2]]]), torch.tensor([[[0, 0]]]), 3)[1] == {0: 50.0, 2: 0.0}


def test_equals_masks_one_by_one_and_torchmetrics():
    preds, target = scene()
    mean, per_class = semantic_iou(preds, target, 6)
    counted = (target != 255).numpy()
    for label in range(5):
        found, true = (part.numpy()[counted] == label for part in (preds, target))
        assert per_class[label] == pytest.approx(100 * (found & true).sum() / (found | true).sum(), rel=1e-12)
    assert mean.item() == pytest.approx(np.mean(list(per_class.values())), rel=1e-12) and len(per_class) == 5
    theirs = MulticlassJaccardIndex(6, ignore_index=255, average="macro")
    assert mean.item() == pytest.approx(100 * theirs(preds, target).item(), rel=1e-6)


def test_without_ignoring():
    assert semantic_iou(PREDS, PREDS, 3, ignore_index=None)[0] == 100
    with pytest.raises(InputError, match="target: value 255 is no class: expected 0 to 2"):
        semantic_iou(PREDS, TARGET, 3, ignore_index=None)
    assert set(semantic_iou(PREDS, TARGET.clamp(max=2), 3, ignore_index=0)[1]) == {1, 2}  # a class may be ignored


def test_images_of_different_sizes_and_types():
    preds, target = scene(3)
    sides = [(15, 20), (9, 4), (1, 20)]
    cut = [[part[i, :h, :w] for i, (h, w) in enumerate(sides)] for part in (preds, target)]
    flat = [torch.cat([part.flatten() for part in side])[None, None] for side in cut]
    assert semantic_iou(*cut, 6) == semantic_iou(*flat, 6)
    assert semantic_iou([part.int().numpy() for part in cut[0]], [part.byte() for part in cut[1]], 6) == semantic_iou(
        *flat, 6
    )
    assert semantic_iou(preds.numpy(), list(target), 6) == semantic_iou(preds, target, 6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_halves_merged_are_the_whole_and_reset_forgets():
    preds, target = scene()
    first, second = MeanIoU(6), MeanIoU(6)
    first.update(preds[:2], target[:2])
    second.update(preds[2:], target[2:])
    first.merge_state(second)
    assert (first.compute(), first.per_class()) == semantic_iou(preds, target, 6)
    first.reset()
    assert first.compute().isnan() and first.per_class() == {}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan():
    metric = MeanIoU(3)
    assert metric.compute().isnan()
    metric.update([], [])
    metric.update(torch.zeros(0, 4, 4).long(), torch.zeros(0, 4, 4).long())
    metric.update(PREDS, torch.full_like(PREDS, 255))
    assert metric.compute().isnan()


def test_in_a_collection():
    preds, target = scene()
    metrics = MetricCollection({"all": MeanIoU(6), "objects": MeanIoU(6, include_background=False)})
    alone = metrics(preds[:2], target[:2])
    metrics(preds[2:], target[2:])
    assert alone["all"] == semantic_iou(preds[:2], target[:2], 6)[0]
    assert metrics.compute()["objects"] == semantic_iou(preds, target, 6, include_background=False)[0]


def test_a_collection_keeps_what_is_ignored_apart():
    metrics = MetricCollection({"255": MeanIoU(3), "0": MeanIoU(3, ignore_index=0)})
    metrics.update(torch.ones(1, 2, 2).long(), torch.ones(1, 2, 2).long())
    metrics.update(PREDS, TARGET.clamp(max=2))
    assert metrics["255"].per_class().keys() != metrics["0"].per_class().keys()


def test_on_its_device(device):
    preds, target = scene()
    metric = MeanIoU(6).to(device)
    metric.update(preds.to(device), target)
    assert metric.compute().device.type == device.type
    assert metric.compute().item() == pytest.approx(semantic_iou(preds, target, 6)[0].item())


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        (PREDS, TARGET[:0], "preds: got 1 for 0 images of the truth; give one"),
        (PREDS[:, :1], TARGET, r"image 0: the prediction is \(1, 1, 3\) and the truth \(1, 2, 3\); resize"),
        ([PREDS[0], PREDS[0, :1]], [TARGET[0]] * 2, r"image 1: the prediction is \(1, 3\) and the truth \(2, 3\)"),
        (PREDS.float(), TARGET, "image 0: expected integers.* the prediction is torch.float32. From scores"),
        (PREDS, TARGET > 0, "image 0: expected integers.* the truth is torch.bool"),
        (PREDS + 1, TARGET, "preds: value 3 is no class: expected 0 to 2"),
        (PREDS, TARGET - 1, "target: value -1 is no class: expected 0 to 2.*ignore_index=255"),
    ],
)
def test_bad_input_is_named(preds, target, message):
    with pytest.raises(InputError, match=message):
        MeanIoU(3).update(preds, target)


@pytest.mark.parametrize("value", [1, 0, -1, 21.0, None, 10**6])
def test_bad_number_of_classes_is_named(value):
    with pytest.raises(InputError, match=rf"MeanIoU\(num_classes={value!r}\): num_classes must be a whole number"):
        MeanIoU(value)
