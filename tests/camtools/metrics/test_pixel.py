import numpy as np
import pytest
import torch
from pixel_reference import THRESHOLDS, normalised, reference_ious, reference_pxap
from torchmetrics import MetricCollection

from camtools.errors import InputError
from camtools.metrics import PeakIoU, PxAP, mask_ious, peak_iou, pixel_average_precision, scoremaps
from camtools.metrics.pixel import truth_masks


def batch(count=6, height=20, width=24, ignored=True):
    """Maps that know something of the masks, and regions to ignore."""
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for index in range(count):
        masks[index, 3 + index : 12 + index, 4 : 10 + index] = True
    maps = torch.rand(count, height, width) + 0.4 * masks
    return maps, masks, torch.rand(count, height, width) < 0.2 if ignored else None


# --- PxAP


def test_pxap_hand_worked():
    maps = torch.tensor([[[0.0, 0.2, 0.6, 1.0]]])
    masks = torch.tensor([[[False, True, False, True]]])
    # From the top: 1.0 is right (P 1, R .5), 0.6 wrong (P 1/2), 0.2 right (P 2/3, R 1).
    assert pixel_average_precision(maps, masks, size=None).item() == pytest.approx(100 * (0.5 * 1 + 0.5 * 2 / 3))


def test_pxap_ignores_what_is_to_be_ignored_but_never_the_object():
    maps = torch.tensor([[[0.0, 0.2, 0.6, 1.0]]])
    masks = torch.tensor([[[False, True, False, True]]])
    ignore = torch.tensor([[[False, True, True, False]]])
    assert pixel_average_precision(maps, masks, ignore, size=None).item() == 100


def test_pxap_equals_the_reference_protocol():
    maps, masks, ignore = batch()
    maps[1], maps[2, 3, 3] = 0.7, torch.nan  # both count as zeros
    result = pixel_average_precision(maps, masks, ignore, size=None)
    assert result.dtype == torch.float64
    assert result.item() == pytest.approx(reference_pxap(maps, masks, ignore), rel=1e-12)


def test_pxap_equals_scikit_learn_on_the_binned_scores():
    metrics = pytest.importorskip("sklearn.metrics")
    maps, masks, ignore = batch()
    counted = (masks | ~ignore).numpy()
    binned = np.stack([np.searchsorted(np.append(THRESHOLDS, 1.0), normalised(m), side="right") for m in maps])
    expected = metrics.average_precision_score(masks.numpy()[counted], binned[counted])
    assert pixel_average_precision(maps, masks, ignore, size=None).item() == pytest.approx(100 * expected, rel=1e-12)


def test_pxap_bins_on_every_edge_as_numpy_does():
    values = np.concatenate([THRESHOLDS, np.nextafter(THRESHOLDS[1:], 0), [1.0]])
    metric = PxAP(size=None)
    metric.update(torch.from_numpy(values).view(1, 1, -1), torch.ones(1, 1, len(values), dtype=torch.bool))
    assert metric.on_objects.tolist() == np.histogram(values, bins=np.append(THRESHOLDS, [1.0, 2.0]))[0].tolist()
    assert metric.elsewhere.sum() == 0


def test_pxap_at_the_protocol_size_equals_the_reference_with_opencv():
    cv2 = pytest.importorskip("cv2")
    maps = torch.rand(3, 7, 9, dtype=torch.float64)
    sizes = [(333, 500), (480, 361), (224, 224)]
    masks = [torch.rand(size) < 0.3 for size in sizes]
    ignore = [torch.rand(sizes[0]) < 0.3, None, torch.rand(sizes[2]) < 0.3]

    def nearest(mask, size):
        mask = torch.zeros(size, dtype=torch.bool) if mask is None else mask
        return cv2.resize(mask.numpy().astype(np.float32), (224, 224), interpolation=cv2.INTER_NEAREST) > 0.5

    resized = [cv2.resize(m.numpy(), (224, 224), interpolation=cv2.INTER_CUBIC) for m in maps]
    truth = [nearest(mask, size) for mask, size in zip(masks, sizes, strict=True)]
    left_out = [nearest(mask, size) for mask, size in zip(ignore, sizes, strict=True)]
    expected = reference_pxap(resized, truth, left_out)
    assert pixel_average_precision(maps, masks, ignore).item() == pytest.approx(expected, rel=1e-12)
    found, iou = peak_iou(maps, masks, ignore)[0].item(), reference_ious(resized, truth, left_out)
    assert found == pytest.approx(100 * iou.max(), rel=1e-12)


