import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from camtools.errors import InputError
from camtools.metrics import PointingGame, PointingMAP, pointing_accuracy, pointing_average_precision
from camtools.metrics.pointing import peak_points, point_hits

NAN = float("nan")


def spot(x, y, width=100, height=80):
    score_map = torch.zeros(height, width)
    score_map[y, x] = 1
    return score_map


# --- where a map points


def test_peaks_at_full_resolution():
    maps = torch.stack([spot(3, 70), spot(99, 0), torch.zeros(80, 100), -spot(0, 0)])
    assert peak_points(maps, [(100, 80)] * 4).tolist() == [[3, 70], [99, 0], [0, 0], [1, 0]]


def test_of_equal_maxima_the_first_in_raster_order():
    score_map = torch.zeros(4, 4)
    score_map[2, 1] = score_map[1, 3] = score_map[3, 0] = 5
    assert peak_points(score_map[None], [(4, 4)]).tolist() == [[3, 1]]


def test_a_coarse_map_is_interpolated():
    # Cells of 8 pixels; the second and third are equal, and so is everything between their centres, 12 and 20.
    maps = torch.tensor([[[0.0, 1, 1, 0]]])
    assert peak_points(maps, [(32, 8)]).tolist() == [[12, 0]]
    # Unequal cells: the larger one's centre, here between the pixels 19 and 20, of which 19 is nearer the next largest.
    maps = torch.tensor([[[0.0, 0.5, 1, 0.4]]])
    assert peak_points(maps, [(32, 8)]).tolist() == [[19, 0]]


def test_peaks_equal_interpolation_by_hand():
    maps = torch.rand(5, 7, 9, dtype=torch.float64)
    sizes = [(50, 40), (31, 77), (9, 7), (50, 40), (120, 13)]
    found = peak_points(maps, sizes).tolist()
    for score_map, (width, height), point in zip(maps.numpy(), sizes, found, strict=True):
        rows, columns = (
            np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1) for new, old in ((height, 7), (width, 9))
        )
        across = np.stack([np.interp(columns, np.arange(9), row) for row in score_map])
        resized = np.stack([np.interp(rows, np.arange(7), column) for column in across.T], 1)
        y, x = np.unravel_index((resized > resized.max() - 1e-12).argmax(), resized.shape)
        assert point == [x, y]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_rounding_decides_nothing_on_a_plateau(dtype):
    maps = torch.zeros(1, 7, 7)
    maps[0, 2:5, 1:6] = 3
    maps = maps.to(dtype)
    # The first pixels whose centres are at or past those of the plateau's first cells, 1.5 * 333/7 and 2.5 * 500/7:
    # x + 0.5 >= 71.36, y + 0.5 >= 178.57.
    assert peak_points(maps, [(333, 500)]).tolist() == [[71, 179]]


def test_a_map_with_a_nan_points_nowhere():
    maps = torch.stack([spot(3, 3), spot(3, 3)])
    maps[1, 0, 0] = NAN
    points = peak_points(maps, [(100, 80), (200, 160)])
    assert points.tolist() == [[3, 3], [-1, -1]]
    assert point_hits(points, torch.tensor([[[0.0, 0, 10, 10]], [[-50, -50, 10, 10]]]), 18).tolist() == [True, False]
    between = torch.ones(1, 16, 16)
    between[0, 0, 0] = NAN  # no pixel of an image of 2 x 2 draws on it
    assert peak_points(between, [(2, 2)]).tolist() == [[-1, -1]]


# --- hits


@pytest.mark.parametrize(
    ("point", "tolerance", "hit"),
    [
        ((30, 30), 0, True),
        ((39, 49), 0, True),
        ((40, 49), 0, False),  # half-open: 40 is the first column outside
        ((29, 30), 0, False),
        ((12, 12), 18, True),
        ((11, 30), 18, False),
        ((57, 67), 18, True),  # the corner too: the tolerance is a square
        ((58, 67), 18, False),
        ((57, 68), 18, False),
        ((29, 30), 1, True),
    ],
)
def test_hits_by_hand(point, tolerance, hit):
    box = torch.tensor([[[30.0, 30, 40, 50]]])
    assert point_hits(torch.tensor([point]), box, tolerance).item() is hit
    assert pointing_accuracy(spot(*point)[None], [box[0]], [(100, 80)], tolerance=tolerance) == 100 * hit


