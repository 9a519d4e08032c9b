"""TS-CAM's head: the attention against timm's own and numpy's, maps and logits by hand, and where it does not fit."""

import copy
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision import models as tv

import camtools
from camtools import ModelError, Preprocess, load_model, wrap
from camtools.heads import GAP, TSCAM, load_headed, replace_head
from camtools.steps import HeadMaps, State

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def vit(make=VisionTransformer, **options):
    """A tiny transformer whose attention is far from even."""
    torch.manual_seed(0)
    model = make(**TINY | options).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(25)
    return model


@pytest.fixture(scope="module")
def headed():
    return replace_head(vit(), TSCAM)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 1),
        ({"reg_tokens": 3}, 4),
        ({"make": VisionTransformerDistilled}, 2),
        ({"qk_norm": True, "init_values": 0.1}, 1),
        ({"global_pool": "avg", "fc_norm": False}, 1),
    ],
    ids=["plain", "registers", "distilled", "qk_norm", "avg"],
)
def test_the_attention_is_what_timm_uses(options, prefix):
    model = vit(**options)
    headed = replace_head(model, TSCAM)
    features = headed.features(X)
    used, plain = [], copy.deepcopy(model)
    for block in plain.blocks:  # where it is not fused, its dropout gets all of it: (B, heads, N, N)
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: used.append(output))
    with torch.no_grad():
        tokens = plain.forward_features(X)
    want = torch.stack(used).mean(2).sum(0)[:, 0, prefix:].reshape(3, 4, 4)
    assert want.std() > 0.3 * want.mean()
    torch.testing.assert_close(features[:, -1], want)
    torch.testing.assert_close(features[:, :-1].flatten(2), tokens[:, prefix:].transpose(1, 2))
    (gradient,) = torch.autograd.grad(features[:, -1].sum(), headed.body.patch_embed.proj.weight)
    assert not gradient.any()


