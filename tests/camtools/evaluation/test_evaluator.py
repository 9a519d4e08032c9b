"""`camtools.evaluate`: rows and metrics against the metric classes, and against values worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

import camtools
from camtools.datasets import BoxFolder, Record, RecordDataset
from camtools.evaluation import METRICS, EvaluationResult
from camtools.evaluation.statistics import FORMER
from camtools.metrics import (
    LocalizationMAP,
    MaxBoxAcc,
    MaxBoxAccV2,
    PeakIoU,
    PointingGame,
    PointingMAP,
    PxAP,
    TopKLocalization,
)
from camtools.metrics.box_ious import box_ious
from camtools.metrics.scoremap import scoremaps
from camtools.steps import IVR, NWC, PaS

PIPELINES = "cam,rcam,adaptive;NWC,IVR(45)"


class Masked(RecordDataset):
    """Drawn images with masks; the last object of every fourth is difficult, and some pixels count for nothing."""

    classes = ("red", "green", "blue")

    def __init__(self, count=8, several=False):
        super().__init__()
        self.count, self.several = count, several

    def __len__(self):
        return self.count

    def record(self, index):
        generator = np.random.default_rng(index)
        pixels = generator.integers(0, 60, (80, 120, 3), dtype=np.uint8)
        labels = [index % 3, (index + 1) % 3, index % 3] if self.several else [index % 3]
        boxes, masks = [], np.zeros((len(labels), 80, 120), dtype=bool)
        for number, label in enumerate(labels):
            x0, y0 = 40 * number + int(generator.integers(0, 10)), int(generator.integers(0, 40))
            x1, y1 = x0 + 25, y0 + int(generator.integers(10, 40))
            pixels[y0:y1, x0:x1, label] = 255 - 40 * number
            masks[number, y0:y1, x0:x1] = True
            boxes.append([x0, y0, x1, y1])
        ignore = np.zeros((80, 120), dtype=bool)
        ignore[:, 118:] = True
        difficult = torch.tensor([self.several and index % 4 == 0 and number == 2 for number in range(len(labels))])
        return Record(
            Image.fromarray(pixels),
            torch.tensor(labels),
            torch.tensor(boxes, dtype=torch.float32),
            torch.from_numpy(masks),
            torch.from_numpy(ignore),
            f"{index}.png",
            difficult,
        )


def raw_maps(model, data, transform, targets=None):
    """The maps of the images squashed to 224 x 224, straight from the model, (N, 28, 28), and the logits."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std))
    squashed = [data[i].image.resize((224, 224), Image.Resampling.BILINEAR) for i in range(len(data))]
    x = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255.0 for one in squashed])
    targets = torch.tensor([data[i].label for i in range(len(data))]) if targets is None else targets
    found = camtools.wrap(model).activations((x - mean) / std)
    return found.maps(targets).detach(), found.logits.detach()


def test_box_metrics_are_those_of_the_metric_classes(model, images, options):
    data = BoxFolder(images, classes=options["class_names"])
    result = camtools.evaluate(model, data, "cam", **options)
    maps, logits = raw_maps(model, data, options["transform"])
    records = [data[i] for i in range(len(data))]
    truth = [record.boxes for record in records], [record.size for record in records]
    labels = torch.tensor([record.label for record in records])
    one, several, top = MaxBoxAcc(), MaxBoxAccV2(), TopKLocalization()
    one.update(maps[:, 0], *truth)
    several.update(maps[:, 0], *truth)
    top.update(maps[:, 0], *truth, logits, labels)
    found = result.metrics["cam"]
    assert found["MaxBoxAcc"].value == pytest.approx(float(one.compute()))
    assert found["MaxBoxAcc"].threshold == pytest.approx(float(one.best_threshold))
    assert found["MaxBoxAccV2"].value == pytest.approx(float(several.compute()))
    assert found["MaxBoxAccV2"].threshold == pytest.approx(several.best_threshold.tolist())
    assert found["Top-1 Loc@best"].value == pytest.approx(float(top.compute()["top1"]))
    assert found["Top-5 Loc@best"].value == pytest.approx(float(top.compute()["top5"]))
    assert 0 < found["MaxBoxAccV2"].value < 100
    exact = box_ious(scoremaps(maps[:, 0]), *truth)
    np.testing.assert_array_equal(result.rows.v1[0], exact.largest.float().numpy())
    np.testing.assert_array_equal(result.rows.v2[0], exact.any.float().numpy())
    thresholds, accuracy = result.curve("MaxBoxAcc")
    np.testing.assert_allclose(accuracy[0], one.curve().accuracy.numpy())
    np.testing.assert_array_equal(thresholds, one.curve().thresholds.numpy())
    np.testing.assert_allclose(result.curve("MaxBoxAccV2@0.7")[1][0], several.curve().accuracy[2].numpy())
    np.testing.assert_allclose(result.curve("MaxBoxAccV2")[1][0], several.curve().accuracy.mean(0).numpy())


