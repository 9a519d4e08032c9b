import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

import camtools
from camtools import Pipeline
from camtools.errors import PipelineError
from camtools.steps import NWC, Affinity, MinMax, State


def run(maps, *pyramid, **settings):
    return Affinity(**settings)(State(maps=maps, pyramid=pyramid)).maps


def noise(seed=0, batch=3, classes=2, grid=(5, 7), levels=2):
    """Maps of both signs, and stages of 6 channels on grids two and four times as fine."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, classes, *grid, generator=generator)
    sides = [(grid[0] * 2**n, grid[1] * 2**n) for n in range(1, levels + 1)]
    return maps, *(torch.randn(batch, 6, *side, generator=generator) + 0.3 for side in sides)


# --- an independent version -----------------------------------------------------------------------------------------


def keys(t):
    """Keys' cubic kernel with a = -0.75."""
    t, a = abs(t), -0.75
    if t < 1:
        return ((a + 2) * t - (a + 3) * t) * t + 1 if t == 0 else (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def axis(there, here, kernel, reach):
    """The matrix (there, here) that interpolates half-pixel centres with clamped edges."""
    matrix = np.zeros((there, here))
    for row in range(there):
        at = (row + 0.5) * here / there - 0.5
        for cell in range(math.floor(at) - reach + 1, math.floor(at) + reach + 1):
            matrix[row, min(max(cell, 0), here - 1)] += kernel(at - cell)
    return matrix


def resized(x, size, kernel, reach):
    """Interpolate (C, h, w)."""
    rows, columns = (axis(there, here, kernel, reach) for there, here in zip(size, x.shape[1:], strict=True))
    return np.einsum("Yy,cyx,Xx->cYX", rows, x, columns)


def unit(x):
    """Unit vectors along the channels of (C, h, w)."""
    return x / np.maximum(np.linalg.norm(x, axis=0, keepdims=True), 1e-12)


def by_the_formula(cam, pyramid, power, grid):
    """M'_i of one image and class in float64: cam (h, w), stages (C, h', w') each, on a grid."""
    vectors = []
    for stage in pyramid:
        if stage.shape[1] >= grid[0]:
            rows, columns = stage.shape[1] // grid[0], stage.shape[2] // grid[1]
            vectors.append(unit(stage.reshape(-1, grid[0], rows, grid[1], columns).mean((2, 4))))
        else:
            vectors.append(resized(unit(stage), grid, lambda t: max(1 - abs(t), 0), 1))
    g = unit(np.concatenate(vectors)).reshape(sum(map(len, vectors)), -1)
    normal = (cam - cam.min()) / (cam.max() - cam.min())
    m = resized(normal[None], grid, keys, 2).clip(0, 1).ravel()
    result = np.zeros(len(m))
    for i in range(len(m)):
        a = np.maximum(g.T @ g[:, i], 0) ** power
        result[i] = (a * m).sum() / a.sum()
    return result.reshape(grid)


@pytest.mark.parametrize("power", [0.5, 1, 3.0, 8])
@pytest.mark.parametrize(("levels", "cells", "grid"), [(1, 1024, (10, 14)), (2, 1024, (20, 28)), (2, 200, (10, 14))])
def test_equals_the_formula_in_float64(power, levels, cells, grid):
    maps, *pyramid = noise()
    result = run(maps, *pyramid, levels=levels, power=power, cells=cells)
    assert result.shape == (3, 2, *grid) and result.dtype == torch.float32
    for b in range(3):
        for k in range(2):
            features = [stage[b].double().numpy() for stage in pyramid[:levels]]
            expected = by_the_formula(maps[b, k].double().numpy(), features, power, grid)
            np.testing.assert_allclose(result[b, k].numpy(), expected, atol=1e-5)


# --- by hand --------------------------------------------------------------------------------------------------------

# Cosines: the first two positions are alike, the third is orthogonal to them, the fourth at 45 degrees to all. With
# power 2 these are affinities of 1, 0 and 1/2. Normalised the map is 1, 0, 0, 1/2.
HAND_STAGE = torch.tensor([[[[1.0, 3.0], [0.0, 1.0]], [[0.0, 0.0], [2.0, 1.0]]]])
HAND_MAP = torch.tensor([[[[4.0, 0.0], [0.0, 2.0]]]])
HAND = torch.tensor([1.25 / 2.5, 1.25 / 2.5, 0.25 / 1.5, 1 / 2.5])


def test_by_hand():
    torch.testing.assert_close(run(HAND_MAP, HAND_STAGE, levels=1, power=2).flatten(), HAND)


def test_by_hand_with_signed_maps():
    torch.testing.assert_close(run(HAND_MAP * 3 - 7, HAND_STAGE, levels=1, power=2).flatten(), HAND)


def test_by_hand_cells_of_a_finer_stage_are_averaged():
    """Each 2 x 2 block has the hand's vector as its mean; with 4 cells there is no room for the block itself."""
    blocks = HAND_STAGE.repeat_interleave(2, 2).repeat_interleave(2, 3)
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
    finer = blocks + 5 * checker  # averages out
    torch.testing.assert_close(run(HAND_MAP, HAND_STAGE, finer, levels=2, power=2, cells=4).flatten(), HAND)
    torch.testing.assert_close(run(HAND_MAP, finer, levels=1, power=2, cells=4)[0, 0], HAND.view(2, 2))


def test_by_hand_opposite_features_do_not_count():
    stage = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])  # one channel: columns are opposite
    result = run(torch.tensor([[[[4.0, 0.0], [0.0, 2.0]]]]), stage, levels=1)
    torch.testing.assert_close(result.flatten(), torch.tensor([0.5, 0.25, 0.5, 0.25]))


