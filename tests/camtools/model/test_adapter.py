"""How adapters are found: entry points of whatever is installed, by priority."""

import sys
import textwrap

import pytest
import torch
from torch import nn

from camtools import ModelError, wrap
from camtools.model import Adapter, FeatureSpec
from camtools.model.adapter import find_adapter, installed_adapters

ADAPTER = """
from camtools.model import FeatureSpec


class Mine:
    name = "mine"
    priority = {priority}

    def matches(self, model):
        return type(model).__name__ == "TinyNet"

    def locate(self, model, example):
        return FeatureSpec("conv", head="as {priority} says")

    def data_config(self, model):
        return {{"input_size": (3, 24, 40)}}

    def class_names(self, model):
        return ["a", "b", "c"]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a throw-away distribution with an adapter: `install(source, name=..., target=...)`."""

    def make(source, name="camtools-mine", target="mine_adapter:Mine"):
        module = target.partition(":")[0]
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[camtools.adapters]\nmine = {target}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        installed_adapters.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    installed_adapters.cache_clear()
    for name in ("mine_adapter", "mine_second"):
        sys.modules.pop(name, None)


def test_ours_are_found_by_priority():
    adapters = installed_adapters()
    assert [(a.name, a.priority) for a in adapters if a.name in ("described", "timm", "torchvision", "generic")] == [
        ("described", 100),
        ("timm", 50),
        ("torchvision", 50),
        ("generic", 0),
    ]
    assert all(isinstance(a, Adapter) for a in adapters)


def test_a_third_partys_adapter_is_found_and_beats_a_lower_priority(install, tiny):
    install(ADAPTER.format(priority=10))
    assert [a.name for a in installed_adapters()] == [
        "described",
        "timm",
        "torchvision",
        "transformers",
        "ultralytics",
        "mine",
        "generic",
    ]
    assert find_adapter(tiny).name == "mine"
    assert find_adapter(nn.Linear(1, 1)).name == "generic"
    cam_model = wrap(tiny)
    assert (cam_model.decomposition.layer, cam_model.decomposition.adapter) == ("conv", "mine")
    assert cam_model.decomposition.head == "as 10 says"
    assert cam_model.decomposition.grid == (6, 10)  # from its data config
    assert cam_model.adapter.class_names(tiny) == ["a", "b", "c"]


def test_it_does_not_beat_a_higher_priority(install, tiny):
    install(ADAPTER.format(priority=-5))
    assert find_adapter(tiny).name == "generic"


def test_ties_go_by_name(install):
    install(ADAPTER.format(priority=50))
    assert [a.name for a in installed_adapters()] == [
        "described",
        "mine",
        "timm",
        "torchvision",
        "transformers",
        "ultralytics",
        "generic",
    ]


def test_an_adapter_given_by_hand_needs_no_installation(tiny):
    class Mine:
        name, priority = "by hand", 0

        def matches(self, model):
            raise AssertionError("not asked")

        def locate(self, model, example):
            assert example.shape == (1, 3, 16, 16) and not model.training
            return FeatureSpec("relu", classifier="fc")

        def data_config(self, model):
            return None

        def class_names(self, model):
            return None

    found = wrap(tiny.train(), adapter=Mine()).activations(torch.randn(2, 3, 16, 16))
    assert found.decomposition.exact and found.decomposition.adapter == "by hand"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import not_there_at_all", "No module named 'not_there_at_all'"),
        ("x = 1", "'mine_adapter' has no attribute 'Mine'"),
        ("class Mine:\n    def __init__(self):\n        raise ValueError('needs a licence')", "needs a licence"),
    ],
)
def test_an_adapter_that_cannot_be_loaded(install, tiny, source, words):
    install(source)
    with pytest.raises(ModelError) as caught:
        wrap(tiny)
    message = str(caught.value)
    assert message.startswith("adapter 'mine' (mine_adapter:Mine) cannot be loaded: ") and words in message
    assert message.endswith("Fix or uninstall camtools-mine")


def test_an_adapter_that_is_none(install, tiny):
    install("class Mine:\n    name = 'mine'\n    def matches(self, model):\n        return True")
    with pytest.raises(ModelError) as caught:
        wrap(tiny)
    message = str(caught.value)
    assert "adapter 'mine' (mine_adapter:Mine) lacks priority, locate, data_config, class_names" in message
    assert "see camtools.model.Adapter" in message and message.endswith("Fix or uninstall camtools-mine")


def test_no_adapters_at_all(monkeypatch, tiny):
    monkeypatch.setattr("camtools.model.adapter.plugins", lambda group: [])
    installed_adapters.cache_clear()
    try:
        with pytest.raises(ModelError, match=r"no adapter knows TinyNet; installed: none. Reinstall camtools"):
            wrap(tiny)
    finally:
        installed_adapters.cache_clear()


def test_none_that_knows_the_model(install, monkeypatch):
    install(ADAPTER.format(priority=10))
    mine = [a for a in installed_adapters() if a.name == "mine"]
    monkeypatch.setattr("camtools.model.adapter.installed_adapters", lambda: tuple(mine))
    with pytest.raises(ModelError, match=r"no adapter knows Linear; installed: mine"):
        wrap(nn.Linear(1, 1))


def test_adapters_are_looked_for_once(monkeypatch):
    installed_adapters()
    monkeypatch.setattr("camtools.model.adapter.plugins", None)
    assert installed_adapters() is installed_adapters()