def test_any_box_of_the_class_will_do():
    boxes = torch.tensor([[0.0, 0, 5, 5], [60, 60, 70, 70], [NAN] * 4])
    assert pointing_accuracy(spot(65, 65)[None], [boxes], [(100, 80)], tolerance=0) == 100
    assert pointing_accuracy(spot(30, 65)[None], [boxes], [(100, 80)], tolerance=0) == 0


# --- accuracy

BOX = [[0.0, 0, 10, 10]]
HIT, MISS = spot(5, 5), spot(90, 70)


def pairs(*maps, boxes=BOX):
    return torch.stack(maps), [torch.tensor(boxes)] * len(maps), [(100, 80)] * len(maps)


def test_means_over_pairs_and_over_classes():
    given = pairs(HIT, HIT, MISS, HIT)
    labels = [4, 4, 4, 9]
    assert pointing_accuracy(*given) == 75
    assert pointing_accuracy(*given, labels, average="classes").item() == pytest.approx(100 * (2 / 3 + 1) / 2)
    metric = PointingGame()
    metric.update(*given, torch.tensor(labels))
    assert metric.per_class() == {4: pytest.approx(200 / 3), 9: 100.0}


def test_pairs_without_a_box_that_counts_are_left_out():
    maps, boxes, sizes = pairs(HIT, MISS, MISS, MISS)
    boxes = [torch.tensor(BOX), torch.tensor(BOX), torch.zeros(0, 4), torch.tensor([[NAN] * 4])]
    difficult = [torch.tensor([False]), torch.tensor([True]), torch.zeros(0, dtype=torch.bool), torch.tensor([False])]
    assert pointing_accuracy(maps, boxes, sizes, difficult=difficult) == 100


def test_a_difficult_box_beside_another_may_be_hit():
    boxes = [torch.tensor([[0.0, 0, 10, 10], [80, 60, 99, 79]])]
    assert pointing_accuracy(MISS[None], boxes, [(100, 80)], difficult=[torch.tensor([False, True])]) == 100


# --- mean average precision


def test_pointing_map_hand_worked():
    # Class 0 by score: a hit, an absent one, a hit, a miss, so precision 1, 1/2, 2/3, 2/4, with 3 to find.
    maps = torch.stack([HIT, MISS, HIT, MISS, HIT, HIT])
    boxes = [
        torch.tensor(BOX),
        torch.zeros(0, 4),
        torch.tensor(BOX),
        torch.tensor(BOX),
        torch.tensor(BOX),
        torch.zeros(0, 4),
    ]
    given = maps, boxes, [(100, 80)] * 6, [0, 0, 0, 0, 1, 2], [0.9, 0.8, 0.7, 0.6, 0.1, 0.9]
    mean, per_class = pointing_average_precision(*given)
    assert per_class == {0: pytest.approx(100 * (1 + 2 / 3) / 3), 1: 100.0}  # class 2 is in no image
    assert mean.item() == pytest.approx(sum(per_class.values()) / 2)
    _, eleven = pointing_average_precision(*given, interpolation="11-point")
    assert eleven[0] == pytest.approx(100 * (4 * 1 + 3 * 2 / 3) / 11)


def test_pointing_map_of_perfect_points_is_that_of_the_classification():
    metrics = pytest.importorskip("sklearn.metrics")
    present = torch.rand(60) < 0.3
    scores = torch.rand(60) + 0.3 * present
    boxes = [torch.tensor(BOX) if there else torch.zeros(0, 4) for there in present]
    mean, _ = pointing_average_precision(HIT.expand(60, -1, -1), boxes, [(100, 80)] * 60, [0] * 60, scores)
    precision, recall, _ = metrics.precision_recall_curve(present, scores)
    envelope = np.maximum.accumulate(precision)  # sklearn's goes up in threshold, from recall 1 to 0
    assert mean.item() == pytest.approx(100 * -(np.diff(recall) * envelope[:-1]).sum(), rel=1e-9)