def test_by_hand_two_stages_count_alike():
    """Columns alike in one, rows in the other, whatever their length: cosines of 1, 1/2 and, on the diagonal, 0."""
    columns = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    result = run(HAND_MAP, columns * 100, columns.mT, levels=2, power=1)
    # neighbours count 1/2, the diagonal 0: (1 + 0 + 0) / 2, (0 + 1/2 + 1/4) / 2 twice, 1/2 / 2
    torch.testing.assert_close(result.flatten(), torch.tensor([0.5, 0.375, 0.375, 0.25]))


# --- invariants -----------------------------------------------------------------------------------------------------


def upsampled(maps, grid):
    normal = MinMax()(State(maps=maps)).maps
    return interpolate(normal, size=grid, mode="bicubic", align_corners=False).clamp(0, 1)


def test_one_look_everywhere_gives_the_mean():
    maps, *_ = noise()
    result = run(maps, torch.rand(3, 6, 1, 1).expand(3, 6, 10, 14) + 0.1, levels=1)
    torch.testing.assert_close(result, upsampled(maps, (10, 14)).mean((2, 3), keepdim=True).expand_as(result))


def test_no_two_alike_leaves_the_map():
    maps, *_ = noise()
    one_hot = torch.eye(140).view(1, 140, 10, 14).expand(3, -1, -1, -1)
    torch.testing.assert_close(run(maps, one_hot, levels=1), upsampled(maps, (10, 14)))


@pytest.mark.parametrize("power", [1e4, 1e7, 1e30])
def test_high_powers_leave_the_map(power):
    maps, stage, _ = noise()
    torch.testing.assert_close(run(maps, stage, levels=1, power=power), upsampled(maps, (10, 14)))


def test_power_towards_zero_counts_all_at_acute_angles_alike():
    maps, stage, _ = noise()
    result = run(maps, stage.abs() + 0.1, levels=1, power=1e-9)  # all angles are acute
    mean = upsampled(maps, (10, 14)).mean((2, 3), keepdim=True)
    torch.testing.assert_close(result, mean.expand_as(result), atol=1e-5, rtol=0)


