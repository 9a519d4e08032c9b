"""Maps from files, judged as the metric classes judge them."""

import numpy as np
import pytest
import torch

import camtools
from camtools.datasets import BoxFolder
from camtools.errors import InputError
from camtools.evaluation.scoremaps import read_map
from camtools.metrics import MaxBoxAcc, MaxBoxAccV2, PointingGame


@pytest.fixture
def maps(images, tmp_path):
    """Random 14 x 14 maps for every image, with a constant one and one with a NaN among them."""
    data = BoxFolder(images)
    generator = np.random.default_rng(0)
    found = {name: generator.random((14, 14)).astype(np.float32) for name in data.ids}
    found[data.ids[2]][:] = 0.3
    found[data.ids[3]][4, 5] = np.nan
    for name, value in found.items():
        path = tmp_path / "maps" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, value)
    return data, found, tmp_path / "maps"


def test_they_are_judged_as_the_metric_classes_do(maps):
    data, found, folder = maps
    result = camtools.evaluate(None, data, scoremaps=folder, progress=False, batch_size=5)
    stack = torch.from_numpy(np.stack([found[name] for name in data.ids]))
    truth = [data[i].boxes for i in range(len(data))], [data[i].size for i in range(len(data))]
    for name, metric in (("MaxBoxAcc", MaxBoxAcc()), ("MaxBoxAccV2", MaxBoxAccV2())):
        metric.update(stack, *truth)
        assert result.metrics["maps"][name].value == pytest.approx(float(metric.compute()))
    assert result.metric_names == ("MaxBoxAcc", "MaxBoxAccV2", "Pointing")
    assert all(getattr(result.rows, name) is None for name in ("rank", "score", "own_box", "own_iou", "own_threshold"))
    game = PointingGame()
    game.update(torch.from_numpy(np.nan_to_num(stack.numpy()))[:2], truth[0][:2], truth[1][:2])
    assert len(result.rows) == 12 and not result.failed


def test_a_models_own_maps_from_files_give_the_models_numbers(model, images, options, tmp_path):
    data = BoxFolder(images, classes=options["class_names"])
    direct = camtools.evaluate(model, data, "cam", **options)
    x = torch.stack([options_input(data[i].image) for i in range(len(data))])
    raw = camtools.wrap(model).maps(x, torch.tensor([data[i].label for i in range(len(data))]))[:, 0].detach().numpy()
    for name, value in zip(data.ids, raw, strict=True):
        path = (tmp_path / "files" / name).with_suffix(".npy")  # without the image's own suffix, too
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, value)
    judged = camtools.evaluate(None, data, scoremaps={"ours": tmp_path / "files"}, progress=False)
    np.testing.assert_array_equal(judged.rows.v1, direct.rows.v1)
    np.testing.assert_array_equal(judged.rows.v2, direct.rows.v2)


def options_input(image):
    from PIL import Image

    squashed = np.array(image.resize((224, 224), Image.Resampling.BILINEAR))
    return torch.from_numpy(squashed).permute(2, 0, 1) / 255.0


def test_two_methods_are_compared(maps):
    data, _, folder = maps
    result = camtools.evaluate(None, data, scoremaps={"a": folder, "b": folder}, bootstrap=20, progress=False)
    assert result.baseline == "a"
    value = result.metrics["b"]["MaxBoxAcc"]
    assert (value.delta, value.low, value.high) == (0, 0, 0)


def test_what_is_wrong_is_listed(maps):
    data, _, folder = maps
    (folder / f"{data.ids[0]}.npy").unlink()
    np.save(folder / f"{data.ids[1]}.npy", np.zeros((3, 4, 4)))
    np.save(folder / f"{data.ids[2]}.npy", np.array([["a"]]))
    (folder / f"{data.ids[4]}.npy").write_bytes(b"no array")
    np.save(folder / f"{data.ids[5]}.npy", np.full((2, 2), np.inf))
    result = camtools.evaluate(None, data, scoremaps=folder, progress=False, batch_size=2)
    errors = dict(result.failed)
    assert [name for name, _ in result.failed] == [data.ids[i] for i in (0, 1, 2, 4, 5)]
    assert "there is no score map" in errors[data.ids[0]]
    assert "has shape (3, 4, 4)" in errors[data.ids[1]] and "expected (H, W) numbers" in errors[data.ids[1]]
    assert "dtype <U1" in errors[data.ids[2]]
    assert "cannot be read" in errors[data.ids[4]]
    assert "has an infinite value" in errors[data.ids[5]]
    assert len(result.rows) == 7


def test_constant_and_nan_maps_are_zeros(maps):
    data, _, folder = maps
    assert (read_map(folder, data.ids[2]) == 0).all() and (read_map(folder, data.ids[3]) == 0).all()
    one = read_map(folder, data.ids[0])
    assert one.shape == (224, 224) and one.dtype == torch.float64 and (one.min(), one.max()) == (0, 1)


def test_folders_that_are_none(maps, tmp_path):
    data, _, _ = maps
    with pytest.raises(InputError, match=r"nowhere' is not a folder: expected one with <image_id>\.npy in it"):
        camtools.evaluate(None, data, scoremaps=tmp_path / "nowhere")
    with pytest.raises(InputError, match="scoremaps is empty"):
        camtools.evaluate(None, data, scoremaps={})


def test_images_of_several_classes_are_listed(tmp_path, images):
    table = images.with_suffix(".csv")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1].replace("red", "blue")]) + "\n")
    (tmp_path / "m").mkdir()
    for name in BoxFolder(images).ids:
        (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / "m" / f"{name}.npy", np.eye(4))
    result = camtools.evaluate(None, f"boxfolder:{images}", scoremaps=tmp_path / "m", progress=False)
    assert [name for name, _ in result.failed] == ["000.png"]
    assert "has 2 classes, but there is one score map per image" in result.failed[0][1]