def test_rows_by_hand(model, tmp_path, options):
    """A red square on a cell grid: the map is 1 inside and 0 outside, so boxes are known up to the interpolation."""
    pixels = np.zeros((112, 224, 3), np.uint8)
    pixels[28:84, 56:168, 0] = 255  # (56, 28, 168, 84): in 224 x 224 rows 56:168, columns 56:168
    (tmp_path / "one").mkdir()
    Image.fromarray(pixels).save(tmp_path / "one" / "a.png")
    (tmp_path / "one.csv").write_text("file,class,x0,y0,x1,y1\na.png,red,56,28,168,84\n")
    result = camtools.evaluate(model, f"boxfolder:{tmp_path / 'one'}", "NWC,FixedThreshold(0.5)", **options)
    rows = result.rows
    assert (rows.ids, rows.names, rows.labels.tolist(), rows.sizes.tolist()) == (["a.png"], ["red"], [0], [[224, 112]])
    assert rows.own_box[0, 0].tolist() == [56, 28, 168, 84]
    assert rows.own_iou[0, 0] == 1
    assert rows.own_threshold[0, 0] == 0.5
    # The reference's box at 0.5 is 56, 56, 168, 168 and so is the truth: IoU 1.
    assert rows.v1[0, 0, 127] == 1 and rows.v2[0, 0, 127] == 1
    assert rows.v1[0, 0, 255] == 0  # nothing is left: the box is 0, 0, 0, 0
    assert rows.pointing[0, 0] == 1
    assert rows.rank[0] == 0
    # a quarter of the image is red: logits 2.5, -0.5, -0.5
    assert rows.score[0] == pytest.approx(np.exp(2.5) / (np.exp(2.5) + 2 * np.exp(-0.5)), rel=1e-5)
    np.testing.assert_array_equal(rows.truth[0], [[56, 28, 168, 84]])


@pytest.mark.parametrize("pipeline", ["cam", "rcam", "adaptive", [NWC(), IVR(45), PaS()]])
def test_native_is_what_explain_gives(model, images, options, pipeline):
    data = BoxFolder(draw_wide(images), classes=options["class_names"])
    given = [pipeline] if isinstance(pipeline, list) else pipeline
    result = camtools.evaluate(model, data, given, protocol="native", **options)
    explainer = camtools.Explainer(
        model, pipeline, transform=options["transform"], class_names=options["class_names"], batch_size=4
    )
    found = explainer([data[i].image for i in range(len(data))], target=[data[i].label for i in range(len(data))])
    for row, one in enumerate(found):
        expected = [np.nan] * 4 if one.box is None else one.box.tolist()
        np.testing.assert_array_equal(result.rows.own_box[0, row], expected)
        assert result.rows.own_threshold[0, row] == pytest.approx(one.threshold / float(one.map.max()), rel=1e-5)
        assert result.rows.score[row] == pytest.approx(one.score, rel=1e-5)
    maps = torch.stack([torch.nn.functional.pad(one.map, (0, 0, 0, 0)) for one in found[:1]])
    levels = scoremaps(maps)
    exact = box_ious(levels, [data[0].boxes], [data[0].size])
    np.testing.assert_array_equal(result.rows.v1[0, 0], exact.largest[0].float().numpy())


def draw_wide(folder):
    """Images of two sizes in one data set."""
    from PIL import Image as InputImages

    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        if number % 3 == 0:
            InputImages.open(path).resize((168, 168)).save(path)
    return folder