def test_a_permutation_of_positions_permutes_the_map():
    generator = torch.Generator().manual_seed(0)
    maps, stage = torch.randn(2, 3, 6, 4, generator=generator), torch.randn(2, 5, 6, 4, generator=generator)
    order = torch.randperm(24, generator=generator)

    def shuffled(x):
        return x.flatten(2)[..., order].unflatten(2, (6, 4))

    torch.testing.assert_close(run(shuffled(maps), shuffled(stage), levels=1), shuffled(run(maps, stage, levels=1)))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_features_scale_does_not_matter(scale):
    maps, *pyramid = noise()
    torch.testing.assert_close(run(maps, pyramid[0] * scale, pyramid[1]), run(maps, *pyramid))


def test_the_maps_scale_and_offset_do_not_matter():
    maps, *pyramid = noise()
    torch.testing.assert_close(run(30 * maps - 5, *pyramid), run(maps, *pyramid), atol=1e-5, rtol=0)


def test_values_stay_in_the_maps_range():
    maps, *pyramid = noise(seed=3)
    result = run(maps, *pyramid)
    before = upsampled(maps, (20, 28))
    assert (result.amin((2, 3)) >= before.amin((2, 3)) - 1e-6).all()
    assert (result.amax((2, 3)) <= before.amax((2, 3)) + 1e-6).all()
    assert (result.std((2, 3)) < before.std((2, 3))).all()


def test_each_image_and_class_is_on_its_own():
    maps, *pyramid = noise()
    whole = run(maps, *pyramid)
    for b in range(3):
        for k in range(2):
            alone = run(maps[b : b + 1, k : k + 1], *(stage[b : b + 1] for stage in pyramid))
            torch.testing.assert_close(alone[0, 0], whole[b, k])


# --- what is degenerate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-2.0, 0.0, 2.0])
def test_a_constant_map_becomes_zeros(value):
    _, *pyramid = noise()
    assert run(torch.full((3, 2, 5, 7), value), *pyramid).eq(0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_becomes_zeros_and_alone(bad):
    maps, *pyramid = noise()
    whole = run(maps, *pyramid)
    maps[1, 0, 2, 3] = bad
    result = run(maps, *pyramid)
    assert result[1, 0].eq(0).all()
    keep = torch.ones(3, 2, dtype=torch.bool)
    keep[1, 0] = False
    assert result[keep].equal(whole[keep])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_stage_that_is_not_finite_makes_its_image_zeros(bad):
    maps, *pyramid = noise()
    whole = run(maps, *pyramid)
    pyramid[1][1, 0, 2, 3] = bad
    result = run(maps, *pyramid)
    assert result[1].eq(0).all() and result[[0, 2]].equal(whole[[0, 2]])


def test_zero_features_leave_the_map():
    maps, stage, _ = noise()
    torch.testing.assert_close(run(maps, torch.zeros_like(stage), levels=1), upsampled(maps, (10, 14)))


def test_a_position_of_zeros_keeps_its_value_and_counts_for_no_other():
    stage = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]]])
    result = run(HAND_MAP, stage, levels=1)
    torch.testing.assert_close(result.flatten(), torch.tensor([0.5, 0.5, 0.0, 0.5]))
    high = run(torch.tensor([[[[0.0, 0.0], [4.0, 2.0]]]]), stage, levels=1)
    torch.testing.assert_close(high.flatten(), torch.tensor([1 / 6, 1 / 6, 1.0, 1 / 6]))


def test_without_finer_stages_nothing_changes():
    state = State(maps=torch.randn(2, 3, 4, 4), pyramid=())
    assert Affinity()(state) is state


def test_single_cell_maps_become_zeros():
    assert run(torch.ones(1, 1, 1, 1), torch.rand(1, 2, 4, 4), levels=1).eq(0).all()


# --- the grid -------------------------------------------------------------------------------------------------------


