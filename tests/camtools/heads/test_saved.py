import functools
import json
import shutil

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models as tv

import camtools
from camtools import ModelError, Preprocess, WeightsError, load_model
from camtools.heads import ADL, TAP, WGAP, ExCAM, Wildcat, load_headed, replace_head

X = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (TAP(0.3, relative=False), {}),
        (WGAP(), {"classes": 5, "class_names": list("abcde")}),
        (functools.partial(ExCAM, M=2, delta=0.4, learnable=True, k_max=3), {"classes": 4, "output_stride": 8}),
        (
            functools.partial(Wildcat, M=2, adl=ADL(0.5, per_map=True)),
            {"preprocess": Preprocess.imagenet(96, squash=True)},
        ),
    ],
    ids=["tap", "wgap", "excam", "wildcat"],
)
def test_one_call_each_way_gives_the_same_bits(head, options, tmp_path):
    headed = replace_head(timm.create_model("test_resnet", drop_rate=0.1), head, **options).eval()
    headed.save(tmp_path / "new" / "m.safetensors")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.safetensors"]
    again = load_headed(tmp_path / "new" / "m.safetensors")
    assert torch.equal(again(X), headed(X)) and not again.training
    assert repr(again.head) == repr(headed.head) and repr(again.drop) == repr(headed.drop)
    assert again.preprocess == headed.preprocess and again.class_names == headed.class_names
    assert again.origin == headed.origin
    loaded = load_model(str(tmp_path / "new" / "m.safetensors"))
    assert torch.equal(loaded.model(X), headed(X)) and loaded.preprocess == headed.preprocess
    assert loaded.class_names == headed.class_names


def test_by_name_and_weights(tmp_path):
    file = tmp_path / "m.safetensors"
    model = load_model("torchvision/mobilenet_v2", "random")
    headed = replace_head(model, TAP(), classes=4).eval()
    assert headed.origin.source == "torchvision/mobilenet_v2" and headed.preprocess == model.preprocess
    headed.save(file)
    loaded = load_model("torchvision/mobilenet_v2", file)
    assert torch.equal(loaded.model(X), headed(X)) and loaded.spec == "torchvision/mobilenet_v2"
    with pytest.raises(WeightsError, match=r"is for 4 classes, but num_classes is 5"):
        load_model(str(file), num_classes=5)
    with pytest.raises(WeightsError, match=r"does not fit"):
        load_model("torchvision/resnet18", file)


def test_reduced_precision(tmp_path):
    headed = replace_head(timm.create_model("test_resnet"), TAP()).eval().bfloat16()
    headed.save(tmp_path / "m.safetensors")
    again = load_headed(tmp_path / "m.safetensors")
    assert torch.equal(again(X.bfloat16()), headed(X.bfloat16()))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


class Median(nn.Module):
    def forward(self, f):
        return f.flatten(2).median(2).values


def test_what_the_file_cannot_know_is_asked_for(tmp_path):
    file, own = tmp_path / "m.safetensors", Own()
    headed = replace_head(own, Median(), preprocess=lambda image: torch.zeros(3, 96, 96)).eval()
    headed.save(file)
    with pytest.raises(ModelError, match=r"does not say which model .*model=\.\.\."):
        load_headed(file, head=Median(), preprocess=Preprocess())
    with pytest.raises(ModelError, match=r"head of its own class, .*Median.*head=\.\.\."):
        load_headed(file, Own(), preprocess=Preprocess())
    with pytest.raises(ModelError, match=r"a transform of somebody's own.*preprocess=\.\.\."):
        load_headed(file, Own(), head=Median())
    again = load_headed(file, Own(), head=Median(), preprocess=Preprocess())
    assert torch.equal(again(X), headed(X))


def test_a_files_function_is_not_run(tmp_path):
    replace_head(Own(), TAP(), source="somewhere:build").save(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"a function of somebody's own, which a weights file is not allowed to run"):
        load_headed(tmp_path / "m.safetensors")


@pytest.fixture(scope="module")
def headed_file(tmp_path_factory):
    """A file of TAP on a small ResNet, to be copied."""
    file = tmp_path_factory.mktemp("headed") / "m.safetensors"
    replace_head(timm.create_model("test_resnet"), TAP(), source="timm/test_resnet").save(file)
    return file


