import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_erosion

from camtools.errors import PipelineError
from camtools.steps import AdaptiveThreshold, FixedThreshold, MinMax, Stage, State
from camtools.steps.adaptive_threshold import boundary_means

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
    ),
]


def run(maps, *args, **kwargs):
    return AdaptiveThreshold(*args, **kwargs)(State(maps=maps))


def normalised(kind, shape=(3, 2, 24, 31)):
    generator = torch.Generator().manual_seed(11)
    if kind == "noise":
        maps = torch.randn(shape, generator=generator)
    elif kind == "smooth":
        maps = F.interpolate(torch.randn(*shape[:2], 5, 5, generator=generator), shape[2:], mode="bicubic")
    else:  # plateaus: few distinct values, many of them equal to a threshold
        maps = torch.randint(0, 5, shape, generator=generator).float()
    return MinMax()(State(maps=maps)).maps


def naive(image, select, interval):
    """The definition, a threshold at a time, in float64 with SciPy: (V of every level, the chosen level)."""
    image = image.astype(np.float64)
    levels = np.arange(round(1 / interval) + 1, dtype=np.float64) * interval
    levels = levels.astype(np.float32)  # compared as the float32 maps are
    means = []
    for level in levels:
        mask = image > np.float64(level + np.float32(1e-5)) * image.max()
        boundary = mask & ~binary_erosion(mask)
        means.append(image[boundary].mean() if boundary.any() else np.nan)
    change = [(abs(b - a), level) for a, b, level in zip(means, means[1:], levels[1:], strict=False)]
    change = [(d, level) for d, level in change if not np.isnan(d)]
    candidates = [(d, level) for d, level in change if d > np.mean([d for d, _ in change]) + 1e-5]
    if not candidates:
        return means, 0.2
    largest = max(d for d, _ in candidates)
    return means, next(level for d, level in candidates if select == "first" or d >= largest - 1e-5)


def test_hand_worked_line():
    # Every pixel of a one-row image is a boundary pixel, so V is the mean of what is above the level.
    #   eta   0      0.25   0.5   0.75   1
    #   V     .6333  .6333  .8    1      -      D  0  .1667  .2  -    mean of D .1222
    maps = torch.tensor([0.0, 0.3, 0.6, 1.0]).view(1, 1, 1, 4)
    first, largest = run(maps, "first", 0.25), run(maps, "largest", 0.25)
    assert first.thresholds.tolist() == [[0.5]] and first.masks.flatten().tolist() == [False, False, True, True]
    assert largest.thresholds.tolist() == [[0.75]] and largest.masks.flatten().tolist() == [False, False, False, True]


def test_hand_worked_square():
    # 5 x 5: rim .4, ring .8, centre 1. At eta 0 and .25 the rim is the boundary, V = .4; at .5, .75 the ring, V = .8.
    # The centre never is: its neighbours are in the mask until eta = 1, which keeps nothing. D = 0, .4, 0; mean .1333.
    maps = torch.full((1, 1, 5, 5), 0.4)
    maps[..., 1:4, 1:4] = 0.8
    maps[..., 2, 2] = 1.0
    levels = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).view(1, 1, 5)
    means = boundary_means(maps, levels)[0, 0]
    torch.testing.assert_close(means[:4], torch.tensor([0.4, 0.4, 0.8, 0.8]).double(), atol=1e-7, rtol=0)
    assert means[4].isnan()
    for select in ("first", "largest"):
        result = run(maps, select, 0.25)
        assert result.thresholds.item() == 0.5 and result.masks.sum() == 9 and result.masks[..., 1:4, 1:4].all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["noise", "smooth", "plateaus"])
@pytest.mark.parametrize("interval", [0.05, 0.1, 0.25, 0.01, 0.002])
def test_equals_the_naive_loop(kind, interval, device):
    maps = normalised(kind)
    levels = (torch.arange(round(1 / interval) + 1, dtype=torch.float64) * interval).float()
    means = boundary_means(maps.to(device), (levels + 1e-5).to(device).expand(3, 2, -1)).cpu()
    for select in ("first", "largest"):
        result = run(maps.to(device), select, interval)
        assert result.masks.equal(maps.to(device) > result.thresholds[..., None, None])
        for b in range(3):
            for k in range(2):
                expected, level = naive(maps[b, k].numpy(), select, interval)
                np.testing.assert_allclose(means[b, k].numpy(), expected, atol=1e-9)
                assert result.thresholds[b, k].item() == pytest.approx(level, abs=1e-7)


def test_outside_the_image_is_background():
    maps = torch.ones(1, 1, 4, 5)
    maps[..., 1:3, 1:4] = 0.5  # not next to the outside
    assert boundary_means(maps, torch.zeros(1, 1, 1)).item() == 1.0
    mask = np.ones((4, 5), bool)
    assert (mask & ~binary_erosion(mask)).sum() == 14


def test_scales_with_the_maximum():
    maps = normalised("smooth")
    torch.testing.assert_close(run(maps / 2).thresholds, run(maps).thresholds / 2)
    assert run(maps / 2).masks.equal(run(maps).masks)


