"""Every image classifier of transformers, small and with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SIDE = 128
_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 16,
}
_PYRAMID: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_WINDOWS: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "image_size": SIDE,
}
_CLIP = {"vision_config": _VIT, "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}}

# Model type -> (changes of its configuration, pixels per cell of the map). None: no map, the reason is in the refusal.
CONFIGS: dict[str, tuple[dict[str, Any], int | None]] = {
    "beit": (_VIT, 16),
    "bit": (_PYRAMID | {"embedding_size": 8, "num_groups": 4}, 32),
    "clip": (_CLIP, 16),
    "convnext": (_PYRAMID, 32),
    "convnextv2": (_PYRAMID, 32),
    "cvt": ({"embed_dim": [8, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}, 16),
    "data2vec-vision": (_VIT, 16),
    "deit": (_VIT, 16),
    "dinat": ({"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3}, None),
    "dinov2": (_VIT, 16),
    "dinov2_with_registers": (_VIT, 16),
    "donut-swin": (_WINDOWS, 32),
    "efficientnet": ({"image_size": SIDE, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}, 32),
    "focalnet": ({"embed_dim": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "image_size": SIDE}, 32),
    "hgnet_v2": (
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 24, 32, 40],
            "depths": [1, 1, 1, 1],
            "stem_channels": [3, 8, 12],
            "stage_in_channels": [12, 16, 24, 32],
            "stage_mid_channels": [8, 8, 8, 8],
            "stage_out_channels": [16, 24, 32, 40],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [1, 1, 1, 1],
        },
        32,
    ),
    "hiera": (
        {
            "embed_dim": 16,
            "image_size": [SIDE, SIDE],
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "masked_unit_size": [8, 8],
        },
        32,
    ),
    "ijepa": (_VIT, 16),
    "imagegpt": ({"n_embd": 32, "n_layer": 2, "n_head": 2}, None),
    "levit": (
        {"image_size": SIDE, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1]},
        64,
    ),
    "metaclip_2": (_CLIP, 16),
    "mobilenet_v1": ({"image_size": SIDE, "depth_multiplier": 0.25}, 32),
    "mobilenet_v2": ({"image_size": SIDE, "depth_multiplier": 0.35}, 32),
    "mobilevit": (
        {"image_size": SIDE, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 16, 16, 24, 32]},
        32,
    ),
    "mobilevitv2": ({"image_size": SIDE, "base_attn_unit_dims": [16, 24, 32], "width_multiplier": 0.5}, 32),
    "perceiver": (
        {
            "num_latents": 8,
            "d_latents": 32,
            "num_self_attends_per_block": 1,
            "num_cross_attention_heads": 1,
        },
        None,
    ),
    "poolformer": (_PYRAMID, 32),
    "pp_lcnet": ({"scale": 1.0}, 32),
    "pvt": (_PYRAMID | {"image_size": SIDE, "num_attention_heads": [1, 1, 2, 2]}, 32),
    "pvt_v2": (_PYRAMID | {"image_size": SIDE, "num_attention_heads": [1, 1, 2, 2]}, 32),
    "regnet": (_PYRAMID | {"embedding_size": 8, "groups_width": 8}, 32),
    "resnet": (_PYRAMID | {"embedding_size": 8}, 32),
    "segformer": (_PYRAMID | {"num_attention_heads": [1, 1, 2, 2]}, 32),
    "shieldgemma2": (
        {
            "text_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 32,
                "vocab_size": 128,
                "head_dim": 16,
            },
            "vision_config": _VIT,
        },
        None,
    ),
    "siglip": (_CLIP, 16),
    "siglip2": (_CLIP, None),
    "swiftformer": ({"image_size": SIDE, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]}, 32),
    "swin": (_WINDOWS, 32),
    "swinv2": (_WINDOWS, 32),
    "textnet": (
        {
            "image_size": [SIDE, SIDE],
            "stem_out_channels": 8,
            "hidden_sizes": [8, 8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 3]], [[3, 3]]],
            "conv_layer_strides": [[2], [2], [2], [2]],
        },
        32,
    ),
    "timm_wrapper": ({"architecture": "test_resnet"}, 32),
    "vit": (_VIT, 16),
    "vit_msn": (_VIT, 16),
}


def architectures() -> list[tuple[str, str]]:
    """Return (model type, class name) of every image classifier of the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return [
        (kind, name)
        for kind, names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
        for name in ((names,) if isinstance(names, str) else names)
    ]


def build(kind: str, name: str, classes: int = 5) -> nn.Module:
    """Return a small model with random weights in eval mode, large enough for every layer to matter."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    changes = dict(CONFIGS.get(kind, ({}, None))[0])
    config = CONFIG_MAPPING[kind](**changes, num_labels=classes)
    model: nn.Module = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:  # they start with a standard deviation of 0.02, at which small nets are flat
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(fan, 1) ** 0.5)
            elif bool((parameter.abs() < 0.1).all()) and not bool(parameter.any() == 0):
                parameter.fill_(0.5)  # layer scales
    return model