def rewritten(file, **changes):
    """The file with another configuration in its header."""
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["camtools.headed"])
    save_file(load_file(file), file, {"camtools.headed": json.dumps(config | changes)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"source_args": {"checkpoint_path": "evil.pth"}},
            "built with checkpoint_path, which a weights file may",
        ),
        ({"source_args": {"pretrained": True}}, "built with pretrained"),
        ({"source_args": {"pretrained_cfg": {"url": "http://host/x"}}}, "built with pretrained_cfg"),
        ({"source_args": {"act_layer": "a/b:c"}}, "built with act_layer.*numbers, flags or single words"),
        ({"source_args": {"num_classes": {"a": 1}}}, "built with num_classes"),
        ({"source": "timm/hf-hub:owner/name"}, "names 'timm/hf-hub:owner/name'.*not allowed to run or open"),
        ({"source": "timm/local-dir:/tmp"}, "not allowed to run or open"),
        ({"source": "https://host/file.py:build"}, "not allowed to run or open"),
        ({"source": "os:system"}, "a function of somebody's own"),
        ({"source": "/tmp/x.py:build"}, "not allowed to run or open"),
        ({"source": ["timm/test_resnet"]}, "not allowed to run or open"),
    ],
)
def test_a_file_opens_runs_and_fetches_nothing(tmp_path, monkeypatch, changes, words):
    file = tmp_path / "m.safetensors"
    replace_head(timm.create_model("test_resnet"), TAP(), source="timm/test_resnet").save(file)
    rewritten(file, **changes)

    def never(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr(timm, "create_model", never)
    with pytest.raises(ModelError, match=words):
        load_headed(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"features": None},
        {"features": {"layer": 3}},
        {"classifier": [1 << 40, 1 << 40, True]},
        {"classifier": "linear"},
        {"head": {"class": "Nothing", "args": {}}},
        {"head": {"class": "TAP", "args": {"wrong": 1}}},
        {"dtype": "float3"},
        {"probe": "none"},
        {"probe": []},
        {"preprocess": {"mean": "x"}},
        {"class_names": 7},
        {"output_stride": "wide"},
        {"source_args": 3},
    ],
)
def test_a_damaged_configuration_is_one_clear_error(headed_file, tmp_path, changes):
    file = shutil.copy(headed_file, tmp_path)
    rewritten(file, **changes)
    with pytest.raises(camtools.CamtoolsError):
        load_headed(file)


def test_a_configuration_that_is_no_json(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", {"camtools.headed": "{"})
    with pytest.raises(WeightsError, match=r"the configuration in .* is damaged: expected JSON"):
        load_headed(tmp_path / "m.safetensors")


def test_a_model_built_otherwise_is_noticed(tmp_path):
    model = timm.create_model("test_resnet", act_layer="tanh")  # the same weights, other scores
    replace_head(model, TAP()).save(tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match=r"its scores are not those that were saved"):
        load_headed(tmp_path / "m.safetensors")
    headed = replace_head(model, TAP(), source_args={"act_layer": "tanh"}).eval()
    headed.save(tmp_path / "m.safetensors")
    assert torch.equal(load_headed(tmp_path / "m.safetensors")(X), headed(X))


def test_published_inceptions_transform_their_input(tmp_path):
    model = tv.googlenet(init_weights=False, transform_input=True)
    headed = replace_head(model, TAP(), source="torchvision/googlenet").eval()
    headed.save(tmp_path / "m.safetensors")
    assert torch.equal(load_headed(tmp_path / "m.safetensors")(X), headed(X))


def test_bad_files(tmp_path):
    with pytest.raises(WeightsError, match=r"There is no weights file"):
        load_headed(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match=r"holds weights without a head's configuration"):
        load_headed(tmp_path / "plain.safetensors")
    file = tmp_path / "m.safetensors"
    replace_head(timm.create_model("test_resnet"), TAP()).save(file)
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["camtools.headed"])
    save_file(load_file(file), file, {"camtools.headed": json.dumps(config | {"format": 99})})
    with pytest.raises(WeightsError, match=r"has format 99 of camtools' heads: expected 1"):
        load_headed(file)
    replace_head(timm.create_model("test_resnet"), TAP()).save(file)
    with pytest.raises(WeightsError, match=r"does not fit Own"):
        load_headed(file, Own())


def test_a_save_that_fails_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "m.safetensors"
    headed = replace_head(timm.create_model("test_resnet"), TAP())
    headed.save(file)
    before = file.read_bytes()

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelError, match=r"cannot be written: No space left on device. What was there before"):
        headed.save(file)
    with pytest.raises(ModelError, match=r"cannot be written"):
        headed.save(tmp_path / "deep" / "m.safetensors")
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_other_activations_cannot_be_written(tmp_path):
    spec = camtools.model.FeatureSpec("conv", classifier="fc", pool="avg", activation=torch.abs)

    class Absolute(Own):
        def forward(self, x):
            return self.fc(self.conv(x).abs().mean((2, 3)))

    headed = replace_head(camtools.wrap(Absolute(), spec=spec), TAP())
    with pytest.raises(ModelError, match=r"before the pooling cannot be written to a file"):
        headed.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
