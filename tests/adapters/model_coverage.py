"""Does every family of timm and every classifier of torchvision have a map, and is it a map of the image?

    python tests/adapters/model_coverage.py --out docs/coverage.md

builds each model with random weights, checks its map at the default input size and writes the table. The tests beside
this file run the same checks on the models that are small enough for every day.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers_models
from rich.progress import track
from torch import Tensor, nn

import camtools
from camtools.model.cam_model import CamModel

# The smallest model by parameters of each family in timm 1.0.31; --smallest finds those of another version.
SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}

# Classifiers whose last stage has no stride of 32, by how their name begins: stride, or rows and columns.
TORCHVISION_GRIDS: dict[str, int | tuple[int, int]] = {
    "alexnet": (6, 6),
    "inception_v3": (8, 8),
    "squeezenet": (13, 13),
    "vit_b_16": 16,
    "vit_l_16": 16,
    "vit_h_14": 14,
}


@dataclass(frozen=True)
class Check:
    """What was found for one model.

    Attributes:
        library: "timm" or "torchvision".
        family: timm's module, or torchvision's name.
        model: The model's name.
        size: (height, width) of the input.
        decomposition: What camtools says about the model; None where it refused.
        grid: (h, w) of the map; None where there is none.
        expected: (h, w) by the model's own metadata.
        finite: Whether the map has neither NaN nor infinity.
        varies: Whether the map is more than rounding away from constant.
        corner: Whether F changes most in the corner where the image changed.
        torchcam: "yes", or why torch-cam's automatic CAM gives no such map.
        error: camtools' refusal.
        seconds: Time camtools took, locating included.
    """

    library: str
    family: str
    model: str
    size: tuple[int, int]
    decomposition: camtools.model.Decomposition | None
    grid: tuple[int, int] | None
    expected: tuple[int, int]
    finite: bool = False
    varies: bool = False
    corner: bool = False
    torchcam: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether there is a map and everything about it is as it must be."""
        return self.grid == self.expected and self.finite and self.varies and self.corner


def build(library: str, name: str, *, batch_statistics: bool = False) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a model with random weights in eval mode, and its default input size (C, H, W).

    Args:
        library: "timm" or "torchvision".
        name: The model's name.
        batch_statistics: Take those of one random batch, for nets whose signal otherwise fades below rounding.
    """
    torch.manual_seed(0)
    model: nn.Module
    if library == "transformers":
        model = transformers_models.build(_kind(name), name)
        size = (3, transformers_models.SIDE, transformers_models.SIDE)
    elif library == "timm":
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        classes = {} if config is None or config.num_classes else {"num_classes": 10}
        model = timm.create_model(name, **classes)
        size = tuple(model.pretrained_cfg["input_size"])
    else:
        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, **extra)
        weights = torchvision.models.get_model_weights(name).DEFAULT
        side = getattr(model, "image_size", None) or weights.transforms().crop_size[0]
        size = (3, side, side)
    _wake(model.eval())
    if batch_statistics:
        _take_batch_statistics(model, size)
    return model.eval(), size


def _wake(model: nn.Module) -> None:
    """Undo what initialisation leaves at zero and training moves: classifiers, layer scales, attention biases.

    Without it the scores of some models do not depend on the image, or every position sees every other alike.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            if name.endswith("attention_biases"):  # LeViT and kin: entry 0 is the offset (0, 0)
                parameter[:, 0] = 10.0


def _take_batch_statistics(model: nn.Module, size: tuple[int, int, int]) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = None  # the statistics of the one batch that follows
    with torch.no_grad():
        model(torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))


def expected_grid(library: str, name: str, model: nn.Module, size: tuple[int, int, int]) -> tuple[int, int]:
    """Return the rows and columns of the last features, by the model's own metadata."""
    _, height, width = size
    stride: Any = 32
    if library == "transformers":
        stride = transformers_models.CONFIGS[_kind(name)][1] or 1
    elif library == "torchvision":
        stride = next((g for key, g in TORCHVISION_GRIDS.items() if name.startswith(key)), 32)
    else:
        if isinstance(getattr(model, "patch_embed", None), nn.ModuleList):  # CrossViT: F is the first branch's tokens
            side = math.isqrt(model.patch_embed[0].num_patches)
            return side, side
        if model.pretrained_cfg.get("pool_size"):
            rows, columns = model.pretrained_cfg["pool_size"]
            return rows, columns
        info = getattr(model, "feature_info", None)
        if info:
            stride = info[-1]["reduction"] if isinstance(info, list) else info.reduction()[-1]
    if isinstance(stride, tuple):
        return stride
    return math.ceil(height / stride), math.ceil(width / stride)