def test_everything_by_hand(headed):
    model, total = vit(), 0
    with torch.no_grad():
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(X)))
        for block in model.blocks:
            weight, bias = (p.double().numpy() for p in (block.attn.qkv.weight, block.attn.qkv.bias))
            qkv = (block.norm1(tokens).double().numpy() @ weight.T + bias).reshape(3, 17, 3, 3, 8)
            scores = np.exp(np.einsum("bhd,bnhd->bhn", qkv[:, 0, 0], qkv[:, :, 1]) / np.sqrt(8))
            total = total + (scores / scores.sum(-1, keepdims=True)).mean(1)
            tokens = block(tokens)
        patches = model.norm(tokens)[:, 1:].numpy().reshape(3, 4, 4, 24)
    kernel, bias = headed.head.conv.weight.detach().numpy(), headed.head.conv.bias.detach().numpy()
    padded = np.pad(patches, ((0, 0), (1, 1), (1, 1), (0, 0)))
    semantic = bias[:, None, None] + sum(
        np.einsum("bhwc,kc->bkhw", padded[:, i : i + 4, j : j + 4], kernel[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    np.testing.assert_allclose(headed(X).detach(), semantic.mean((2, 3)), atol=1e-5)
    labels = np.array([[4, 0], [1, 1], [2, 3]])
    maps = HeadMaps().fitted(headed)(State(features=headed.features(X), labels=torch.tensor(labels))).maps
    attention = total[:, 1:].reshape(3, 1, 4, 4)
    np.testing.assert_allclose(maps, semantic[np.arange(3)[:, None], labels] * attention, atol=1e-5)


def test_a_file_gives_the_same_maps(tmp_path):
    model = load_model("timm/vit_tiny_patch16_224", "random", size=32, model_args=TINY)
    first = replace_head(model, TSCAM, classes=3, class_names=["a", "b", "c"]).eval()
    first.save(tmp_path / "m.safetensors")
    for again in (load_headed(tmp_path / "m.safetensors"), load_model(str(tmp_path / "m.safetensors")).model):
        assert torch.equal(again(X), first(X)) and torch.equal(again.features(X), first.features(X))
        assert again.origin == first.origin and again.origin.attention == ("blocks.0.attn", "blocks.1.attn")
        assert again.class_names == ("a", "b", "c")


def test_the_callers_model_stays_as_it_was():
    model = vit().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    headed = replace_head(model, TSCAM)
    assert headed.training
    camtools.explain(headed, np.zeros((40, 50, 3), np.uint8), pipeline="HeadMaps", target=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in [*model.modules(), *headed.modules()])
    assert [block.attn.fused_attn for block in model.blocks] == [block.attn.fused_attn for block in vit().blocks]


def test_copies_compiled_checkpointed_and_in_reduced_precision(headed):
    want, logits = headed.features(X), headed(X)
    for other in (copy.deepcopy(headed), pickle.loads(pickle.dumps(headed))):
        assert torch.equal(other.features(X), want) and other._attention is not headed._attention
    compiled = torch.compile(headed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), logits)
    torch.testing.assert_close(wrap(compiled).features(X), want)
    half = copy.deepcopy(headed).bfloat16()
    assert half.features(X.bfloat16()).dtype is torch.bfloat16
    torch.testing.assert_close(half.features(X.bfloat16())[:, -1].float(), want[:, -1], rtol=0.2, atol=0.02)
    saving = copy.deepcopy(headed).train()
    saving.body.set_grad_checkpointing()
    for _ in range(2):  # the backward runs the blocks again, which must not add to the next forward's
        torch.testing.assert_close(saving.features(X), want)
        saving(X).sum().backward()
    assert [name for name, parameter in saving.named_parameters() if parameter.grad is None] == []


def test_batches_classes_and_threads():
    headed = replace_head(vit(), TSCAM, preprocess=Preprocess.imagenet(32))
    pixels = np.random.default_rng(0).integers(0, 255, (6, 48, 48, 3), dtype=np.uint8)

    def maps(image):
        return torch.stack([found.map for found in camtools.explain(headed, image, pipeline="HeadMaps", target=[1, 4])])

    alone = [maps(image) for image in pixels]
    assert not torch.allclose(alone[0][0], alone[0][1]) and not torch.allclose(alone[0][0], alone[1][0])
    with ThreadPoolExecutor(3) as pool:
        for one, other in zip(alone, pool.map(maps, pixels), strict=True):
            torch.testing.assert_close(one, other)
    together = camtools.explain(headed, list(pixels), pipeline="HeadMaps", target=[[1, 4]] * 6)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, torch.stack([found.map for found in other]), atol=1e-4, rtol=1e-4)


def test_swapping_again(headed):
    again = replace_head(headed, TSCAM, classes=2)
    torch.testing.assert_close(again.features(X), headed.features(X))
    assert again(X).shape == (3, 2)
    other = replace_head(headed, GAP(), conv=0)
    torch.testing.assert_close(other.features(X), headed.features(X)[:, :-1])
    assert other.origin.attention == () and other.classifier.in_features == 24
    assert not any(module._forward_hooks for name, module in other.body.named_modules() if name != "norm")


def test_where_it_does_not_fit(headed):
    wanted = r"reads a class token's attention.*expected a VisionTransformer of timm's.*global_pool='token'"
    for model in (
        vit(class_token=False, global_pool="avg"),
        vit(global_pool="avg"),  # whose norm comes after the pooling
        timm.create_model("test_resnet").eval(),
        tv.VisionTransformer(224, 32, 1, 2, 16, 32, num_classes=7).eval(),
        replace_head(vit(), GAP()),
    ):
        with pytest.raises(ModelError, match=rf"{type(model).__name__}: this head {wanted}"):
            replace_head(model, TSCAM)
    odd = vit()
    odd.blocks[1].attn = type("Mine", (type(odd.blocks[0].attn),), {})(24, num_heads=3)
    with pytest.raises(ModelError, match=wanted):
        replace_head(odd, functools.partial(TSCAM))
    with pytest.raises(ModelError, match=r"conv=8: this head reads the tokens after a transformer's last norm"):
        replace_head(vit(), TSCAM, conv=8)
    with pytest.raises(ModelError, match=r"cut_after='blocks.0', conv=None: this head reads the tokens"):
        replace_head(vit(), TSCAM, cut_after="blocks.0")
    with pytest.raises(ModelError, match=r"TSCAM got features of 24 channels: expected 25, the last one the class"):
        replace_head(vit(), lambda channels, classes: TSCAM(channels, classes), conv=0)
    with pytest.raises(ModelError, match=r"channels=0"):
        TSCAM(0, 2)
    broken = copy.deepcopy(headed)
    broken.body.blocks = nn.Identity()
    with pytest.raises(ModelError, match=r"no attention layer ran, so there is no attention"):
        broken(X)