def test_where_no_stage_has_room_a_finer_map_comes_to_the_grid_of_f():
    """`best` makes a map on the stage's own grid; affinities of that many positions would take gigabytes."""
    _, *pyramid = noise(grid=(40, 40), levels=1)
    finer, features = torch.randn(3, 2, 80, 80), torch.randn(3, 4, 40, 40)
    result = Affinity(levels=1)(State(maps=finer, features=features, pyramid=tuple(pyramid))).maps
    small = upsampled(finer, (40, 40))
    low, high = small.amin((2, 3), keepdim=True), small.amax((2, 3), keepdim=True)
    torch.testing.assert_close(result, run(small, *pyramid, levels=1) * (high - low) + low)


@pytest.mark.parametrize(
    ("cells", "grid"),
    [
        (1120 * 2, (40, 56)),
        (2240, (40, 56)),
        (2239, (20, 28)),
        (560, (20, 28)),
        (559, (10, 14)),
        (139, (5, 7)),
        (1, (5, 7)),
    ],
)
def test_the_finest_grid_that_has_room(cells, grid):
    maps, *pyramid = noise(levels=3)
    assert run(maps, *pyramid, levels=3, cells=cells).shape == (3, 2, *grid)


def test_levels_count_from_the_coarsest():
    maps, *pyramid = noise(levels=3)
    two = run(maps, *pyramid[:2], levels=2)
    assert run(maps, *pyramid, levels=2).equal(two)
    assert run(maps, *pyramid[:2], levels=5).equal(two), "fewer than asked for are all there are"
    assert not run(maps, *pyramid, levels=1).equal(two)


# --- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["levels", "cells"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None])
def test_impossible_counts_are_refused(name, value):
    with pytest.raises(PipelineError) as error:
        Affinity(**{name: value})
    assert str(error.value) == f"Affinity({name}={value!r}): {name} must be a whole number of at least 1."


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "3", None])
def test_impossible_powers_are_refused(value):
    with pytest.raises(PipelineError) as error:
        Affinity(power=value)
    assert str(error.value) == f"Affinity(power={value!r}): power must be a finite number above 0."


def test_a_state_without_stages_is_refused_with_the_way_out():
    with pytest.raises(PipelineError) as error:
        Affinity(levels=3)(State(maps=torch.rand(1, 1, 2, 2)))
    assert str(error.value) == (
        "Affinity(levels=3, power=3.0, cells=1024) needs a pyramid, but this state has none. Fill State.pyramid from "
        "camtools.wrap(model).activations(x, pyramid=3).pyramid, or leave Affinity out."
    )


def test_a_state_without_maps_is_refused():
    with pytest.raises(PipelineError, match=r"Affinity\(levels=2, power=3.0, cells=1024\) needs maps"):
        Affinity()(State(pyramid=()))


@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (6, 4, 4)])
def test_stages_of_other_images_are_refused(shape):
    with pytest.raises(PipelineError) as error:
        run(torch.rand(3, 1, 2, 2), torch.rand(shape))
    assert str(error.value) == (
        f"Affinity(levels=2, power=3.0, cells=1024): a stage is {shape} and maps (3, 1, 2, 2): expected (B, C, h, w) "
        "of the same 3 images."
    )


# --- in use ---------------------------------------------------------------------------------------------------------


def test_input_untouched_and_float32():
    maps, *pyramid = noise()
    kept = [tensor.clone() for tensor in (maps, *pyramid)]
    result = run(maps.double(), *(stage.half() for stage in pyramid))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, run(maps, *pyramid), atol=5e-3, rtol=0)
    assert all(tensor.equal(before) for tensor, before in zip((maps, *pyramid), kept, strict=True))