def check(library: str, family: str, name: str, *, torchcam: bool = False) -> Check:
    """Build one model and look at its map; once more with batch statistics where the untrained signal was lost."""
    found = _check(library, family, name, torchcam=torchcam, batch_statistics=False)
    if found.decomposition is not None and not (found.varies and found.corner):
        found = _check(library, family, name, torchcam=torchcam, batch_statistics=True)
    return found


def _kind(name: str) -> str:
    """Return the model type of an architecture of transformers."""
    return next(kind for kind, architecture in transformers_models.architectures() if architecture == name)


def _check(library: str, family: str, name: str, *, torchcam: bool, batch_statistics: bool) -> Check:
    try:
        model, size = build(library, name, batch_statistics=batch_statistics)
    except ImportError as error:  # of a package that a family needs
        needs = " ".join(str(error).split()).partition(" but it")[0]
        return Check(library, family, name, (0, 0), None, None, (0, 0), error=needs)
    expected = expected_grid(library, name, model, size)
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
    started = time.perf_counter()
    result: dict[str, Any] = {}
    try:
        cam_model = camtools.wrap(model)
        with torch.no_grad():
            map = cam_model.maps(x, targets=3)
        result |= {
            "seconds": time.perf_counter() - started,
            "decomposition": cam_model.decomposition,
            "grid": (map.shape[2], map.shape[3]),
            "finite": bool(torch.isfinite(map).all()),
            "varies": bool(map.max() - map.min() > 1e-3 * map.abs().max()),
            "corner": corner_changes_most(cam_model, x),
        }
    except camtools.CamtoolsError as error:
        result |= {"decomposition": None, "grid": None, "error": str(error)}
    if torchcam:
        result["torchcam"] = try_torchcam(model, x, expected)
    return Check(library, family, name, size[1:], expected=expected, **result)