@pytest.mark.parametrize("old", [(1, 1), (5, 1000), (223, 225), (300, 451), (447, 449), (1365, 2048)])
def test_masks_are_resized_as_opencv_does(old):
    cv2 = pytest.importorskip("cv2")
    mask = torch.rand(old) < 0.5
    expected = cv2.resize(mask.numpy().astype(np.uint8), (224, 224), interpolation=cv2.INTER_NEAREST) > 0
    assert np.array_equal(truth_masks([mask], None, 1, (224, 224))[0][0].numpy(), expected)
    assert np.array_equal(truth_masks(mask[None], None, 1, (224, 224))[0][0].numpy(), expected)


def test_pxap_curve():
    metric = PxAP(size=None)
    metric.update(torch.tensor([[[0.0, 0.2, 0.6, 1.0]]]), torch.tensor([[[False, True, False, True]]]))
    precision, recall, thresholds = metric.curve()
    assert len(precision) == len(recall) == len(thresholds) == 1001
    assert (thresholds[0], thresholds[200].item(), thresholds[-1]) == (0, pytest.approx(0.2), 1)
    assert precision[[0, 100, 300, 1000]].tolist() == pytest.approx([1 / 2, 2 / 3, 1 / 2, 1])
    assert recall[[0, 100, 300, 1000]].tolist() == pytest.approx([1, 1, 0.5, 0.5])


# --- Peak IoU


def test_peak_iou_hand_worked():
    maps = torch.tensor([[[0.0, 0.2, 0.6, 1.0]]])
    masks = torch.tensor([[[False, True, False, True]]])
    # levels 0, 51, 153, 255: above 0 -> 2/3; above 51 -> 1/3; above 153 -> 1/2
    value, threshold = peak_iou(maps, masks, size=None)
    assert value.item() == pytest.approx(200 / 3) and threshold == 0
    value, threshold = peak_iou(maps, torch.tensor([[[False, False, False, True]]]), size=None)
    assert value == 100 and threshold.item() == pytest.approx(0.6)  # int(0.6 * 255) = 153, the first that drops 153


def test_peak_iou_equals_1000_thresholds_one_by_one():
    maps, masks, ignore = batch()
    maps[1], maps[2, 3, 3] = 0.7, torch.nan
    metric = PeakIoU(size=None)
    metric.update(maps, masks, ignore)
    expected = reference_ious(maps, masks, ignore)
    iou, thresholds = metric.curve()
    np.testing.assert_allclose(iou.numpy(), 100 * expected, rtol=1e-12)
    assert np.array_equal(thresholds.numpy(), THRESHOLDS)
    assert metric.compute().item() == pytest.approx(100 * expected.max(), rel=1e-12)
    assert metric.best_threshold.item() == THRESHOLDS[expected.argmax()]


def test_mask_ious_one_by_one():
    maps, masks, ignore = batch()
    levels = scoremaps(maps, None)
    result = mask_ious(levels, masks, ignore)
    assert result.shape == (6, 256)
    for level in (0, 1, 100, 254, 255):
        kept = (levels > level) & (masks | ~ignore)
        expected = (kept & masks).flatten(1).sum(1) / (kept | masks).flatten(1).sum(1).double()
        assert result[:, level].tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert mask_ious(levels, masks).equal(mask_ious(levels.long(), masks, torch.zeros_like(masks)))


def test_an_image_without_an_object_has_no_iou():
    maps, masks, _ = batch(2)
    masks[1] = False
    assert mask_ious(scoremaps(maps, None), masks).isnan().tolist() == [[False] * 256, [True] * 256]
    assert peak_iou(maps, masks, size=None) == peak_iou(maps[:1], masks[:1], size=None)


# --- both


@pytest.mark.parametrize("kind", [PxAP, PeakIoU])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_halves_merged_are_the_whole(kind):
    maps, masks, ignore = batch()
    whole, first, second = kind(size=None), kind(size=None), kind(size=None)
    whole.update(maps, masks, ignore)
    first.update(maps[:2], masks[:2], ignore[:2])
    second.update(maps[2:], masks[2:], ignore[2:])
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(whole.compute().item(), rel=1e-12)
    first.reset()
    assert first.compute().isnan()


@pytest.mark.parametrize("kind", [PxAP, PeakIoU])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan(kind):
    metric = kind()
    assert metric.compute().isnan()
    metric.update(torch.zeros(0, 5, 5), torch.zeros(0, 5, 5, dtype=torch.bool))
    metric.update(torch.zeros(0, 5, 5), [], [])
    assert metric.compute().isnan()
    metric.update(torch.rand(1, 5, 5), torch.zeros(1, 5, 5, dtype=torch.bool))  # no object
    assert metric.compute().isnan()
    if kind is PeakIoU:
        assert metric.best_threshold.isnan()