def test_pointing_map_leaves_out_what_is_all_difficult_or_without_a_place():
    maps, _, sizes = pairs(MISS, MISS, HIT)
    boxes = [torch.tensor(BOX), torch.tensor([[NAN] * 4]), torch.tensor(BOX)]
    difficult = [torch.tensor([True]), torch.tensor([False]), torch.tensor([False])]
    mean, _ = pointing_average_precision(maps, boxes, sizes, [0] * 3, [0.9, 0.8, 0.1], difficult)
    assert mean == 100


# --- as metrics


def halves(kind):
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(20, 5, 6, generator=generator)
    corner = torch.rand(20, 2, 2, generator=generator) * 60
    boxes = list(torch.cat([corner, corner + 15], 2))
    labels = torch.arange(20) % 3
    more = (torch.rand(20, generator=generator),) if kind is PointingMAP else ()
    given = maps, boxes, [(100, 80)] * 20, labels, *more
    return given, [part[:7] for part in given], [part[7:] for part in given]


@pytest.mark.parametrize("kind", [PointingGame, PointingMAP])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_halves_merged_are_the_whole_and_reset_forgets(kind):
    given, left, right = halves(kind)
    whole, first, second = kind(tolerance=5), kind(tolerance=5), kind(tolerance=5)
    whole.update(*given)
    first.update(*left)
    second.update(*right)
    first.merge_state(second)
    assert 0 < whole.compute() < 100
    assert first.compute() == whole.compute() and first.per_class() == whole.per_class()
    first.reset()
    assert first.compute().isnan() and first.per_class() == {}


@pytest.mark.parametrize("kind", [PointingGame, PointingMAP])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan(kind):
    metric = kind()
    assert metric.compute().isnan()
    metric.update(torch.zeros(0, 5, 5), [], [], [], *([[]] if kind is PointingMAP else []))
    assert metric.compute().isnan() and metric.per_class() == {}


def test_in_a_collection():
    given, left, right = halves(PointingGame)
    metrics = MetricCollection({"pairs": PointingGame(5), "classes": PointingGame(5, average="classes")})
    alone = metrics(*left)
    metrics(*right)
    assert alone["pairs"] == pointing_accuracy(*left, tolerance=5)
    assert metrics.compute()["classes"] == pointing_accuracy(*given, tolerance=5, average="classes")


@pytest.mark.parametrize("kind", [PointingGame, PointingMAP])
def test_a_collection_keeps_tolerances_apart_that_agree_on_the_first_batch(kind):
    maps, boxes, sizes = pairs(HIT, spot(20, 5))
    more = ([0.9, 0.5],) if kind is PointingMAP else ()
    metrics = MetricCollection({"strict": kind(0), "loose": kind(18)})
    for index in range(2):
        one = slice(index, index + 1)
        metrics.update(maps[one], boxes[one], sizes[one], [0], *[part[one] for part in more])
    assert metrics.compute() == {"strict": 50, "loose": 100}


def test_on_its_device(device):
    given, _, _ = halves(PointingMAP)
    metric = PointingMAP(5).to(device)
    metric.update(given[0].to(device), [box.to(device) for box in given[1]], *given[2:])
    assert metric.compute().device.type == device.type
    assert metric.compute().item() == pytest.approx(pointing_average_precision(*given, tolerance=5)[0].item())


def test_arrays_serve_as_well():
    (maps, boxes, sizes, labels, scores), _, _ = halves(PointingMAP)
    arrays = maps.numpy(), [box.numpy() for box in boxes], sizes, labels.numpy(), scores.numpy()
    assert pointing_average_precision(*arrays) == pointing_average_precision(maps, boxes, sizes, labels, scores)
    assert pointing_accuracy(*arrays[:4]) == pointing_accuracy(maps, boxes, sizes, labels)