def test_each_map_is_on_its_own():
    maps = normalised("smooth")
    together = run(maps).thresholds
    alone = torch.stack([torch.cat([run(maps[b, k][None, None]).thresholds[0] for k in range(2)]) for b in range(3)])
    assert together.equal(alone)


def bright_pixel():
    maps = torch.zeros(1, 1, 5, 5)
    maps[..., 2, 3] = 1.0
    return maps


@pytest.mark.parametrize("select", ["first", "largest"])
@pytest.mark.parametrize(
    "maps",
    [torch.zeros(2, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), bright_pixel()],
    ids=["zeros", "ones", "one pixel", "one zero", "one bright pixel"],
)
def test_without_a_candidate_it_is_the_fixed_threshold(maps, select):
    result, fixed = run(maps, select), FixedThreshold(0.2)(State(maps=maps))
    assert result.thresholds.equal(fixed.thresholds) and result.masks.equal(fixed.masks)


def test_even_ramp_has_no_candidate():
    # One row, V = mean above eta = (1 + eta + step) / 2: all D equal but for rounding, which must not decide.
    ramp = torch.linspace(0, 1, 101).view(1, 1, 1, 101)
    assert run(ramp, interval=0.1).thresholds.item() == pytest.approx(0.2)


def test_largest_takes_the_smallest_of_equals():
    # One row, four pixels of .3, three of .6, three of 1: V = .6 at eta 0 and .25, .8 at .5, 1 at .75. D = 0, .2, .2.
    # A rounding error in the middle value either way makes neither jump the larger one.
    for middle in (0.6, 0.6 - 1e-7, 0.6 + 1e-7):
        maps = torch.tensor([0.3] * 4 + [middle] * 3 + [1.0] * 3).view(1, 1, 1, 10)
        assert run(maps, "largest", 0.25).thresholds.item() == 0.5


def test_gradients_stay_intact():
    maps = normalised("smooth").requires_grad_()
    result = run(maps)
    result.thresholds.sum().backward()
    assert not result.masks.requires_grad
    # thresholds = eta * max M', with eta chosen, not differentiated
    torch.testing.assert_close(maps.grad.sum((2, 3)), result.thresholds.detach() / maps.detach().amax((2, 3)))


@pytest.mark.parametrize("value", ["last", None, 1])
def test_unknown_select_is_named(value):
    with pytest.raises(PipelineError) as error:
        AdaptiveThreshold(value)
    assert str(error.value) == f"AdaptiveThreshold(select={value!r}): select must be 'first' or 'largest'."


@pytest.mark.parametrize("value", [0, -0.05, 0.5, 1, math.nan, "0.05", None])
def test_interval_out_of_range_is_named(value):
    with pytest.raises(PipelineError) as error:
        AdaptiveThreshold(interval=value)
    assert f"(interval={value!r}): interval must be a number, 0.001 <= interval < 0.5." in str(error.value)


def test_missing_maps_are_named():
    with pytest.raises(PipelineError, match="needs maps"):
        AdaptiveThreshold()(State())


def test_declares_itself():
    step = AdaptiveThreshold()
    assert repr(step) == "AdaptiveThreshold(select='first', interval=0.05)"
    assert (step.stage, step.resolution) == (Stage.THRESHOLD, "image")


@pytest.mark.parametrize("select", ["first", "largest"])
def test_the_lowest_values_are_not_above_zero_by_rounding(select):
    """Half of the map is 0 but for rounding: with or without it, the ground is no part of any mask."""
    generator = torch.Generator().manual_seed(2)
    smooth = F.interpolate(torch.rand(64, 1, 7, 7, generator=generator), (56, 56), mode="bilinear").clamp_min(0.5) - 0.5
    maps = MinMax()(State(maps=smooth)).maps
    noise = 2e-6 * torch.rand(maps.shape, generator=generator)
    exact, noisy = run(maps, select), run(MinMax()(State(maps=maps + noise)).maps, select)
    torch.testing.assert_close(noisy.thresholds, exact.thresholds, atol=1e-4, rtol=0)


@pytest.mark.parametrize("select", ["first", "largest"])
def test_boxes_of_real_images_do_not_depend_on_the_batch(shared, select):
    import importlib.util

    import camtools
    from camtools.steps import AbsoluteNegative

    spec = importlib.util.spec_from_file_location("load", shared / "weights" / "load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    model, mean, std = load.classifier("mobilenet_v2")
    files = sorted(map(str, (shared / "data" / "ilsvrc_val" / "test").iterdir()))[:12]
    boxes = []
    for batch_size, order in ((1, files), (8, files[::-1])):
        explainer = camtools.Explainer(
            model,
            [AbsoluteNegative(), AdaptiveThreshold(select)],
            batch_size=batch_size,
            transform=camtools.Preprocess.imagenet(mean=mean, std=std),
        )
        boxes.append({explanation.source: explanation.boxes.tolist() for explanation in explainer(order)})
    assert boxes[0] == boxes[1]