def test_mask_metrics_are_those_of_the_metric_classes(model, options):
    data = Masked()
    result = camtools.evaluate(model, data, "cam", **options)
    maps, _ = raw_maps(model, data, options["transform"])
    records = [data[i] for i in range(len(data))]
    truth = [record.mask for record in records], [record.ignore for record in records]
    area, peak = PxAP(), PeakIoU()
    area.update(maps[:, 0], *truth)
    peak.update(maps[:, 0], *truth)
    found = result.metrics["cam"]
    assert found["PxAP"].value == pytest.approx(float(area.compute()))
    assert found["PeakIoU"].value == pytest.approx(float(peak.compute()), abs=1e-4)
    assert found["PeakIoU"].threshold == pytest.approx(float(peak.best_threshold))
    np.testing.assert_array_equal(result.rows.on_objects[0].sum(0), area.on_objects.numpy())
    np.testing.assert_array_equal(result.rows.elsewhere[0].sum(0), area.elsewhere.numpy())
    np.testing.assert_allclose(result.curve("PeakIoU")[1][0], peak.curve().iou.numpy(), rtol=1e-5)
    assert "LocalizationMAP" not in found
    assert 0 < found["MaskIoU@own"].value <= found["PeakIoU"].value + 1e-3  # cam's own threshold is one of those tried


def test_several_classes_per_image(model, options):
    data = Masked(several=True)
    result = camtools.evaluate(model, data, "cam,rcam", activation="sigmoid", protocol="native", **options)
    explainer = camtools.Explainer(
        model, "cam", transform=options["transform"], class_names=options["class_names"], activation="sigmoid"
    )
    localisation, pointing, game = LocalizationMAP(), PointingMAP(), PointingGame()
    expected_rows, hits = [], {}
    for i in range(len(data)):
        record = data[i]
        found = explainer(record.image, target=[0, 1, 2])
        boxes = torch.cat([one.boxes for one in found]).double()
        labels = torch.cat([torch.full((len(one.boxes),), one.label) for one in found])
        scores = torch.tensor([one.score for one in found])
        preds = {"boxes": boxes, "labels": labels, "scores": torch.cat([one.box_scores for one in found])}
        target = {"boxes": record.boxes, "labels": record.labels, "difficult": record.difficult}
        localisation.update([preds], [target])
        own = [record.labels == k for k in range(3)]
        maps = scoremaps(torch.stack([one.map for one in found])) / 255.0
        pointing.update(
            maps,
            [record.boxes[o] for o in own],
            [record.size] * 3,
            torch.arange(3),
            scores,
            [record.difficult[o] for o in own],
        )
        for label in record.classes:
            kept = own[label] & ~record.difficult
            game.update(maps[label][None], [record.boxes[kept]], [record.size])
            expected_rows.append((record.id, label, int(kept.sum())))
            if kept.any():
                first = found[label].boxes[:1].double()
                overlap = box_iou(first, record.boxes[kept].double()).amax() if len(first) else 0.0
                hits.setdefault(label, []).append(float(overlap >= 0.5))
    rows = result.rows
    assert list(zip(rows.ids, rows.labels.tolist(), map(len, rows.truth), strict=True)) == expected_rows
    found = result.metrics["cam"]
    assert found["LocalizationMAP"].value == pytest.approx(float(localisation.compute()), abs=1e-3)
    assert found["PointingMAP"].value == pytest.approx(float(pointing.compute()), abs=1e-3)
    assert found["CorLoc@own"].value == pytest.approx(100 * np.mean([np.mean(own) for own in hits.values()]))
    assert len(hits) > 1 and "CorLoc@own" not in camtools.evaluate(model, Masked(), "cam", **options).metrics["cam"]
    assert found["Pointing"].value == pytest.approx(float(game.compute()))
    assert result.metrics["rcam"]["LocalizationMAP"].delta is not None


def test_one_forward_for_all_pipelines(model, images, options):
    counted = []
    model.register_forward_hook(lambda *_: counted.append(_[1][0].shape[0]))
    result = camtools.evaluate(model, f"boxfolder:{images}", PIPELINES, **options)
    assert result.pipelines == ("cam", "rcam", "adaptive", "NWC,IVR(45)")
    assert sum(counted) - 12 <= 3  # besides the images, what finding the features takes
    assert not model.training