GOOD = {"maps": torch.rand(1, 4, 4), "boxes": [torch.tensor(BOX)], "sizes": [(100, 80)], "labels": [0]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"maps": torch.rand(4, 4)}, r"maps: expected shape \(B, H, W\).*got \(4, 4\)"),
        ({"maps": ["a"]}, r"maps: expected a tensor, array or list of real numbers, got \['a'\]"),
        ({"maps": torch.full((1, 4, 4), float("inf"))}, r"maps\[0\] has an infinite value"),
        ({"sizes": []}, r"sizes: got 0 for 1 maps; give one for each"),
        ({"sizes": [(100, 0)]}, r"sizes\[0\] is \(100, 0\): expected \(width, height\), two positive integers"),
        ({"sizes": [(100.5, 80)]}, r"sizes\[0\] is \(100.5, 80\)"),
        ({"boxes": []}, "boxes: got 0 for 1 maps"),
        ({"boxes": [torch.rand(2, 5)]}, r"boxes\[0\]: expected \(N, 4\).* got \(2, 5\)"),
        ({"boxes": [torch.tensor([[5.0, 5, 4, 9]])]}, r"boxes\[0\]\[0\] is \[5.0, 5.0, 4.0, 9.0\]: .* x0 <= x1"),
        ({"labels": [0, 1]}, r"labels: expected 1 class indices, integers >= 0, one for each of the maps, got \(2,\)"),
        ({"labels": [0.5]}, "labels: expected 1 class indices, .*float32 with 0.5"),
        ({"labels": [-1]}, "labels: .* with -1"),
        ({"difficult": []}, "difficult: got 0 for 1 maps"),
        ({"difficult": [torch.zeros(1)]}, r"difficult\[0\]: expected bool of shape \(1,\), one per box, got .*float32"),
        ({"difficult": [torch.zeros(2).bool()]}, r"difficult\[0\]: expected bool of shape \(1,\)"),
    ],
)
@pytest.mark.parametrize("kind", [PointingGame, PointingMAP])
def test_bad_input_is_named(kind, changed, message):
    more = {"scores": [0.5]} if kind is PointingMAP else {}
    with pytest.raises(InputError, match=message):
        kind().update(**{**GOOD, **more, **changed})


@pytest.mark.parametrize("scores", [[0.5, 0.1], [NAN]])
def test_bad_scores_are_named(scores):
    with pytest.raises(InputError, match="scores: expected 1 numbers, one for each of the maps"):
        PointingMAP().update(**GOOD, scores=scores)


def test_bad_arguments_are_named():
    for kind in (PointingGame, PointingMAP):
        for value in (-1, NAN, float("inf"), "18", None):
            with pytest.raises(
                InputError, match=rf"{kind.__name__}\(tolerance={value!r}\): tolerance must be a finite number"
            ):
                kind(tolerance=value)
    with pytest.raises(InputError, match=r"PointingGame\(average='macro'\): average must be 'pairs' or 'classes'"):
        PointingGame(average="macro")
    with pytest.raises(InputError, match=r"PointingMAP\(interpolation='auc'\): expected 'area'"):
        PointingMAP(interpolation="auc")


def test_missing_labels_are_named():
    given = pairs(HIT)
    with pytest.raises(InputError, match=r"labels=None: PointingGame.* needs the class of every map"):
        PointingGame(average="classes").update(*given)
    metric = PointingGame()
    metric.update(*given)
    with pytest.raises(InputError, match=r"per_class\(\): some maps were added without their class"):
        metric.per_class()


@pytest.mark.parametrize("value", [0.3, 7.7, -1e-5])
def test_a_map_of_one_value_points_at_the_top_left_at_every_size(value):
    sizes = [(width, height) for width in range(2, 60, 7) for height in range(2, 60, 5)]
    maps = torch.full((len(sizes), 16, 13), value, dtype=torch.float64)
    assert not peak_points(maps, sizes).any()
