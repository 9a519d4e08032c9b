"""ultralytics' classifiers: logits instead of probabilities, their names and preprocessing, files that run no code."""

import os
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import camtools
from camtools import ModelError, Preprocess, WeightsError, explain, wrap
from camtools.sources import find_source

_printed, _save, _open = np.get_printoptions(), torch.save, Image.open
ultralytics = pytest.importorskip("ultralytics", reason="needs ultralytics: pip install 'camtools[ultralytics]'")
tasks, augment = (pytest.importorskip(f"ultralytics.{name}") for name in ("nn.tasks", "data.augment"))
YOLO, classify_transforms = ultralytics.YOLO, augment.classify_transforms
ClassificationModel, DetectionModel = tasks.ClassificationModel, tasks.DetectionModel

np.set_printoptions(**_printed)  # which ultralytics changes for everybody
torch.set_printoptions(profile="default")
torch.save, Image.open = _save, _open

NAMES = {0: "ant", 1: "bee", 2: "cat"}


@pytest.fixture(scope="module", params=["yolov8n-cls.yaml", "yolo11n-cls.yaml"])
def model(request):
    torch.manual_seed(0)
    built = ClassificationModel(request.param, nc=10, verbose=False).eval()
    built.model[-1].linear.weight.data.normal_(0, 20)
    return built


def test_logits_count_and_maps_add_up(model):
    x = torch.rand(2, 3, 64, 64)
    probabilities, logits = model(x)
    found = wrap(model).activations(x)
    assert found.decomposition.adapter == "ultralytics" and found.decomposition.exact
    assert torch.equal(found.logits, logits)
    bias = model.model[-1].linear.bias
    torch.testing.assert_close(found.maps().mean((2, 3)) + bias, logits, atol=1e-4, rtol=1e-3)
    exp = explain(model, x[0])
    assert exp.score == pytest.approx(float(probabilities[0].max()), rel=1e-4)
    model.model[-1].export = True  # as exporters set it: probabilities alone
    try:
        assert torch.equal(wrap(model).activations(x).logits, logits)
    finally:
        model.model[-1].export = False


def test_names_and_transforms_are_the_models_own():
    model = ClassificationModel("yolov8n-cls.yaml", nc=3, verbose=False).eval()
    assert camtools.Explainer(model, crop="model").class_names is None  # "0", "1", ... are no names
    assert camtools.Explainer(model, crop="model").transform == Preprocess(
        (224, 224), 224, "bilinear", (0,) * 3, (1,) * 3
    )
    model.args = {"imgsz": 96}
    assert camtools.Explainer(model, crop="model").transform.resize == 96
    model.names = NAMES
    model.transforms = classify_transforms(64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    explainer = camtools.Explainer(model, crop="model")
    assert explainer.transform == Preprocess((64, 64), 64, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 110, 3), dtype=np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is a guess
        exp = explainer(photo, target="bee")
    torch.testing.assert_close(exp.logits, model(model.transforms(photo)[None])[1][0].detach(), atol=1e-4, rtol=1e-3)
    assert exp.label == 1


def test_what_is_no_classifier_is_named():
    with pytest.raises(
        ModelError, match=r"DetectionModel is no classifier \(its last layer is Detect\): expected a Class"
    ):
        wrap(DetectionModel("yolov8n.yaml", verbose=False).eval()).maps(torch.rand(1, 3, 64, 64))
    with pytest.raises(ModelError, match=r"got YOLO. Pass its attribute 'model', a ClassificationModel"):
        wrap(YOLO("yolov8n-cls.yaml"))


def test_files_are_read_without_running_code(tmp_path):
    model = ClassificationModel("yolov8n-cls.yaml", nc=3, verbose=False)
    model.names = NAMES
    torch.save({"model": model.half(), "ema": None, "train_args": {}}, tmp_path / "best.pt")
    allowed = set(torch.serialization.get_safe_globals())
    loaded = camtools.load_model(f"ultralytics:{tmp_path}/best.pt")
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert loaded.class_names == ("ant", "bee", "cat") and loaded.preprocess.input_size == (224, 224)
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.model(x)[1], model.float().eval()(x)[1])

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"model": Harm()}, tmp_path / "bad.pt")
    for name, words in (
        ("bad.pt", "cannot be loaded: TypeError"),
        ("absent.pt", "there is no file .* Nothing is downloaded"),
    ):
        with pytest.raises(WeightsError, match=words):
            camtools.load_model(f"ultralytics:{tmp_path}/{name}")
    assert not (tmp_path / "harm").exists()
    with pytest.raises(WeightsError, match="are for 3 classes; with num_classes=5"):
        camtools.load_model(f"ultralytics:{tmp_path}/best.pt", num_classes=5)
    torch.save({"model": DetectionModel("yolov8n.yaml", verbose=False)}, tmp_path / "detector.pt")
    with pytest.raises(WeightsError, match="holds a DetectionModel: expected a ClassificationModel"):
        camtools.load_model(f"ultralytics:{tmp_path}/detector.pt")
    assert camtools.load_model("ultralytics:yolov8n-cls.yaml", "random", num_classes=4).model.yaml["nc"] == 4
    with pytest.raises(WeightsError, match="is a file of weights: expected a configuration"):
        camtools.load_model(f"ultralytics:{tmp_path}/best.pt", "random")
    with pytest.raises(ModelError, match=r"takes no arguments, but \['width'\] were given"):
        camtools.load_model("ultralytics:yolov8n-cls.yaml", "random", model_args={"width": 2})


def test_names_with_a_slash_are_no_paths():
    """So that the header of a weights file cannot open one."""
    for name in ("ultralytics/yolov8n-cls.yaml", "hf/owner"):
        with pytest.raises(ModelError, match="does not name a model"):
            find_source(name)


def test_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ModelError, match=r"ultralytics, which is not installed: pip install 'camtools\[ultralytics\]'"):
        find_source("ultralytics:best.pt")