def test_pipelines_do_not_depend_on_each_other(model, images, options):
    together = camtools.evaluate(model, f"boxfolder:{images}", PIPELINES, **options)
    for number, name in enumerate(together.pipelines):
        alone = camtools.evaluate(model, f"boxfolder:{images}", name, **options)
        np.testing.assert_array_equal(alone.rows.v1[0], together.rows.v1[number])
        np.testing.assert_array_equal(alone.rows.own_box[0], together.rows.own_box[number])
        assert alone.metrics[name]["MaxBoxAcc"].value == together.metrics[name]["MaxBoxAcc"].value


def test_limit_every_skip_and_subset_choose_images(model, images, options):
    data = BoxFolder(images, classes=options["class_names"])
    some = camtools.evaluate(model, data, limit=3, every=2, **options)
    assert some.rows.ids == [data.ids[0], data.ids[2], data.ids[4]]
    later = camtools.evaluate(model, data, limit=2, every=3, skip=4, **options)
    assert later.rows.ids == [data.ids[4], data.ids[7]]
    subset = torch.utils.data.Subset(torch.utils.data.Subset(data, range(1, 12)), [0, 3])
    assert camtools.evaluate(model, subset, **options).rows.ids == [data.ids[1], data.ids[4]]
    assert camtools.evaluate(model, subset, **options).rows.index.tolist() == [1, 4]
    assert camtools.evaluate(model, subset, skip=1, **options).rows.ids == [data.ids[4]]


def test_a_broken_image_is_listed_and_the_others_count(model, tmp_path, options, drawing):
    folder = drawing(tmp_path / "some", broken=5)
    result = camtools.evaluate(model, f"boxfolder:{folder}", **options)
    assert [name for name, _ in result.failed] == ["deep/005.png"]
    assert "005.png" in result.failed[0][1]
    assert len(result.rows) == 11 and "deep/005.png" not in result.rows.ids


def test_saved_and_loaded(model, options, tmp_path):
    result = camtools.evaluate(model, Masked(several=True), "cam,rcam", **options)
    result.save(tmp_path / "out")
    loaded = EvaluationResult.load(tmp_path / "out")
    assert loaded.to_dict() == result.to_dict()
    assert (loaded.pipelines, loaded.baseline, loaded.metrics) == (result.pipelines, "cam", result.metrics)
    for name, value in vars(result.rows).items():
        if name == "truth":
            assert all(np.array_equal(a, b) for a, b in zip(value, loaded.rows.truth, strict=True))
        else:
            np.testing.assert_array_equal(value, getattr(loaded.rows, name), err_msg=name)
    for kind in ("boxes", "points"):
        for name, value in vars(result.detections["rcam"][kind]).items():
            np.testing.assert_array_equal(value, getattr(loaded.detections["rcam"][kind], name))
    import pyarrow.parquet as parquet

    table = parquet.read_table(tmp_path / "out" / "rows.parquet")
    assert table.num_rows == 2 * len(result.rows)
    assert table["pipeline"].to_pylist()[:2] == ["cam", "rcam"]


def test_metrics_can_be_chosen(model, images, options):
    result = camtools.evaluate(model, f"boxfolder:{images}", metrics=["MaxBoxAccV2", "Pointing"], **options)
    assert result.metric_names == ("MaxBoxAccV2", "Pointing")
    assert set(METRICS) >= {"MaxBoxAcc", "PxAP", "LocalizationMAP"}


def test_former_names_of_metrics_are_taken_with_a_warning(model, images, options):
    with pytest.warns(DeprecationWarning, match="the metric 'Top-1 Loc' is now called 'Top-1 Loc@best'"):
        result = camtools.evaluate(model, f"boxfolder:{images}", metrics=["Top-1 Loc", "MaxBoxAcc"], **options)
    assert result.metric_names == ("Top-1 Loc@best", "MaxBoxAcc")
    assert set(FORMER.values()) < set(METRICS) and not set(FORMER) & set(METRICS)


def test_top_1_loc_is_at_most_maxboxacc(model, images, options):
    values = camtools.evaluate(model, f"boxfolder:{images}", **options).metrics["cam"]
    assert values["Top-1 Loc@best"].threshold == values["MaxBoxAcc"].threshold
    assert values["Top-1 Loc@best"].value <= values["Top-5 Loc@best"].value <= values["MaxBoxAcc"].value
