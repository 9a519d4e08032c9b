"""Targets and class names of every kind: classes that exist, or one error that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_nets import COLOURS, Colours
from fuzzing import ANYTHING, NUMBERS, arrays, damaged, examples, refused, result_or_refusal, tensors, unchanged
from hypothesis import given
from hypothesis import strategies as st

import camtools
from camtools import Explainer, Preprocess, Segmenter
from camtools.classes.names import load_names, resolve_target
from camtools.classes.targets import is_list, target_indices

MODEL = Colours().eval()
PLAIN = Preprocess.imagenet(32, squash=True)
EXPLAINER = Explainer(MODEL, "cam", transform=PLAIN, class_names=COLOURS)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
NAMES = st.one_of(
    st.sampled_from(["red", " Green", "BLUE", "0", "-1", "3", "+2", "9" * 30, "9" * 5000, "n01531178", ""]),
    st.text(max_size=6),
)
TARGETS = st.recursive(
    st.one_of(NUMBERS, NAMES, st.none(), tensors(), arrays()),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner) | st.tuples(inner, inner, inner),
    max_leaves=6,
)
TOO_MANY = (range(10**9), range(0, -5, -1), (), "redgreen", b"red", {"red"}, {0: 1}, iter([0]))


@examples(2)
@given(
    st.one_of(TARGETS, st.sampled_from(TOO_MANY), ANYTHING),
    st.sampled_from([None, None, None, 1, 2, 4, 0, True, 1.0]),
    st.integers(1, 3),
)
def test_explain(target: Any, top_k: Any, count: int) -> None:
    images = IMAGES[0] if count == 1 else list(IMAGES[:count])
    with unchanged(MODEL):
        found = result_or_refusal(EXPLAINER, images, target=target, top_k=top_k)
    if refused(found):
        return
    each = [found] if count == 1 else found
    assert len(each) == count
    asked = [target] * count if count == 1 or not is_list(target) else list(target)
    for explanations, wanted in zip(each, asked, strict=True):
        several = isinstance(explanations, list)
        labels = [one.label for one in (explanations if several else [explanations])]
        if isinstance(wanted, str | int | np.integer):
            assert labels == [resolve_target(wanted, COLOURS)]
        elif wanted is None:
            ranked = (explanations[0] if several else explanations).logits.argsort(descending=True)
            assert labels == ranked[: len(labels)].tolist()


@examples()
@given(st.one_of(TARGETS, st.sampled_from(TOO_MANY[1:])))
def test_indices(targets: Any) -> None:
    found = result_or_refusal(target_indices, targets, 3, 5)
    if not refused(found):
        assert found.dtype == torch.int64 and found.shape[0] == 3 and 0 <= found.min() <= found.max() < 5
        if isinstance(targets, int):
            assert found.flatten().tolist() == [targets] * 3


@examples()
@given(
    st.one_of(TARGETS, ANYTHING), st.one_of(st.none(), st.lists(NAMES, max_size=5)), st.sampled_from([None, 3, 1000])
)
def test_names(target: Any, names: Any, count: int | None) -> None:
    found = result_or_refusal(resolve_target, target, names, count)
    if not refused(found):
        assert type(found) is int and found >= 0
        assert found < (count or (len(names) if names is not None else 10**400))
        if names and isinstance(target, str) and names.count(target.strip()) == 1:
            assert names[found] == target.strip()


@examples()
@given(st.one_of(ANYTHING, st.lists(NAMES, max_size=4)))
def test_class_names(names: Any) -> None:
    found = result_or_refusal(Explainer, MODEL, transform=PLAIN, class_names=names)
    if not refused(found) and found.class_names is not None:
        one = result_or_refusal(found, IMAGES[0])
        assert refused(one) or (one.name == list(names)[one.label] and len(names) == 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@examples()
@given(st.data(), st.sampled_from(["names.txt", "names.json"]))
def test_files_of_names(folder: Path, data: st.DataObject, name: str) -> None:
    names = data.draw(st.lists(st.text(min_size=1, max_size=5), max_size=4))
    texts = [
        json.dumps(names),
        json.dumps(dict(enumerate(names))),
        "\n".join(names),
        "[" * 5000,
        "NaN",
        "1e999",
        '{"0": 1}',
    ]
    content = data.draw(st.sampled_from(texts)).encode("utf-8", "surrogatepass")
    content = data.draw(st.one_of(st.just(content), damaged(content)))
    (folder / name).write_bytes(content)
    found = result_or_refusal(load_names, folder / name)
    assert refused(found) or (found and all(isinstance(one, str) for one in found))
    if name.endswith("json") and content == json.dumps(names).encode() and names:
        assert found == tuple(names)


@examples()
@given(st.one_of(TARGETS, ANYTHING), NUMBERS, NUMBERS)
def test_segment(classes: Any, background: Any, min_score: Any) -> None:
    with unchanged(MODEL):
        segmenter = result_or_refusal(
            Segmenter, MODEL, transform=PLAIN, class_names=COLOURS, background=background, min_score=min_score
        )
        if refused(segmenter):
            return
        found = result_or_refusal(segmenter, IMAGES[0], classes=classes)
    if not refused(found):
        assert found.mask.shape == (40, 50)
        assert set(found.mask.unique().tolist()) <= {0, 1, 2, 3}


OPTIONS = ("pipeline", "device", "batch_size", "transform", "activation", "trace", "boxes_from")


@examples()
@given(st.dictionaries(st.sampled_from(OPTIONS), ANYTHING, min_size=1, max_size=2))
def test_options(options: dict[str, Any]) -> None:
    with unchanged(MODEL):
        found = result_or_refusal(camtools.explain, MODEL, IMAGES[0], **{"transform": PLAIN, **options})
    assert refused(found) or found.map.shape == (40, 50)