def corner_changes_most(cam_model: CamModel, x: Tensor) -> bool:
    """Tell whether F changes most in the top right corner when the image changes there only.

    The corner that is changed is a quarter of the height and width, or one cell where cells are larger; what is
    compared is the mean change of the four quadrants. Top right, because there swapped rows and columns would show.
    """
    with torch.no_grad():
        before = cam_model.features(x)
        rows, columns = before.shape[2:]
        other = x.clone()
        height = max(x.shape[2] // 4, math.ceil(x.shape[2] / rows))
        width = max(x.shape[3] // 4, math.ceil(x.shape[3] / columns))
        noise = torch.randn(other[..., :height, -width:].shape, generator=torch.Generator().manual_seed(2))
        other[..., :height, -width:] = noise
        change = (cam_model.features(other) - before).square().sum(1)[0]
    top, bottom = change[: rows // 2], change[-(rows // 2) :]
    left, right = slice(None, columns // 2), slice(-(columns // 2), None)
    elsewhere = max(top[:, left].mean(), bottom[:, left].mean(), bottom[:, right].mean())
    return bool(top[:, right].mean() > elsewhere)


def try_torchcam(model: nn.Module, x: Tensor, expected: tuple[int, int]) -> str:
    """Say "yes" where torch-cam's automatic CAM gives a finite map of the right size that varies, else why not."""
    from torchcam.methods import CAM

    try:
        with CAM(model, input_shape=tuple(x.shape[1:])) as extractor:
            scores = model(x)
            map = extractor(3, scores)[0]
    except Exception as error:
        return f"{type(error).__name__}"
    finally:
        for module in model.modules():
            module._forward_hooks.clear()
    if tuple(map.shape[-2:]) != expected:
        return f"map of {' x '.join(map_size(map))}"
    if not bool(torch.isfinite(map).all()) or not bool(map.max() > map.min()):
        return "constant or not finite"
    return "yes"


def map_size(map: Tensor) -> list[str]:
    """Sides of a map as text."""
    return [str(side) for side in map.shape[-2:]]


def smallest_of(family: str) -> str:
    """Return the model of a timm family with the fewest parameters, by building all of them without memory."""
    sizes = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
    return min(sizes, key=lambda name: sizes[name])


def subjects(*, known: bool = False) -> list[tuple[str, str, str]]:
    """Return (library, family, model) for every timm family and every torchvision classifier.

    Args:
        known: Leave out families that a newer timm added, instead of searching them for their smallest model.
    """
    names = [family for family in timm.list_modules() if family in SMALLEST or not known]
    families = [("timm", family, SMALLEST.get(family) or smallest_of(family)) for family in names]
    classifiers = torchvision.models.list_models(module=torchvision.models)
    others = transformers_models.architectures() if library_is_there() else []
    return (
        families
        + [("torchvision", name, name) for name in classifiers]
        + [("transformers", kind, name) for kind, name in others if kind in transformers_models.CONFIGS]
    )


def library_is_there() -> bool:
    """Whether transformers is installed."""
    return find_spec("transformers") is not None


def table(checks: list[Check]) -> str:
    """Write the results as a Markdown page."""
    lines = [
        "# Coverage",
        "",
        "Which classifiers have a map, found out by building each with random weights at its default input size:",
        "",
        "    python tests/adapters/model_coverage.py --out docs/coverage.md",
        "",
        f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}. A row is *right* "
        "if the map has the size that the model's own metadata gives, is finite, is not constant, and if F changes "
        "most in the corner where the image was changed (so that no channel, attention or swapped axis was taken for "
        "space). Heads that initialisation leaves at zero are given small random weights first; a net whose untrained "
        "signal fades below rounding takes the batch statistics of one random batch. The last column is "
        "torch-cam's automatic `CAM(model)` held to the same size, finite and not constant.",
        "",
        "| | right | exact | linearised | no map | torch-cam |",
        "|---|---|---|---|---|---|",
    ]
    counted = ("timm", "families"), ("torchvision", "classifiers"), ("transformers", "architectures, small")
    for library, what in counted:
        of = [c for c in checks if c.library == library]
        exact = sum(c.decomposition is not None and c.decomposition.exact for c in of)
        linear = sum(c.decomposition is not None and not c.decomposition.exact for c in of)
        theirs = sum(c.torchcam == "yes" for c in of)
        right = sum(c.right for c in of)
        lines.append(
            f"| {library}, {len(of)} {what} | {right} | {exact} | {linear} | {len(of) - exact - linear} | {theirs} |"
        )
    titles = (
        ("timm", "timm: the smallest model of each family"),
        ("torchvision", "torchvision"),
        ("transformers", "transformers: every image classifier, by a small configuration of its own"),
    )
    for library, what in titles:
        lines += [
            "",
            f"## {what}",
            "",
            "| family | model | input | map | head | F | right | torch-cam |",
            "|" + "---|" * 8,
        ]
        lines += [_row(c) for c in checks if c.library == library]
    return "\n".join(lines) + "\n"


def _row(c: Check) -> str:
    size = " x ".join(map(str, c.size))
    if c.decomposition is None or c.grid is None:
        return f"| {c.family} | {c.model} | {size} | none | {c.error} | | | {c.torchcam} |"
    d = c.decomposition
    head = f"exact ({d.residual:.0e})" if d.exact else "linearised"
    wrong = [
        *([] if c.grid == c.expected else [f"expected {c.expected[0]} x {c.expected[1]}"]),
        *([] if c.finite else ["not finite"]),
        *([] if c.varies else ["constant"]),
        *([] if c.corner else ["change is elsewhere"]),
    ]
    place = f"{d.side} of `{d.layer}`, {d.layout}"
    grid = f"{c.grid[0]} x {c.grid[1]}"
    return (
        f"| {c.family} | {c.model} | {size} | {grid} | {head} | {place} | {', '.join(wrong) or 'yes'} | {c.torchcam} |"
    )


def main() -> None:
    """Check everything and write the page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, help="where the page goes; printed if left out")
    parser.add_argument("--only", default="", help="models whose name contains this; several with commas")
    parser.add_argument("--library", choices=["timm", "torchvision", "transformers"], help="one library only")
    parser.add_argument("--smallest", action="store_true", help="print the smallest model of each timm family")
    args = parser.parse_args()
    if args.smallest:
        for family in timm.list_modules():
            print(f'    "{family}": "{smallest_of(family)}",', flush=True)
        return
    names = args.only.split(",")
    chosen = [s for s in subjects() if any(n in s[2] for n in names) and args.library in (None, s[0])]
    checks = []
    for subject in track(chosen, description="Checking"):
        checks.append(check(*subject, torchcam=True))
        if not checks[-1].right:
            print(_row(checks[-1]), flush=True)
        gc.collect()
    page = table(checks)
    if args.out:
        args.out.write_text(page, encoding="utf-8")
    else:
        print(page)


if __name__ == "__main__":
    main()