def test_gradients_reach_the_maps():
    """The new map is linear in the normalised old one: a derivative by hand where the extremes stay where they are."""
    maps = HAND_MAP.clone().requires_grad_()
    run(maps, HAND_STAGE, levels=1, power=2)[0, 0, 0, 0].backward()
    # M'_0 = (m0 + m1 + m3 / 2) / 2.5 with m3 = (M3 - M1) / (M0 - M1) where M1 is the minimum and M0 the maximum
    assert maps.grad[0, 0, 1, 1] == pytest.approx(0.5 / 2.5 / 4)


def test_in_a_pipeline():
    _, *pyramid = noise()
    state = State(features=torch.randn(3, 8, 5, 7), weights=torch.randn(1, 2, 8), pyramid=tuple(pyramid))
    pipeline = Pipeline([NWC(), Affinity(1)])
    assert pipeline.needs_pyramid == 1 and Pipeline([NWC()]).needs_pyramid == 0
    assert Pipeline([Affinity(1), Affinity(3)]).needs_pyramid == 3
    assert pipeline.summary == "NWC, CAM, Affinity(1, 3.0, 1024), MinMax, FixedThreshold(0.2)"
    done = pipeline(state)
    torch.testing.assert_close(
        done.raw_maps, torch.einsum("bchw,okc->bkhw", state.features, state.weights.clamp_min(0))
    )
    torch.testing.assert_close(done.maps, MinMax()(State(maps=run(done.raw_maps, pyramid[0], levels=1))).maps)


class Coloured(nn.Module):
    """F is the image's red and green in cells of 16 pixels; an earlier stage has all colours in cells of 8."""

    def __init__(self):
        super().__init__()
        self.early = nn.AvgPool2d(8)
        self.late = nn.Conv2d(3, 2, 2, stride=2, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.late.weight.copy_(torch.eye(2, 3)[:, :, None, None].expand(2, 3, 2, 2) / 4)
            self.fc.weight.copy_(torch.eye(2))
        self.eval()

    def forward(self, x):
        return self.fc(self.pool(self.late(self.early(x))).flatten(1))


def test_explain_spreads_the_map_over_what_looks_alike():
    """A blue bar with a red end: red's map has its peak at the end, and spreads over the bar but not beyond."""
    image = torch.zeros(1, 3, 64, 64)
    image[:, 1] = 0.5
    image[:, :, 16:32] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    image[:, 0, 16:32] = 0.4
    image[:, 0, 16:32, 48:] = 1.0
    plain = camtools.explain(Coloured(), image, target=0, pipeline="cam")[0]
    spread = camtools.explain(Coloured(), image, target=0, pipeline=[Affinity(1)])[0]
    assert plain.map[24, 8] < 0.5 < spread.map[24, 8]
    assert spread.map[48, 56] < 0.01
    model = camtools.wrap(Coloured()).activations(image, pyramid=1)
    assert model.pyramid[0].shape == (1, 3, 8, 8)
    expected = run(model.maps(0), *model.pyramid, levels=1)
    torch.testing.assert_close(
        spread.map, MinMax()(State(maps=interpolate(expected, size=(64, 64), mode="bilinear"))).maps[0, 0]
    )
    torch.testing.assert_close(spread.raw_map, model.maps(0)[0, 0])


def test_images_of_several_sizes_in_a_batch_keep_their_own_stages():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (height, 90, 3), dtype=np.uint8) for height in (70, 80, 70, 100)]
    settings = {"target": 0, "pipeline": [Affinity(1)], "transform": camtools.Preprocess.imagenet(64)}
    together = camtools.explain(Coloured(), images, **settings)
    for exp, image in zip(together, images, strict=True):
        torch.testing.assert_close(exp.map, camtools.explain(Coloured(), image, **settings).map)


@pytest.mark.gpu
def test_on_cuda_equals_the_cpu(cuda):
    maps, *pyramid = noise()
    result = run(maps.to(cuda), *(stage.to(cuda) for stage in pyramid))
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), run(maps, *pyramid), atol=1e-4, rtol=0)
