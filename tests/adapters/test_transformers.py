"""The image classifiers of transformers: a map of the image that adds up, or a refusal in words."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import camtools
from camtools import ModelError, Preprocess, WeightsError, wrap
from camtools.images import as_transform, read_image
from camtools_adapters.transformers import HubSource

pytest.importorskip("transformers", reason="needs transformers: pip install 'camtools[hf]'")

from model_coverage import check
from transformers_models import CONFIGS, SIDE, architectures, build

QUICK = {
    "clip",
    "convnext",
    "dinov2",
    "imagegpt",
    "levit",
    "perceiver",
    "resnet",
    "siglip2",
    "swin",
    "timm_wrapper",
    "vit",
}
KINDS = [
    pytest.param(kind, name, id=name, marks=[] if kind in QUICK else pytest.mark.slow)
    for kind, name in architectures()
    if kind in CONFIGS
]
NO_MAP = {
    "imagegpt": "takes input_ids and no images",
    "perceiver": "reads the whole image into latents",
    "shieldgemma2": "takes input_ids and no images",
    "siglip2": "takes patches that its processor has cut out",
}


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_right_or_a_clear_refusal(kind, name):
    found = check("transformers", kind, name)
    if kind in NO_MAP:
        assert NO_MAP[kind] in found.error
    elif "natten" in found.error:
        pytest.skip(found.error)
    else:
        assert found.right, found
        assert found.decomposition.adapter == "transformers"


def test_page_lists_every_architecture(repo: Path) -> None:
    page = (repo / "docs" / "coverage.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \S+ \| (\w+ForImageClassification\w*) \|", page, flags=re.MULTILINE)
    assert set(listed) >= {name for kind, name in architectures() if kind in CONFIGS}


@pytest.mark.parametrize("kind", ["resnet", "clip", "swin"])
def test_exact_maps_add_up_to_the_models_own_logits(kind):
    model = build(kind, dict(architectures())[kind])
    x = torch.randn(2, 3, SIDE, SIDE)
    found = wrap(model).activations(x)
    bias = [m for m in model.modules() if isinstance(m, nn.Linear)][-1].bias
    torch.testing.assert_close(found.maps().mean((2, 3)) + bias, model(x).logits, atol=1e-4, rtol=1e-3)


def tiny(**changes):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**size, image_size=32, patch_size=8, num_labels=3, **changes)
    return ViTForImageClassification(config).eval()


NAMES = {0: "cat", 1: "dog", 2: "eel"}


def test_labels_and_processor_of_a_saved_model(tmp_path):
    from transformers import ViTImageProcessor

    tiny(id2label=NAMES, label2id={v: k for k, v in NAMES.items()}).save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]).save_pretrained(tmp_path)
    loaded = camtools.load_model(f"hf:{tmp_path}")
    assert loaded.class_names == ("cat", "dog", "eel")
    assert loaded.preprocess == Preprocess((32, 32), (32, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exp = camtools.explain(loaded.model, photo, target="dog")
    assert exp.label == 1 and exp.transform == loaded.preprocess
    again = camtools.load_model(f"hf:{tmp_path}", "random", num_classes=5)
    assert again.model.config.num_labels == 5


def test_without_a_processor_its_familys_is_a_guess():
    explainer = camtools.Explainer(tiny())
    assert explainer.transform.mean == (0.5,) * 3 and explainer.transform.input_size == (32, 32)
    assert explainer.class_names is None  # LABEL_0 is a placeholder
    with pytest.warns(UserWarning, match="its preprocessing is a guess, ViTImageProcessor"):
        explainer(Image.new("RGB", (40, 40), "red"))


def test_independent_classes_have_a_sigmoid():
    model = tiny(problem_type="multi_label_classification")
    x = torch.randn(3, 32, 32)
    assert camtools.explain(model, x, target=1).score == pytest.approx(float(model(x[None]).logits[0, 1].sigmoid()))


def test_processors_as_transforms():
    from transformers import BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 83, 3), dtype=np.uint8)).resize((249, 180))
    for processor, want in (
        (ViTImageProcessor(size={"height": 48, "width": 64}), ((48, 64), (48, 64))),
        (BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48}), ((48, 48), 64)),
        (ConvNextImageProcessor(size={"shortest_edge": 224}), ((224, 224), 256)),
        (ConvNextImageProcessor(size={"shortest_edge": 384}), ((384, 384), (384, 384))),
    ):
        transform = as_transform(processor)
        assert isinstance(transform, Preprocess) and (transform.input_size, transform.resize) == want
        made = processor(images=photo, return_tensors="pt")["pixel_values"][0]
        error = (transform(read_image(photo))[0] - made).abs().max() * max(transform.std) * 255
        assert error < 4  # levels: torchvision and PIL round differently
    odd = as_transform(ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5))
    assert not isinstance(odd, Preprocess)  # measured instead
    made = ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5)(photo, return_tensors="pt")
    torch.testing.assert_close(odd(read_image(photo))[0], made["pixel_values"][0])


def test_a_module_around_a_model_of_transformers():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny(id2label=NAMES, label2id={v: k for k, v in NAMES.items()})

        def forward(self, x):
            return self.net(pixel_values=x).logits

    explainer = camtools.Explainer(Around().eval())
    assert explainer.class_names == ["cat", "dog", "eel"] and explainer.transform.mean == (0.5,) * 3


def test_backbones_are_refused():
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(ModelError, match="ViTModel has no classifier: expected a model with logits"):
        wrap(model.eval()).decomposition


def test_the_hub_in_words(monkeypatch, tmp_path, no_network):
    with pytest.raises(WeightsError, match=r"hf:nobody/nothing cannot be loaded: .*is out of reach, and it is not in"):
        camtools.load_model("hf:nobody/nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set, and it is not in the cache .*hf:FOLDER"):
        camtools.load_model("hf:nobody/nothing")
    with pytest.raises(ModelError, match=r"There is no folder ./none: hf:./none names a folder"):
        camtools.load_model("hf:./none")


def test_only_safetensors_and_no_code(tmp_path):
    model = tiny()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="it has no safetensors weights, and others are not opened"):
        camtools.load_model(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}')
    (tmp_path / "mine.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(WeightsError, match="it comes with code of its own, which camtools never runs"):
        camtools.load_model(f"hf:{tmp_path}")


def test_a_missing_head_is_refused(tmp_path):
    model = tiny()
    model.vit.config.save_pretrained(tmp_path)
    model.vit.save_pretrained(tmp_path)
    with pytest.raises(
        WeightsError, match="has no weights for 2 tensors of ViTForImageClassification, such as classif"
    ):
        camtools.load_model(f"hf:{tmp_path}")


def test_the_source_takes_no_slash():
    assert HubSource("hf:a/b@v1", "a/b@v1", {}).revision == "v1"
    assert timm.is_model("test_resnet") and camtools.load_model("timm/test_resnet", "random").spec == "timm/test_resnet"
