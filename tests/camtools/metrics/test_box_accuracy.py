"""MaxBoxAcc and MaxBoxAccV2: hand-computed sets of maps, and the reference protocol's loop on random and real ones."""

import pickle

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from camtools.errors import InputError
from camtools.metrics import MaxBoxAcc, MaxBoxAccV2, box_ious, max_box_acc, max_box_acc_v2, scoremaps

reference = pytest.importorskip("wsol_reference", exc_type=ImportError)  # needs OpenCV


def batch(count: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], list[tuple[int, int]]]:
    """Smooth maps (count, 24, 24), boxes and sizes."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(np.stack([reference.FAMILIES["smooth"](rng, 24, 24) for _ in range(count)]))
    sizes = [(int(w), int(h)) for w, h in rng.integers(50, 300, (count, 2))]
    return maps, [torch.from_numpy(reference.true_boxes(rng, h, w)) for w, h in sizes], sizes


def protocol(maps, boxes, sizes, size=(224, 224)):
    """Accuracies at 1,000 thresholds by the reference's loop, per cent: V1 (1000,), V2 (3, 1000)."""
    single, several = [], []
    for score, box, image in zip(maps.numpy(), boxes, sizes, strict=True):
        if size is not None:
            score = reference.resized(score, size)
        truth = reference.scaled(box.numpy(), image, score.shape[::-1])
        found = reference.ious_at_thresholds(reference.levels_of(score), truth)
        single.append(found[0])
        several.append(found[1])
    v1 = (np.array(single) >= 0.5).sum(0) * 100.0 / len(maps)
    return v1, np.stack([(np.array(several) >= iou).sum(0) * 100.0 / len(maps) for iou in (0.3, 0.5, 0.7)])


def check(maps, boxes, sizes, size=(224, 224)):
    """Compare everything both metrics say with the protocol, exactly."""
    v1, v2 = protocol(maps, boxes, sizes, size)
    one, many = MaxBoxAcc(size=size), MaxBoxAccV2(size=size)
    for part in (slice(0, 3), slice(3, None)):
        one.update(maps[part], boxes[part], sizes[part])
        many.update(maps[part], boxes[part], sizes[part])
    assert np.array_equal(one.curve().accuracy.numpy(), v1)
    assert np.array_equal(many.curve().accuracy.numpy(), v2)
    assert one.compute().item() == v1.max()
    assert many.compute().item() == pytest.approx(v2.max(1).mean(), rel=1e-15)
    assert one.best_threshold.item() == reference.TAUS[v1.argmax()]
    assert many.best_threshold.tolist() == reference.TAUS[v2.argmax(1)].tolist()
    assert list(many.per_iou().values()) == v2.max(1).tolist()


def test_two_images_by_hand():
    # values .2 .6 1 in nested blocks: each threshold range has its own box
    score = torch.zeros(10, 10)
    score[1:9, 1:9], score[2:7, 2:7], score[3:5, 3:5] = 0.2, 0.6, 1.0
    maps = torch.stack([score, score])
    boxes = [torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([[3.0, 3.0, 5.0, 5.0]])]
    metric = MaxBoxAcc(size=None)
    metric.update(maps, boxes, [(10, 10)] * 2)
    # boxes 1..9, 2..7, 3..5 have areas 81, 36, 9 (with + 1); image 0: IoU 1, 36/81, 9/81; image 1: 9/81, 9/36, 1
    curve = metric.curve()
    at = {tau: curve.accuracy[round(tau * 1000)].item() for tau in (0.0, 0.19, 0.21, 0.59, 0.61, 0.99)}
    assert at == {0.0: 50.0, 0.19: 50.0, 0.21: 0.0, 0.59: 0.0, 0.61: 50.0, 0.99: 50.0}
    assert metric.compute().item() == 50.0 and metric.best_threshold.item() == 0.0
    several = MaxBoxAccV2(size=None)
    several.update(maps, boxes, [(10, 10)] * 2)
    assert several.per_iou() == {0.3: 50.0, 0.5: 50.0, 0.7: 50.0}
    # an object of one pixel, alone above .2, which only V2 takes; the other image's IoU is then 36/81
    maps[1, 9, 9] = 1.0
    boxes[1] = torch.tensor([[9.0, 9.0, 9.0, 9.0]])
    assert max_box_acc(maps, boxes, [(10, 10)] * 2, size=None)[0] == 50.0
    several.reset()
    several.update(maps, boxes, [(10, 10)] * 2)
    assert several.per_iou() == {0.3: 100.0, 0.5: 50.0, 0.7: 50.0}
    assert several.compute().item() == pytest.approx(200 / 3)
    assert several.best_threshold.tolist() == [0.2, 0.0, 0.0]


def test_random_maps_agree_with_the_protocol():
    check(*batch(6))


@pytest.mark.parametrize("seed", range(3))
def test_adversarial_maps_agree_with_the_protocol(seed):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(np.stack([make(rng, 14, 17) for make in reference.FAMILIES.values()]))
    sizes = [(170, 140)] * len(maps)
    check(maps, [torch.from_numpy(reference.true_boxes(rng, 140, 170)) for _ in maps], sizes, size=None)


