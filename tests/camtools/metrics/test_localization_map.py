import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection
from voc_reference import devkit

from camtools.errors import InputError
from camtools.metrics import LocalizationMAP, localization_average_precision
from camtools.metrics.localization_map import box_iou


def scene(count=30, classes=4, seed=0, ties=True):
    """Truth with overlapping and difficult boxes, detections near them, whole pixels; scores with ties."""
    generator = np.random.default_rng(seed)
    preds, target = [], []
    for _ in range(count):
        m, extra = generator.integers(0, 6), generator.integers(0, 4)
        corner, side = generator.integers(0, 60, (m, 2)), generator.integers(8, 40, (m, 2))
        truth = np.concatenate([corner, corner + side], 1).astype(float)
        labels = generator.integers(0, classes, m)
        near = np.repeat(truth, 2, 0) + generator.integers(-4, 5, (2 * m, 4))
        stray = np.concatenate([np.zeros((extra, 2)), generator.integers(5, 90, (extra, 2))], 1)
        boxes = np.concatenate([near, stray])
        flipped = np.concatenate([np.repeat(labels, 2), generator.integers(0, classes, extra)])
        scores = generator.random(len(boxes)).round(1 if ties else 9)
        preds.append({"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(flipped)})
        difficult = torch.tensor(generator.random(m) < 0.25)
        target.append({"boxes": torch.tensor(truth), "labels": torch.tensor(labels), "difficult": difficult})
    return preds, target


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("interpolation", ["area", "11-point"])
def test_equals_the_devkit(seed, inclusive, interpolation):
    preds, target = scene(seed=seed)
    mean, per_class = localization_average_precision(
        preds, target, pixel_inclusive=inclusive, interpolation=interpolation
    )
    expected = {
        label: devkit(preds, target, label, extra=float(inclusive), points=interpolation != "area")
        for label in range(4)
    }
    assert 0 < mean < 100 and len(set(per_class.values())) == 4
    assert per_class == pytest.approx({label: ap for label, ap in expected.items() if ap is not None}, rel=1e-9)
    assert mean.item() == pytest.approx(np.mean([ap for ap in expected.values() if ap is not None]), rel=1e-9)


def test_half_open_boxes_have_the_devkits_iou():
    preds, target = scene(seed=9)
    half_open_preds = [{**p, "boxes": p["boxes"] + torch.tensor([0, 0, 1, 1])} for p in preds]
    half_open_target = [{**t, "boxes": t["boxes"] + torch.tensor([0, 0, 1, 1])} for t in target]
    as_files_have_it = localization_average_precision(preds, target, pixel_inclusive=True)
    assert localization_average_precision(half_open_preds, half_open_target) == as_files_have_it


def test_precision_at_101_recalls_equals_pycocotools():
    """Where truths of an image don't overlap, none competes for a detection, and COCO matches as VOC does."""
    pytest.importorskip("pycocotools")
    from torchmetrics.detection import MeanAveragePrecision

    generator = torch.Generator().manual_seed(3)
    preds, target = [], []
    for _ in range(40):
        cells = torch.randperm(9, generator=generator)[: int(torch.randint(1, 6, (), generator=generator))]
        corner = torch.stack([cells % 3, cells // 3], 1) * 100.0
        truth = torch.cat([corner + 10, corner + 70], 1)
        labels = torch.randint(0, 3, (len(cells),), generator=generator)
        boxes = torch.cat([truth, truth]) + torch.randint(-14, 15, (2 * len(cells), 4), generator=generator)
        scores = torch.rand(len(boxes), generator=generator)
        preds.append({"boxes": boxes, "scores": scores, "labels": labels.repeat(2)})
        target.append({"boxes": truth, "labels": labels})
    theirs = MeanAveragePrecision(iou_thresholds=[0.5], extended_summary=True, class_metrics=True)
    theirs.update(preds, target)
    result = theirs.compute()
    ours = LocalizationMAP()
    ours.update(preds, target)
    recalls = np.linspace(0, 1, 101)
    for label in range(3):
        precision, recall, scores = ours.curve(label)
        envelope = np.maximum.accumulate(precision.numpy()[::-1])[::-1]
        at = np.searchsorted(recall.numpy(), recalls, side="left")
        sampled = np.append(envelope, 0.0)[np.minimum(at, len(envelope))]
        np.testing.assert_allclose(result["precision"][0, :, label, 0, 2].numpy(), sampled, rtol=1e-6)
        assert 100 * sampled.mean() == pytest.approx(ours.per_class()[label], abs=1)  # 101 points against the area
        assert scores.equal(scores.sort(descending=True).values)
    assert 100 * result["map"].item() == pytest.approx(ours.compute().item(), abs=1)
    assert 10 < ours.compute() < 95


def test_perfect_detections():
    _, target = scene(seed=1)
    preds = [{"boxes": t["boxes"], "scores": torch.rand(len(t["boxes"])), "labels": t["labels"]} for t in target]
    unlike = [
        {**t, "boxes": t["boxes"] + 1000 * torch.arange(len(t["boxes"]))[:, None]} for t in target
    ]  # none overlap
    for pred, true in zip(preds, unlike, strict=True):
        pred["boxes"] = true["boxes"]
    assert localization_average_precision(preds, unlike)[0] == 100


def one(boxes, scores=None, labels=None, **more):
    entry = {"boxes": torch.tensor(boxes, dtype=torch.float), "labels": torch.tensor(labels or [0] * len(boxes))}
    return entry | ({} if scores is None else {"scores": torch.tensor(scores)}) | more


BOX, NEAR, FAR = [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]


def test_the_best_box_alone_is_compared():
    # Both detections overlap BOX most: the second is false though it overlaps SHIFTED by more than half as well.
    shifted = [0, 2, 10, 12]
    first, second = one([BOX], [0.9]), one([[0, 0.5, 10, 10.5]], [0.8])
    both = [{key: torch.cat([first[key], second[key]]) for key in first}]
    assert localization_average_precision(both, [one([BOX, shifted])])[0] == 50


def test_a_second_detection_is_false_and_a_difficult_box_counts_for_nothing():
    found = one([NEAR, BOX, FAR], [0.5, 0.9, 0.7])
    metric = LocalizationMAP()
    metric.update([found], [one([BOX, FAR], difficult=torch.tensor([False, True]))])
    assert metric.joined("correct").tolist() == [0, 1]  # the one at FAR is gone
    assert metric.joined("positives").tolist() == [0]
    assert metric.compute() == 100  # the one object is found first
    assert localization_average_precision([found], [one([BOX, FAR])])[0] == 100
    twice = one([BOX, NEAR, FAR], [0.9, 0.8, 0.7])
    assert localization_average_precision([twice], [one([BOX, FAR])])[0].item() == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_the_threshold_is_inclusive():
    half = one([[0, 0, 10, 5]], [0.5])
    assert localization_average_precision([half], [one([BOX])])[0] == 100
    assert localization_average_precision([half], [one([BOX])], iou_threshold=0.51)[0] == 0


def test_the_mean_is_over_classes_that_occur():
    preds = [one([BOX, BOX, BOX], [0.9, 0.8, 0.7], [0, 5, 7])]
    target = [one([BOX, FAR, BOX], labels=[0, 2, 7], difficult=torch.tensor([False, False, True]))]
    mean, per_class = localization_average_precision(preds, target)
    assert per_class == {0: 100.0, 2: 0.0} and mean == 50


def test_objects_without_a_box_are_left_out():
    target = [one([BOX, [float("nan")] * 4])]
    assert localization_average_precision([one([BOX], [0.5])], target)[0] == 100


def test_two_halves_merged_are_the_whole():
    preds, target = scene(seed=5, ties=False)
    whole, first, second = LocalizationMAP(), LocalizationMAP(), LocalizationMAP()
    whole.update(preds, target)
    first.update(preds[:7], target[:7])
    second.update(preds[7:], target[7:])
    first.merge_state(second)
    assert first.per_class() == whole.per_class() and first.compute() == whole.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan_and_reset_forgets():
    metric = LocalizationMAP()
    assert metric.compute().isnan() and metric.per_class() == {}
    metric.update([], [])
    metric.update([one([], [])], [one([])])
    assert metric.compute().isnan()
    metric.update([one([], [])], [one([BOX])])
    assert metric.compute() == 0
    metric.reset()
    assert metric.compute().isnan()
    metric.update([one([BOX], [0.5])], [one([BOX])])
    assert metric.compute() == 100


def test_in_a_collection_and_one_batch_after_the_other():
    preds, target = scene(seed=6, ties=False)
    metrics = MetricCollection({"area": LocalizationMAP(), "11": LocalizationMAP(interpolation="11-point")})
    alone = metrics(preds[:10], target[:10])
    metrics(preds[10:], target[10:])
    assert alone["area"] == localization_average_precision(preds[:10], target[:10])[0]
    assert metrics.compute()["area"] == localization_average_precision(preds, target)[0]
    assert metrics.compute()["11"] == localization_average_precision(preds, target, interpolation="11-point")[0]


def test_a_collection_keeps_thresholds_apart_that_agree_on_the_first_batch():
    metrics = MetricCollection({"50": LocalizationMAP(), "95": LocalizationMAP(iou_threshold=0.95)})
    metrics.update([one([BOX], [0.9])], [one([BOX])])
    metrics.update([one([NEAR], [0.5])], [one([BOX])])
    assert metrics.compute() == {"50": 100, "95": 50}


def test_on_its_device(device):
    preds, target = scene(seed=7)
    metric = LocalizationMAP().to(device)
    metric.update(
        [{k: v.to(device) for k, v in p.items()} for p in preds],
        [{k: v.to(device) for k, v in t.items()} for t in target],
    )
    assert metric.compute().device.type == device.type
    assert metric.compute().item() == pytest.approx(localization_average_precision(preds, target)[0].item())


def test_arrays_serve_as_well():
    preds, target = scene(seed=8)
    arrays = [[{k: v.numpy() for k, v in one.items()} for one in side] for side in (preds, target)]
    assert localization_average_precision(*arrays) == localization_average_precision(preds, target)


def test_box_iou():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 1, 1]])
    others = torch.tensor([[1.0, 1, 3, 3], [1, 1, 1, 1]])
    assert box_iou(boxes, others)[0].tolist() == pytest.approx([1 / 7, 0]) and box_iou(boxes, others)[1, 1] == 0
    assert box_iou(boxes, others, pixel_inclusive=True).tolist() == [
        pytest.approx([4 / 14, 1 / 9]),
        pytest.approx([1 / 9, 1.0]),
    ]


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        ([one([BOX], [0.5])], [], "preds: got 1 for 0 images of the truth; give one"),
        ([one([BOX])], [one([BOX])], r"preds\[0\]: expected a dict with .*'scores'\], and there is no 'scores'"),
        ([one([BOX], [0.5])], [{"boxes": []}], r"target\[0\]: expected a dict with .*there is no 'labels'"),
        ([one([BOX], [0.5])], [torch.tensor(BOX)], r"target\[0\]: expected a dict"),
        ([one([BOX[:3]], [0.5])], [one([])], r"preds\[0\]\['boxes'\]: expected \(N, 4\).* got \(1, 3\)"),
        (
            [one([BOX], [0.5, 0.1])],
            [one([])],
            r"preds\[0\]\['scores'\]: expected 1 numbers, one for each of the boxes, got shape \(2,\)",
        ),
        ([one([BOX], [0.5], [1, 1])], [one([])], r"preds\[0\]\['labels'\]: expected 1 class indices.*got \(2,\)"),
        (
            [one([BOX], [0.5], [1.5])],
            [one([])],
            r"preds\[0\]\['labels'\]: expected 1 class .*float32 with 1.5",
        ),
        ([one([BOX], [float("nan")])], [one([])], r"preds\[0\]\['scores'\]: .* with a NaN; leave such out"),
        (
            [one([[float("nan")] * 4], [0.5])],
            [one([])],
            r"preds\[0\]\['boxes'\]\[0\] is \[nan.*leave out what",
        ),
        (
            [one([], [])],
            [one([BOX], difficult=torch.ones(1))],
            r"target\[0\]\['difficult'\]: expected bool of shape \(1,\), one per box, got .*float",
        ),
        (
            [one([], [])],
            [one([BOX, [9, 9, 5, 5]])],
            r"target\[0\]\['boxes'\]\[1\] is \[9.*x0 <= x1.*width",
        ),
    ],
)
def test_bad_input_is_named(preds, target, message):
    with pytest.raises(InputError, match=message):
        LocalizationMAP().update(preds, target)


def test_bad_arguments_are_named():
    for value in (0, 1.1, "0.5", None):
        with pytest.raises(
            InputError, match=rf"LocalizationMAP\(iou_threshold={value!r}\): iou_threshold must be a number"
        ):
            LocalizationMAP(iou_threshold=value)
    with pytest.raises(InputError, match=r"LocalizationMAP\(interpolation='coco'\): expected 'area'"):
        LocalizationMAP(interpolation="coco")
    metric = LocalizationMAP()
    metric.update([one([BOX], [0.5])], [one([BOX])])
    with pytest.raises(InputError, match=r"curve\(label=3\): no such object was seen; the classes seen are \[0\]"):
        metric.curve(3)
