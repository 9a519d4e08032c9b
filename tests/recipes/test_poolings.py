"""`gap`, `tap` and `wgap`: what they build, how their maps are read, and that a saved model comes back whole."""

import pytest
import torch

import camtools
from camtools.datasets.scenes import SceneNet, Scenes, scene_classifier
from camtools.heads import GAP, TAP, WGAP
from camtools.training import recipe_class


@pytest.fixture
def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SceneNet(widths=(4, 4, 8, 8)).eval()


@pytest.mark.parametrize(
    ("name", "head", "pipeline", "options", "attributes"),
    [
        ("gap", GAP, "cam", {}, {}),
        ("tap", TAP, "rcam", {"theta": 0.3}, {"theta": 0.3, "relative": True}),
        ("wgap", WGAP, "adaptive", {"divide": True}, {"divide": True}),
    ],
)
def test_heads_and_pipelines(small, name, head, pipeline, options, attributes):
    recipe = recipe_class(name)(recipe_class(name).Config(**options))
    assert recipe.pipeline == pipeline
    built = recipe.build(small, None)
    assert isinstance(built.head, head) and {key: getattr(built.head, key) for key in attributes} == attributes
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = small.classifier(head(**options)(small.blocks(small.stem(x))))
    torch.testing.assert_close(built(x), expected)
    assert recipe.build(small, 5)(x).shape == (2, 5)
    fast = {id(parameter) for parameter in recipe.fast_parameters(built)}
    assert fast == {id(built.classifier.weight), id(built.classifier.bias)}


@pytest.mark.parametrize("name", ["gap", "tap", "wgap"])
def test_a_run_from_its_start_to_its_file(tmp_path, name):
    data, val = Scenes("train", 12), Scenes("val", 6)
    result = camtools.finetune(
        name, "scenes", data, val, out=tmp_path, epochs=1, batch_size=6, examples=2, progress=False, device="cpu"
    )
    columns = {key.partition("/")[0] for key in result.history[-1] if "/" in key}
    assert columns == ({"cam"} if name == "gap" else {"cam", name})
    loaded = camtools.load_model("scenes", tmp_path / "best.safetensors")
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), result.model(x))
    assert loaded.class_names == result.class_names == scene_classifier().class_names
    alone = camtools.heads.load_headed(tmp_path / "best.safetensors")
    with torch.no_grad():
        assert torch.equal(alone(x), result.model(x))


def test_resumed_after_a_checkpoint_within_an_epoch(small, tmp_path):
    class Stop(Exception):
        pass

    options = {"epochs": 2, "set_size": 2, "classes_per_batch": 3, "input_size": 32, "lr": 0.05, "save_every": 1}
    kind, data = recipe_class("minmaxcam"), Scenes("train", 24, size=32)
    recipe = kind(kind.Config(**options))
    step, count = recipe.step, []

    def stops(trainer, batch):
        count.append(1)
        if len(count) == 3:
            raise Stop
        return step(trainer, batch)

    recipe.step = stops
    with pytest.raises(Stop):
        camtools.finetune(recipe, small, data, out=tmp_path, progress=False, device="cpu")
    resumed = camtools.finetune(
        "minmaxcam", small, data, out=tmp_path, resume=True, progress=False, device="cpu", **options
    )
    whole = camtools.finetune("minmaxcam", small, data, progress=False, device="cpu", **options)
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in resumed.model.state_dict().items())