def test_forward_and_collections():
    maps, masks, ignore = batch()
    metrics = MetricCollection([PxAP(size=None), PeakIoU(size=None)])
    alone = metrics(maps[:3], masks[:3], ignore[:3])
    metrics(maps[3:], masks[3:], ignore[3:])
    assert alone["PxAP"] == pixel_average_precision(maps[:3], masks[:3], ignore[:3], size=None)
    result = metrics.compute()
    assert result["PxAP"] == pixel_average_precision(maps, masks, ignore, size=None)
    assert result["PeakIoU"].item() == pytest.approx(peak_iou(maps, masks, ignore, size=None)[0].item(), rel=1e-12)


@pytest.mark.parametrize("kind", [PxAP, PeakIoU])
def test_a_collection_keeps_sizes_apart_that_agree_on_the_first_batch(kind):
    same = torch.zeros(1, 224, 224)
    same[:, 50:100, 60:90] = 1
    small, mask = torch.rand(1, 7, 7), torch.rand(1, 224, 224) < 0.5
    metrics = MetricCollection({"224": kind(), "own": kind(size=None)})
    metrics.update(same, same > 0)
    metrics.update(small, mask)
    result = metrics.compute()
    assert result["224"] != result["own"]


def test_arrays_serve_as_well():
    maps, masks, ignore = batch()
    arrays = [part.numpy() for part in (maps, masks, ignore)]
    assert pixel_average_precision(*arrays) == pixel_average_precision(maps, masks, ignore)
    assert peak_iou(*arrays) == peak_iou(maps, list(masks), list(ignore))


def test_maps_stay_on_their_device(device):
    maps, masks, ignore = batch()
    for kind in (PxAP, PeakIoU):
        on_device, on_cpu = kind(), kind()
        on_device.to(device)
        on_device.update(maps.to(device), masks, ignore.to(device))
        on_cpu.update(maps, masks, ignore)
        assert on_device.compute().device.type == device.type
        assert on_device.compute().item() == pytest.approx(on_cpu.compute().item(), rel=1e-9)


MASK = torch.zeros(2, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize("kind", [PxAP, PeakIoU])
@pytest.mark.parametrize(
    ("masks", "ignore", "message"),
    [
        (MASK[:1], None, "masks: got 1 for 2 maps; give one for each of them, in order."),
        (MASK, [None], "ignore: got 1 for 2 maps"),
        (MASK[:, 0], None, r"masks: expected \(B, h, w\), got \(2, 4\)\. Join the objects"),
        (MASK.float(), None, "masks: expected a bool mask .*float32. Compare values first: mask > 0."),
        ([MASK[0], MASK[0].long()], None, r"masks\[1\]: expected a bool mask .*int64"),
        ([MASK[0], MASK], None, r"masks\[1\]: .* 2 dimensions, got \(2, 4, 4\)"),
        ([MASK[0], MASK[0, :0]], None, r"masks\[1\]: expected a bool mask with at least one pixel"),
        (MASK, [None, MASK[0].int()], r"ignore\[1\]: expected a bool mask"),
        ("mask", None, "masks: expected a list with an entry for each image, got 'mask'"),
        (None, None, "masks: expected a list with an entry for each image, got None"),
    ],
)
def test_bad_masks_are_named(kind, masks, ignore, message):
    with pytest.raises(InputError, match=message):
        kind().update(torch.rand(2, 4, 4), masks, ignore)


@pytest.mark.parametrize(
    ("levels", "masks", "ignore", "message"),
    [
        (torch.rand(2, 4, 4), MASK, None, r"levels: expected integers of shape \(B, H, W\), got .*float32. Quantise"),
        (torch.zeros(4, 4).long(), MASK, None, r"levels: expected integers of shape \(B, H, W\), got \(4, 4\)"),
        (torch.full((2, 4, 4), 256), MASK, None, r"levels: expected values in \[0, 255\], got 256 to 256"),
        (torch.zeros(2, 4, 4).long(), MASK[:1], None, r"masks: expected bool of shape \(2, 4, 4\)"),
        (torch.zeros(2, 4, 4).long(), MASK, MASK.int(), "ignore: expected bool of shape .*int32"),
    ],
)
def test_bad_levels_are_named(levels, masks, ignore, message):
    with pytest.raises(InputError, match=message):
        mask_ious(levels, masks, ignore)
