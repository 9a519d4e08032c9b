"""Every family has a map of the image: the small ones every day, all of them with `pytest -m slow`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import timm
import torchvision
from model_coverage import SMALLEST, check, subjects

# timm families whose smallest model is quick, of at most ten million parameters; the quicker torchvision classifiers.
QUICK = {
    "timm": {
        "byoanet",
        "byobnet",
        "convnext",
        "cpubone",
        "crossvit",
        "cspnet",
        "cspnext",
        "deit",
        "densenet",
        "dla",
        "dpn",
        "edgenext",
        "efficientformer_v2",
        "efficientnet",
        "efficientvim",
        "efficientvit_mit",
        "efficientvit_msra",
        "fasternet",
        "fastvit",
        "ghostnet",
        "hardcorenas",
        "hgnet",
        "inception_next",
        "lcnetv2",
        "levit",
        "mambaout",
        "maxxvit",
        "mlp_mixer",
        "mobilenetv3",
        "mobilevit",
        "nfnet",
        "pit",
        "pvt_v2",
        "regnet",
        "repghost",
        "repvit",
        "resnet",
        "rexnet",
        "shvit",
        "starnet",
        "swiftformer",
        "vision_transformer",
        "vision_transformer_hybrid",
        "vision_transformer_relpos",
        "vovnet",
    },
    "torchvision": {
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "regnet_x_400mf",
        "resnet18",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "swin_t",
        "vit_b_16",
    },
}


def _parameters() -> list[object]:
    return [
        pytest.param(*subject, id=subject[2], marks=[] if subject[1] in QUICK[subject[0]] else pytest.mark.slow)
        for subject in subjects(known=True)
        if subject[0] in QUICK  # those of transformers are in test_transformers.py
    ]


@pytest.mark.parametrize(("library", "family", "name"), _parameters())
def test_map_is_of_the_image(library: str, family: str, name: str) -> None:
    found = check(library, family, name)
    assert not found.error
    assert found.grid == found.expected
    assert found.finite
    assert found.varies
    assert found.corner


def test_page_lists_every_family_and_classifier(repo: Path) -> None:
    page = (repo / "docs" / "coverage.md").read_text(encoding="utf-8").partition("## transformers")[0]
    listed = Counter(re.findall(r"^\| \S+ \| (\w+) \| \d+ x \d+ \|", page, flags=re.MULTILINE))
    classifiers = torchvision.models.list_models(module=torchvision.models)
    assert listed == Counter([*SMALLEST.values(), *classifiers])


def test_quick_families_exist() -> None:
    assert QUICK["timm"] <= set(SMALLEST)
    assert QUICK["torchvision"] <= set(torchvision.models.list_models(module=torchvision.models))
    assert set(SMALLEST.values()) <= set(timm.list_models())
