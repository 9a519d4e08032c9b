"""CLIP models as zero-shot classifiers: scores of the model itself, names that are the texts."""

import pytest
import torch
from torch import nn

import camtools
from camtools import InputError, ModelError, TargetError, zero_shot

pytest.importorskip("transformers", reason="needs transformers: pip install 'camtools[hf]'")

TEXTS = ["a photo of a cat", "a photo of a dog", "a drawing of an eel"]


def tokens(texts):
    """Some ids per text, ending in the one that CLIP pools."""
    rows = [[1, *(2 + sum(map(ord, word)) % 90 for word in text.split())] for text in texts]
    return torch.tensor([[*row, *[98] * (9 - len(row)), 99] for row in rows])


@pytest.fixture(scope="module")
def clip():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = small | {"vocab_size": 100, "eos_token_id": 99, "max_position_embeddings": 16}
    vision = small | {"image_size": 64, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
    return model


def test_scores_are_the_models_own_and_names_are_the_texts(clip):
    x = torch.randn(2, 3, 64, 64)
    classifier = zero_shot(clip, TEXTS, tokenizer=tokens)
    want = clip(input_ids=tokens(TEXTS), pixel_values=x).logits_per_image
    torch.testing.assert_close(classifier(x), want)
    exp = camtools.explain(classifier, x[0])
    assert exp.name == TEXTS[int(want[0].argmax())] and exp.score == pytest.approx(
        float(want[0].softmax(0).max()), abs=1e-5
    )
    assert camtools.explain(classifier, x[0], target=TEXTS[1]).label == 1
    assert camtools.Explainer(classifier).transform.input_size == (64, 64)
    with pytest.raises(TargetError, match="no class named 'a bird'"):
        camtools.explain(classifier, x[0], target="a bird")


def test_maps_are_of_the_image(clip):
    found = camtools.wrap(zero_shot(clip, TEXTS, tokenizer=tokens))
    x = torch.randn(1, 3, 64, 64)
    maps = found.maps(x, targets=[[0, 1, 2]])
    assert maps.shape == (1, 3, 4, 4) and not found.decomposition.exact and "vision_model" in found.decomposition.layer
    assert bool((maps[0].flatten(1).std(1) > 1e-4).all())
    other = x.clone()
    other[..., :16, 48:] += 2  # the top right patch
    moved = (found.features(other) - found.features(x)).abs().sum(1)[0]
    assert divmod(int(moved.argmax()), 4) == (0, 3)


class OpenClip(nn.Module):
    """As open_clip's models: encode_image, encode_text, logit_scale, and a visual side that knows its images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.visual.image_size, self.visual.image_mean, self.visual.image_std = (32, 32), (0.5,) * 3, (0.25,) * 3
        self.words = nn.Embedding(100, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, images):
        return self.visual(images)

    def encode_text(self, ids):
        return self.words(ids).mean(1)


def test_open_clip():
    model, x = OpenClip(), torch.randn(1, 3, 32, 32)
    classifier = zero_shot(model, TEXTS, tokenizer=tokens)
    pictures, words = (nn.functional.normalize(v, dim=1) for v in (model.visual(x), model.encode_text(tokens(TEXTS))))
    torch.testing.assert_close(classifier(x), model.logit_scale.exp() * pictures @ words.T)
    explainer = camtools.Explainer(classifier)
    assert explainer.transform.mean == (0.5,) * 3 and explainer.transform.input_size == (32, 32)
    assert explainer(x[0]).name in TEXTS


def test_refusals(clip):
    for texts in (["one"], ["same", "same"]):
        with pytest.raises(InputError, match="expected two or more different texts"):
            zero_shot(clip, texts, tokenizer=tokens)
    with pytest.raises(ModelError, match="Linear has no text side: expected a CLIPModel"):
        zero_shot(nn.Linear(2, 2), TEXTS)
    with pytest.raises(ModelError, match="the tokenizer of CLIPModel is not beside its files"):
        zero_shot(clip, TEXTS)
    with pytest.raises(ModelError, match="OpenClip does not say how texts become tokens"):
        zero_shot(OpenClip(), TEXTS)


def test_siglip_has_a_bias_and_sigmoids():
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = small | {"vocab_size": 100, "max_position_embeddings": 16, "bos_token_id": None, "eos_token_id": None}
    model = SiglipModel(
        SiglipConfig(text_config=text, vision_config=small | {"image_size": 64, "patch_size": 16})
    ).eval()
    model.logit_bias.data.fill_(-0.3)
    x = torch.randn(2, 3, 64, 64)
    classifier = zero_shot(model, TEXTS, tokenizer=tokens)
    want = model(input_ids=tokens(TEXTS), pixel_values=x).logits_per_image
    torch.testing.assert_close(classifier(x), want)
    assert camtools.explain(classifier, x[0], target=2).score == pytest.approx(float(want[0, 2].sigmoid()), abs=1e-5)


@pytest.mark.parametrize("side", ["transformer", "resnet", "timm"])
def test_models_of_open_clip(side):
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip: pip install 'camtools[open-clip]'")
    torch.manual_seed(0)
    vision = {
        "transformer": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64},
        "resnet": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
        "timm": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
    }[side]
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    x = torch.randn(2, 3, 64, 64)
    classifier = zero_shot(model, TEXTS, tokenizer=tokenizer)
    images, texts = model.encode_image(x, normalize=True), model.encode_text(tokenizer(TEXTS), normalize=True)
    want = model.logit_scale.exp() * images @ texts.T
    torch.testing.assert_close(classifier(x), want)
    found = camtools.wrap(classifier).activations(x)
    assert found.decomposition.layer.startswith("clip.visual.") and bool((found.maps(1).flatten(1).std(1) > 0).all())
    exp = camtools.explain(classifier, x[0])
    assert exp.score == pytest.approx(float(want[0].softmax(0).max()), abs=1e-5)
    transform = camtools.Explainer(classifier, crop="model").transform
    assert (transform.input_size, transform.mean, transform.interpolation) == (
        (64, 64),
        open_clip.OPENAI_DATASET_MEAN,
        "bicubic",
    )
    assert transform.assumed == "open_clip's defaults"
    model.visual.image_mean, model.visual.image_std = (0.5,) * 3, (0.25,) * 3  # as its factory sets them
    transform = camtools.Explainer(zero_shot(model, TEXTS, tokenizer=tokenizer)).transform
    assert transform.mean == (0.5,) * 3 and not transform.assumed
