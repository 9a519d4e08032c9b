"""Files of weights, heads and banks, damaged or made up: the right model, or one error that says what is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_nets import Colours
from fuzzing import damaged, examples, refused, result_or_refusal
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from torch import nn

from camtools import ContextBank, Preprocess, load_model
from camtools.datasets.scenes import scene_classifier
from camtools.evaluation import calibrated
from camtools.heads import TAP, BoxRegressor, ExCAM, Wildcat, load_headed, replace_head


class Files(dict[str, tuple[bytes, Callable[[Path], Any]]]):
    """Sound files by kind, each with what reads it."""

    def __repr__(self) -> str:
        return "files"


PREPROCESS = Preprocess.imagenet(32, squash=True)
NET = f"{Path(__file__).with_name('fuzz_nets.py')}:colours"


def written(save: Callable[[Path], object], folder: Path) -> bytes:
    """Return what is saved to a file."""
    path = folder / "written"
    save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return sound files by kind, each with what reads it."""
    folder, model, scenes = tmp_path_factory.mktemp("files"), Colours().eval(), scene_classifier()
    names = ("red", "green", "blue")
    heads: dict[str, nn.Module] = {"tap": TAP(theta=0.3), "excam": ExCAM(3, 3, 2), "wildcat": Wildcat(3, 3, 2)}
    headed = {k: replace_head(model, h, preprocess=PREPROCESS, class_names=names) for k, h in heads.items()}
    kinds = Files()
    for name, one in headed.items():
        kinds[name] = written(one.save, folder), lambda path: load_headed(path, Colours())
    of_scenes = replace_head(scenes, TAP(theta=0.3), source="scenes")
    kinds["scenes"] = written(of_scenes.save, folder), load_headed
    kinds["by name"] = kinds["scenes"][0], lambda path: load_model(str(path)).model
    box = BoxRegressor.of(model)
    box.preprocess = PREPROCESS
    kinds["box"] = written(box.save, folder), lambda path: BoxRegressor.load(path, Colours())
    bank = ContextBank(torch.rand(3, 3), torch.rand(3, 3), torch.ones(3, 2, dtype=torch.int64), "pool", "input")
    kinds["bank"] = written(bank.save, folder), ContextBank.load
    for name, state in {
        "pth": model.state_dict(),
        "nested": {"epoch": 3, "model": model.state_dict(), "args": {"lr": 0.1}},
    }.items():
        buffer = io.BytesIO()
        torch.save(state, buffer)
        kinds[name] = buffer.getvalue(), lambda path: load_model(NET, str(path)).model
    return kinds


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 40),
        st.sampled_from([2**16, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e300, float("nan"), float("inf")]),
        st.text(max_size=6),
        st.sampled_from(
            ["own", "scenes", "relu", "float16", "int64", "nchw", "nhwc", "input", "output", "first", "all"]
        ),
        st.sampled_from(["os:system", "../x", "torch", "conv", "fc", "pool", "body", "", "GAP", "TAP", "timm/nothing"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=4,
)
"""What JSON can hold."""


def places(document: Any) -> list[tuple[Any, Any]]:
    """Return every place in a JSON document that a value can have: the container, and its key or index."""
    if not isinstance(document, dict | list):
        return []
    keys: list[Any] = list(document) if isinstance(document, dict) else list(range(len(document)))
    return [(document, key) for key in keys] + [pair for key in keys for pair in places(document[key])]


def other(data: st.DataObject, document: Any) -> Any:
    """Return a JSON document with one to three values changed, taken out, or put in."""
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(document)
        if not found:
            return document
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        what = data.draw(st.sampled_from(["change", "change", "change", "remove", "add"]))
        if what == "change":
            container[key] = data.draw(JSON)
        elif what == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[data.draw(st.text(max_size=6))] = data.draw(JSON)
        else:
            container.append(data.draw(JSON))
    return document


def read(content: bytes, path: Path, reader: Callable[[Path], Any]) -> Any:
    """Read a file, and check what comes out of it: weights as they are in the file, and scores of the right shape."""
    path.write_bytes(content)
    found = result_or_refusal(reader, path)
    if refused(found):
        return found
    if isinstance(found, ContextBank):
        assert found.foreground.shape == found.background.shape and found.foreground.isfinite().all()
        assert repr(found).startswith("ContextBank(")
        assert len(found.known) == len(found.foreground)
        return found
    assert isinstance(found, nn.Module) and not any(module.training for module in found.modules())
    if content[8:9] == b"{":
        own = getattr(found, "network", found).state_dict()  # a box regressor's
        for name, value in load(content).items():
            assert torch.equal(own[name].to(value.dtype), value) or value.isnan().any(), name
    images = torch.rand(2, 3, 32, 32).to(next(found.parameters()).dtype)
    if images.dtype == torch.float32:
        assert len(found(images)) == 2
    return found


def with_header(content: bytes, header: Any) -> bytes:
    """Return a safetensors file with another header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :]


def header_of(content: bytes) -> dict[str, Any]:
    """Return a safetensors file's header."""
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


KINDS = ("tap", "excam", "wildcat", "scenes", "by name", "box", "bank", "pth", "nested")
SAFE = KINDS[:7]


@pytest.mark.parametrize("kind", KINDS)
def test_sound_files_are_read(files: Files, kind: str, tmp_path: Path) -> None:
    assert not refused(read(files[kind][0], tmp_path / "file", files[kind][1]))


@examples(4)
@given(st.data())
def test_damaged_files(files: Files, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content, reader = files[data.draw(st.sampled_from(KINDS))]
    read(data.draw(damaged(content)), tmp_path_factory.getbasetemp() / "damaged", reader)


@examples(4)
@given(st.data())
def test_other_configurations(files: Files, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The texts in a header, and what they say of a model or a bank, are others."""
    kind = data.draw(st.sampled_from(SAFE))
    content, reader = files[kind]
    header = header_of(content)
    texts = header["__metadata__"]
    if kind == "bank":
        key = data.draw(st.sampled_from(sorted(texts)))
        texts[key] = data.draw(st.one_of(st.text(max_size=8), JSON.map(str)))
    else:
        texts["camtools.headed"] = json.dumps(other(data, json.loads(texts["camtools.headed"])))
    read(with_header(content, header), tmp_path_factory.getbasetemp() / "configured", reader)


@examples(2)
@given(st.data())
def test_other_headers(files: Files, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Names, types, shapes and places of tensors are others."""
    content, reader = files[data.draw(st.sampled_from(SAFE))]
    read(with_header(content, other(data, header_of(content))), tmp_path_factory.getbasetemp() / "headed", reader)


SAVED = st.recursive(
    st.one_of(
        st.none(), st.integers(), st.floats(), st.text(max_size=4), st.just(torch.ones(3)), st.just(torch.ones(()))
    ),
    lambda inner: (
        st.dictionaries(
            st.one_of(
                st.sampled_from(["model", "state_dict", "module.fc.bias", "fc.bias", "conv.weight"]), st.integers()
            ),
            inner,
            max_size=3,
        )
        | st.lists(inner, max_size=2)
    ),
    max_leaves=5,
)


@examples(2)
@given(saved=SAVED)
def test_pickles_of_something_else(tmp_path_factory: pytest.TempPathFactory, saved: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "something.pth"
    torch.save(saved, path)
    found = result_or_refusal(load_model, NET, str(path))
    assert refused(found)


THRESHOLDS = {"calibration": {"source": "x"}, "thresholds": {"cam": {"MaxBoxAcc": 0.25, "PeakIoU": 0.5}}}


@examples(2)
@given(st.data())
def test_damaged_thresholds(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "thresholds"
    folder.mkdir(exist_ok=True)
    document = other(data, json.loads(json.dumps(THRESHOLDS)))
    text = json.dumps(document).encode("utf-8", "surrogatepass")
    (folder / "threshold.json").write_bytes(data.draw(st.one_of(st.just(text), damaged(text))))
    found = result_or_refusal(calibrated, "cam", folder)
    assert refused(found) or 0 <= found[-1].theta < 1
    (folder / "threshold.json").unlink()