def test_real_maps_agree_with_the_protocol(real_maps):
    check(real_maps["maps"], real_maps["boxes"], real_maps["sizes"])


def test_two_halves_merged_are_the_whole():
    maps, boxes, sizes = batch(8)
    for make in (MaxBoxAcc, MaxBoxAccV2):
        whole, first, second = make(), make(), make()
        whole.update(maps, boxes, sizes)
        first.update(maps[:5], boxes[:5], sizes[:5])
        second.update(maps[5:], boxes[5:], sizes[5:])
        first.merge_state(second)
        assert first.compute().equal(whole.compute())
        assert first.best_threshold.equal(whole.best_threshold)
        assert first.hits.equal(whole.hits) and first.settings.equal(whole.settings)


def test_metrics_can_be_pickled_and_cloned():
    maps, boxes, sizes = batch(3)
    metric = MaxBoxAccV2()
    metric.update(maps, boxes, sizes)
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert copy.compute().equal(metric.compute())
        copy.update(maps, boxes, sizes)
        assert copy.images == 6 and metric.images == 3


def test_forward_returns_the_batchs_value_and_keeps_all():
    maps, boxes, sizes = batch(6)
    metric, alone = MaxBoxAcc(), MaxBoxAcc()
    metric(maps[:4], boxes[:4], sizes[:4])
    alone.update(maps[4:], boxes[4:], sizes[4:])
    assert metric(maps[4:], boxes[4:], sizes[4:]).equal(alone.compute())
    alone.update(maps[:4], boxes[:4], sizes[:4])
    assert metric.compute().equal(alone.compute())


def test_reset_forgets_everything_and_nothing_seen_is_nan():
    metric = MaxBoxAccV2()
    metric.update(*batch(2))
    metric.reset()
    with pytest.warns(UserWarning, match="compute"):
        assert metric.compute().isnan()
    assert metric.best_threshold.isnan().all()
    assert MaxBoxAcc().best_threshold.isnan()


def test_a_collection_takes_no_two_metrics_for_one():
    maps, boxes, sizes = batch(1)
    collection = MetricCollection({"50": MaxBoxAcc(), "10": MaxBoxAcc(0.1), "V2": MaxBoxAccV2((0.5,))})
    far = [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
    collection.update(maps, far, sizes)  # a miss for all: their counts are the same
    collection.update(maps, boxes, sizes)
    for metric, options in (("10", {"iou": 0.1}), ("50", {})):
        alone = MaxBoxAcc(**options)
        alone.update(maps, far, sizes)
        alone.update(maps, boxes, sizes)
        assert collection.compute()[metric].equal(alone.compute())


@pytest.mark.filterwarnings("error:The ``compute`` method")
def test_ious_computed_once_serve_several_metrics():
    maps, boxes, sizes = batch(5)
    ious = box_ious(scoremaps(maps), boxes, sizes)
    one, many = MaxBoxAcc(), MaxBoxAccV2()
    one.update_ious(ious.largest)
    many.update_ious(ious.any)
    assert one.compute().equal(max_box_acc(maps, boxes, sizes)[0])
    one.update_ious(torch.zeros(5, 256))  # all missed: the value is not the one computed before
    assert one.compute().equal(max_box_acc(maps, boxes, sizes)[0] / 2)
    assert many.compute().equal(max_box_acc_v2(maps.numpy(), boxes, sizes)[0])


def test_a_coarser_interval_reads_fewer_thresholds():
    maps, boxes, sizes = batch(5)
    fine, coarse = MaxBoxAcc(), MaxBoxAcc(interval=0.05)
    fine.update(maps, boxes, sizes)
    coarse.update(maps, boxes, sizes)
    assert coarse.curve().accuracy.equal(fine.curve().accuracy[::50])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxBoxAcc(0), r"MaxBoxAcc\(iou=0\): iou must be a number, 0 < iou <= 1"),
        (lambda: MaxBoxAccV2((0.5, 70)), r"MaxBoxAccV2\(iou=70\)"),
        (lambda: MaxBoxAccV2(()), r"MaxBoxAccV2\(ious=\(\)\): expected at least one number in \(0, 1\]"),
        (lambda: MaxBoxAccV2(0.5), r"MaxBoxAccV2: ious: expected a list .*, got 0.5"),
        (lambda: MaxBoxAcc(interval=0), r"MaxBoxAcc\(interval=0\): interval must be a number, 1e-6 <= interval <= 1"),
        (lambda: MaxBoxAcc(workers=1.5), r"workers=1.5: expected a whole number of at least 1"),
        (
            lambda: MaxBoxAcc().update_ious(torch.rand(3, 255)),
            r"ious: expected \(B, 256\) in \[0, 1\] from",
        ),
        (lambda: MaxBoxAcc().update(torch.rand(2, 3, 3), [], []), r"boxes: got 0 for 2 maps; give one for each"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
