"""A classifier with its maps as an ONNX graph, and the runtime without torch: both give what torch gives."""

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import camtools
from camtools import InputError, ModelError, PipelineError, Preprocess, TargetError, to_onnx
from camtools.cli import app
from camtools.images.adjusted import with_crop
from camtools.onnx_graph import threshold_rule
from camtools.parts import connected
from camtools.runtime import OnnxExplainer
from camtools.steps import CAM, FixedThreshold, MinMax, PaS, RangeThreshold

pytest.importorskip("onnxscript", reason="needs ONNX: pip install 'camtools[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX: pip install 'camtools[onnx]'")

NAMES = ["ant", "bee", "cat", "dog"]
SIDE = 64
PHOTO = skimage.data.chelsea()


class Net(nn.Module):
    """Convolutions and a linear head, or one with a norm before the classifier, which is linearised."""

    def __init__(self, classes=4, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 8, 4, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.norm = nn.LayerNorm(16) if norm else nn.Identity()
        self.fc = nn.Linear(16, classes)
        nn.init.normal_(self.fc.weight, std=4.0)
        self.class_names = NAMES if classes == 4 else None
        self.preprocess = Preprocess(input_size=(SIDE, SIDE), resize=72)

    def forward(self, x):
        return self.fc(self.norm(self.body(x).mean((2, 3))))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Files, each written once: all maps of a linear head; the two likeliest of a linearised one, under rcam."""
    folder = tmp_path_factory.mktemp("onnx")
    exact = to_onnx(Net().eval(), folder / "exact.onnx")
    return {
        "exact": exact,
        "linearised": to_onnx(Net(norm=True).eval(), folder / "norm.onnx", top_k=2, pipeline="rcam"),
    }


def images(count, seed=0):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def check_parity(model, path, x, pipeline, top_k=None):
    """The graph's outputs beside those of torch."""
    session = onnxruntime.InferenceSession(str(path))
    logits, classes, maps, heatmaps = session.run(None, {"images": x.numpy()})
    explainer = camtools.Explainer(model, pipeline)
    found = explainer.model.activations(x)
    want = found.logits.detach()
    assert np.abs(logits - want.numpy()).max() <= 1e-4
    k = 1 if top_k is None else top_k
    assert classes.tolist() == want.topk(k).indices.tolist()
    for row, image in enumerate(x):
        chosen = classes[row].tolist() if top_k else list(range(logits.shape[1]))
        explanations = explainer(image[None], target=[chosen])[0]
        rows = np.stack([exp.grid_map.numpy() for exp in explanations])
        assert np.abs(maps[row] - rows).max() <= 1e-4 * max(1, np.abs(rows).max())
        likeliest = explanations[0] if top_k else explanations[classes[row, 0]]
        assert np.abs(heatmaps[row, 0] - likeliest.map.numpy()).max() <= 1e-4


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_are_those_of_torch(exported, batch):
    check_parity(Net().eval(), exported["exact"], images(batch), "cam")
    check_parity(Net(norm=True).eval(), exported["linearised"], images(batch), "rcam", 2)


@pytest.mark.parametrize("norm", [False, True])
def test_the_preset_fast_is_in_the_graph(norm, tmp_path):
    """Earlier stages too: maps leave the graph on their finer grid."""
    model = Net(norm=norm).eval()
    path = to_onnx(model, tmp_path / "fast.onnx", top_k=2, pipeline="fast")
    for batch in (1, 3):
        check_parity(model, path, images(batch), "fast", 2)
    got, want = OnnxExplainer(path)(PHOTO), camtools.explain(model, PHOTO, pipeline="fast")
    assert got.raw_map.shape == (16, 16)
    assert np.abs(got.map - want.map.numpy()).max() < 1e-4 and np.abs(got.boxes - want.boxes.numpy()).max() <= 1


def test_all_classes_beside_fast(tmp_path):
    model = Net().eval()
    check_parity(model, to_onnx(model, tmp_path / "fast.onnx", pipeline="fast"), images(2), "fast")


def test_as_many_likeliest_as_classes(tmp_path):
    model = Net().eval()
    check_parity(model, to_onnx(model, tmp_path / "four.onnx", top_k=4), images(3), "cam", 4)


@pytest.mark.parametrize("norm", [False, True])
def test_any_size(norm, tmp_path):
    model = Net(norm=norm).eval()
    path = to_onnx(model, tmp_path / "any.onnx", top_k=2, dynamic_size=True, crop="full")
    session = onnxruntime.InferenceSession(str(path))
    for sides in ((64, 64), (96, 128), (200, 72)):
        x = torch.randn(2, 3, *sides)
        logits, classes, maps, heatmaps = session.run(None, {"images": x.numpy()})
        found = camtools.wrap(model).activations(x)
        assert np.abs(logits - found.logits.detach().numpy()).max() <= 1e-4 and heatmaps.shape == (2, 2, *sides)
        want = found.maps(torch.from_numpy(classes)).detach().numpy()
        assert np.abs(maps - want).max() <= 1e-4 * max(1, np.abs(want).max())
    explainer = OnnxExplainer(path)
    photos = [PHOTO, PHOTO[:, :200]]
    for got, photo in zip(explainer(photos), photos, strict=True):  # of two sizes
        want = camtools.explain(model, photo, pipeline="cam", crop="full")
        assert got.raw_map.shape == want.raw_map.shape and np.abs(got.map - want.map.numpy()).max() < 1e-4
    assert explainer(np.zeros((3, 80, 48), np.float32)).map.shape == (80, 48)
    with pytest.raises(InputError, match=r"a ready array has shape \(1, 80, 48\): expected \(3, 64, 64\)"):
        explainer(np.zeros((1, 80, 48), np.float32))


def test_any_size_is_tried(tmp_path):
    class Fixed(Net):
        def forward(self, x):
            return self.fc((self.body(x) * torch.ones(8, 8)).mean((2, 3)))

    class Chosen(Net):
        def forward(self, x):
            return super().forward(x) * (2 if x.shape[2] > 100 else 1)

    for model in (Fixed(), Chosen()):
        with pytest.raises(
            ModelError, match=r"does not take images of 128 x 64 \(.*but only of 64 x 64. Leave dynamic"
        ):
            to_onnx(model.eval(), tmp_path / "m.onnx", dynamic_size=True)
    with pytest.raises(PipelineError, match="works on stages that depend on the size: leave dynamic_size out"):
        to_onnx(Net().eval(), tmp_path / "m.onnx", dynamic_size=True, pipeline="fast")
    assert not list(tmp_path.iterdir())


OPENVINO = """
import sys
import numpy as np, onnxruntime, openvino
for path in sys.argv[2:]:
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 3):
        x = np.load(sys.argv[1])[:batch]
        found, wanted = compiled({"images": x}), session.run(None, {"images": x})
        for key, want in zip(("logits", "classes", "maps", "heatmaps"), wanted, strict=True):
            print(np.abs(found[key] - want).max() / max(1, np.abs(want).max()))
"""


def test_openvino_gives_the_same(exported, tmp_path, run_python):
    """In a process of its own: one that has loaded OpenVINO can crash when it starts another much later."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino: pip install openvino")
    np.save(tmp_path / "x.npy", images(3).numpy())
    done = run_python("-c", OPENVINO, tmp_path / "x.npy", exported["exact"], exported["linearised"])
    errors = [float(line) for line in done.stdout.splitlines()]
    assert len(errors) == 16 and max(errors) <= 1e-4, done.stderr


@pytest.mark.parametrize("image", [PHOTO, PHOTO[:, :200], PHOTO[..., 0], np.dstack([PHOTO, PHOTO[..., :1]])])
def test_the_runtime_gives_what_explain_gives(exported, image):
    for name, norm, pipeline in (("exact", False, "cam"), ("linearised", True, "rcam")):
        got = OnnxExplainer(exported[name])(Image.fromarray(image))
        want = camtools.explain(Net(norm=norm).eval(), Image.fromarray(image), pipeline=pipeline)
        assert (got.label, got.name, got.size) == (want.label, want.name, want.size)
        assert got.score == pytest.approx(want.score, abs=1e-5)
        assert np.abs(got.map - want.map.numpy()).max() < 1e-4
        assert got.threshold == pytest.approx(want.threshold, abs=1e-4)
        assert (got.mask != want.mask.numpy()).mean() < 1e-3
        assert np.abs(got.boxes - want.boxes.numpy()).max() <= 1
        assert got.box_scores == pytest.approx(want.box_scores.numpy(), abs=1e-4)
        assert {"label", "box", "boxes", "score", "threshold"} <= set(got.to_dict()) and got.name in repr(got)
        json.dumps(got.to_dict())


@pytest.mark.parametrize("crop", ["model", "pad"])
def test_crops_and_padding(exported, crop):
    explainer, net = OnnxExplainer(exported["exact"]), Net().eval()
    explainer.metadata["preprocess"] = json.loads(json.dumps(asdict(with_crop(net.preprocess, crop))))
    got, want = explainer(PHOTO), camtools.explain(net, PHOTO, pipeline="cam", crop=crop)
    assert np.abs(got.map - want.map.numpy()).max() < 1e-4 and got.box.tolist() == want.box.tolist()


def test_targets_and_several_images(exported, tmp_path):
    explainer = OnnxExplainer(exported["exact"])
    Image.fromarray(PHOTO).save(tmp_path / "cat.png")
    one, other = explainer([tmp_path / "cat.png", PHOTO], target="dog")
    assert (one.label, one.name, one.source) == (3, "dog", str(tmp_path / "cat.png"))
    assert np.array_equal(one.map, other.map) and other.image.size == (451, 300)
    assert [exp.label for exp in explainer(PHOTO, target=[2, "ant"])] == [2, 0]
    ranked = explainer(PHOTO, top_k=4)
    assert sum(exp.score for exp in ranked) == pytest.approx(1, abs=1e-5)
    assert [exp.score for exp in ranked] == sorted((exp.score for exp in ranked), reverse=True)
    ready = explainer(images(2).numpy())
    want = camtools.explain(Net().eval(), images(2), pipeline="cam")
    assert [exp.box.tolist() for exp in ready] == [exp.box.tolist() for exp in want] and ready[0].image is None


def test_one_logit_is_two_classes_and_the_model_is_left_as_it_was(tmp_path):
    model = Net(1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = to_onnx(model, tmp_path / "one.onnx", class_names=["no", "yes"])
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    no, yes = OnnxExplainer(path)(PHOTO, target=[0, 1])
    want = camtools.explain(model.eval(), PHOTO, target=1, pipeline="cam", class_names=["no", "yes"])
    assert np.array_equal(no.raw_map, -yes.raw_map) and (no.name, yes.name) == ("no", "yes")
    assert yes.score == pytest.approx(want.score, abs=1e-5) and no.score + yes.score == pytest.approx(1)


def test_metadata(exported):
    told = OnnxExplainer(exported["exact"]).metadata
    assert told["class_names"] == NAMES and told["layer"] == "body" and told["exact"]
    assert told["preprocess"]["input_size"] == [SIDE, SIDE] and told["input_size"] == [3, SIDE, SIDE]
    assert told["threshold"] == {"low": None, "high": None, "theta": 0.2} and told["activation"] == "softmax"


def test_the_runtime_imports_no_torch(exported, run_python, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "cat.png")
    heavy = ("torch", "torchvision", "scipy", "skimage", "matplotlib", "timm", "onnx", "onnxscript")
    code = f"""
import sys
from camtools.runtime import OnnxExplainer
exp = OnnxExplainer({str(exported["exact"])!r})({str(tmp_path / "cat.png")!r})
print(exp.name, exp.box.tolist(), [name for name in {heavy} if name in sys.modules])
"""
    want = camtools.explain(Net().eval(), PHOTO, pipeline="cam")
    assert run_python("-c", code).stdout.strip() == f"{want.name} {want.box.tolist()} []"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pipeline": "best"}, PipelineError, r"Gradient\(.* works on gradients of earlier stages, which the graph"),
        ({"pipeline": "best+enlarge"}, PipelineError, r"Enlarge\(.* works on an enlarged input"),
        ({"pipeline": "rcam+crf"}, PipelineError, r"CRF\(.* works on the image's pixels"),
        (
            {"pipeline": "adaptive"},
            PipelineError,
            r"AdaptiveThreshold\(.* does not know: .*calibrated\(pipeline, 0.3\)",
        ),
        ({"top_k": 0}, InputError, "top_k=0: expected a whole number"),
        ({"top_k": 5}, InputError, "top_k=5: expected a whole number of at least 1 and at most 4"),
        ({"class_names": ["a"]}, TargetError, "1 class names were given for 4 classes"),
    ],
)
def test_refusals(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        to_onnx(Net().eval(), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_too_many_backward_passes(tmp_path):
    with pytest.raises(ModelError, match="graph with the maps of 40 classes would hold as many backward passes"):
        to_onnx(Net(40, norm=True).eval(), tmp_path / "m.onnx")


def test_what_the_runtime_refuses(exported, tmp_path):
    exact, linearised = OnnxExplainer(exported["exact"]), OnnxExplainer(exported["linearised"])
    least = int(linearised(PHOTO, top_k=2)[0].logits.argmin())
    with pytest.raises(TargetError, match=f"2 likeliest classes, .* here, and {least} is none of them"):
        linearised(PHOTO, target=least)
    for target, message in (
        ("elk", "no class named 'elk'"),
        (4, "expected a class from 0 to 3"),
        (True, "target=True"),
    ):
        with pytest.raises(TargetError, match=message):
            exact(PHOTO, target=target)
    for image, message in (
        ("gone.png", "'gone.png' cannot be read"),
        (np.zeros((3, 8, 8), np.float32), r"shape \(3, 8, 8\): expected \(3, 64, 64\)"),
        (5, "got int: expected a path"),
        ([], "got no images"),
    ):
        with pytest.raises(InputError, match=message):
            exact(image)
    with pytest.raises(TargetError, match="both target=1 and top_k=2"):
        exact(PHOTO, target=1, top_k=2)
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(ModelError, match=r"bad\.onnx cannot be opened"):
        OnnxExplainer(tmp_path / "bad.onnx")


def test_components_without_scipy():
    one, other = np.array([0, 1, 5, 3]), np.array([1, 2, 6, 3])
    assert connected(one, other, 8).tolist() == [0, 0, 0, 1, 2, 3, 3, 4]
    assert connected(one[:0], other[:0], 2).tolist() == [0, 1]


@pytest.mark.parametrize("step", [FixedThreshold(0.5), PaS(90, 0.6), RangeThreshold(30, 0.25)])
def test_every_threshold_that_can_be_in_a_file(exported, step):
    explainer = OnnxExplainer(exported["exact"])
    pipeline = camtools.Pipeline([CAM(), MinMax(), step])
    explainer.metadata["threshold"] = threshold_rule(pipeline)
    want = camtools.explain(Net().eval(), PHOTO, pipeline=pipeline)
    assert explainer(PHOTO).threshold == pytest.approx(want.threshold, abs=1e-4)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text("from camtools.datasets.scenes import scene_classifier\n\nnet = scene_classifier\n")
    done = CliRunner().invoke(app, ["export-model", "--model", "nets.py:net", "--out", "m.onnx", "--top-k", "2"])
    assert done.exit_code == 0 and "m.onnx written" in done.stderr, done.output
    explainer = OnnxExplainer("m.onnx")
    assert explainer(PHOTO).name in explainer.class_names


FAMILIES = [
    ("timm/test_resnet", None, "cam"),
    ("timm/test_efficientnet", 3, "rcam"),
    ("timm/test_convnext", 2, "rcam"),
    ("timm/test_vit", 2, "cam"),
    ("torchvision/squeezenet1_1", 3, "cam"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "top_k", "pipeline"), FAMILIES)
def test_families(name, top_k, pipeline, tmp_path):
    torch.manual_seed(0)
    model = camtools.load_model(name, "random").model
    path = to_onnx(model, tmp_path / "m.onnx", top_k=top_k, pipeline=pipeline)
    side = OnnxExplainer(path).metadata["input_size"]
    for batch in (1, 3, 4):
        x = torch.randn(batch, *side)
        check_parity(model, path, x, pipeline, top_k) if top_k else check_some(model, path, x)


def check_some(model, path, x):
    """Like `check_parity`, of a few of 1,000 classes."""
    logits, _, maps, _ = onnxruntime.InferenceSession(str(path)).run(None, {"images": x.numpy()})
    found = camtools.wrap(model).activations(x)
    assert np.abs(logits - found.logits.detach().numpy()).max() <= 1e-4
    want = found.maps([3, 500, 999] if len(x) == 3 else 7).detach().numpy()
    chosen = maps[np.arange(len(x)), [3, 500, 999]][:, None] if len(x) == 3 else maps[:, 7:8]
    assert np.abs(chosen - want).max() <= 1e-4


@pytest.mark.slow
def test_real_weights(shared, tmp_path):
    sys.path.insert(0, str(shared / "weights"))
    try:
        from load import classifier
    finally:
        sys.path.pop(0)
    model, *_ = classifier("mobilenet_v2")
    got = OnnxExplainer(to_onnx(model, tmp_path / "m.onnx", top_k=3))(PHOTO)
    want = camtools.explain(model, PHOTO, pipeline="cam")
    assert got.label == want.label and np.abs(got.logits - want.logits.numpy()).max() <= 1e-4 * want.logits.abs().max()
    assert np.abs(got.map - want.map.numpy()).max() <= 1e-3 and np.abs(got.boxes - want.boxes.numpy()).max() <= 1
