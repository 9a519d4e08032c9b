import math

import pytest
import torch
import torch.nn.functional as F

from camtools import Pipeline
from camtools.errors import PipelineError
from camtools.steps import CRF, NWC, FixedThreshold, MinMax, Stage, State
from camtools.steps.dense_crf import lattice, mean_field

needs_pydensecrf = pytest.mark.skipif(
    not lattice.available(), reason="pydensecrf is not installed (pip install 'camtools[crf]')"
)
BACKENDS = ["torch", pytest.param("pydensecrf", marks=needs_pydensecrf)]
TINY = {"gaussian": (1, 2), "bilateral": (8, 20, 3)}


def batch(input_images=2, classes=3, size=(24, 20), seed=0):
    """Smooth images and normalised maps."""
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.rand(input_images, 3, 4, 4, generator=generator), size, mode="bilinear")
    maps = F.interpolate(torch.randn(input_images, classes, 4, 4, generator=generator), size, mode="bicubic")
    return MinMax()(State(maps=maps, images=images))


def square():
    """A bright square of 12 pixels' width, columns and rows 10 to 21, and a round map too wide for it, peak 1."""
    images = torch.full((1, 3, 32, 32), 0.1)
    images[..., 10:22, 10:22] = 0.9
    axis = torch.arange(32) - 15.5
    maps = (1.2 - (axis[:, None] ** 2 + axis**2) / 150).clamp(0, 1)[None, None]
    return State(maps=maps, images=images), images[0, 0] > 0.5


def test_is_mean_field_with_the_map_as_foreground_probability():
    state = batch()
    result = CRF(backend="torch", scale=1.0, **TINY)(state).maps
    assert result.shape == state.maps.shape and result.dtype == torch.float32
    for k in range(3):
        m = state.maps[:, k].clamp(0.01, 0.99)
        expected = mean_field(-torch.stack([1 - m, m], 1).log(), state.images, **TINY)[:, 1]
        torch.testing.assert_close(result[:, k], expected, atol=1e-5, rtol=0)


def test_background_is_the_map_value_at_even_odds():
    state = State(maps=torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 1, 4), images=torch.rand(1, 3, 1, 4))
    # No kernels: the posterior is the unary's softmax. m = 1/4, b = 1/4: even. m = 1/2: odds 3. Ends: eps 0.1.
    result = CRF(0.25, eps=0.1, gaussian=None, bilateral=None, backend="torch")(state).maps.flatten()
    odds = torch.tensor([0.1 / 0.9 * 3, 1.0, 3.0, 9.0 * 3])
    torch.testing.assert_close(result, odds / (1 + odds))


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_the_map_to_the_edges(backend):
    state, truth = square()
    mask = CRF(backend=backend, bilateral=(20, 13, 5))(state).maps[0, 0] > 0.5
    before = state.maps[0, 0] > 0.5
    assert (before & truth).sum() / (before | truth).sum() < 0.9
    assert mask.equal(truth)


@needs_pydensecrf
def test_backends_agree():
    state = batch(size=(64, 48))
    exact, approximate = (CRF(backend=b)(state).maps for b in ("torch", "pydensecrf"))
    assert (exact - approximate).abs().mean() <= 0.03
    assert ((exact > 0.5) != (approximate > 0.5)).float().mean() <= 0.03


@needs_pydensecrf
def test_auto_takes_pydensecrf_on_the_cpu_unless_a_scale_is_given():
    state = batch()
    assert CRF(**TINY)(state).maps.equal(CRF(backend="pydensecrf", **TINY)(state).maps)
    assert CRF(scale=0.5, **TINY)(state).maps.equal(CRF(backend="torch", scale=0.5, **TINY)(state).maps)


def test_auto_takes_torch_without_pydensecrf(monkeypatch):
    monkeypatch.setattr(lattice, "available", lambda: False)
    state = batch()
    assert CRF(**TINY)(state).maps.equal(CRF(backend="torch", **TINY)(state).maps)


def test_missing_package_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(lattice, "available", lambda: False)
    with pytest.raises(PipelineError) as error:
        CRF(backend="pydensecrf")
    message = str(error.value)
    assert message.startswith("CRF(backend='pydensecrf') needs pydensecrf, which is not installed.")
    assert "pip install 'camtools[crf]'" in message and "backend='torch'" in message


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_map_is_on_its_own(backend):
    state = batch()
    step = CRF(backend=backend, **TINY)
    together = step(state).maps
    for b in range(2):
        for k in range(3):
            alone = step(State(maps=state.maps[b : b + 1, k : k + 1], images=state.images[b : b + 1])).maps
            torch.testing.assert_close(together[b, k], alone[0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_maps_without_contrast_or_not_finite_count_as_zeros(backend, bad):
    state = batch()
    maps = state.maps.clone()
    maps[0, 1] = 0.7
    if bad is not None:
        maps[0, 1, 3, 4] = bad
    step = CRF(backend=backend, **TINY)
    result, clean = step(state.replace(maps=maps)).maps, step(state).maps
    assert result[0, 1].eq(0).all()
    torch.testing.assert_close(result[1], clean[1])
    torch.testing.assert_close(result[0, ::2], clean[0, ::2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_one_colour_images(backend, level):
    state = batch()
    result = CRF(backend=backend, **TINY)(state.replace(images=torch.full_like(state.images, level))).maps
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_stays_and_no_gradient(backend):
    state = batch()
    copies = state.maps.clone(), state.images.clone()
    result = CRF(backend=backend, **TINY)(state.replace(maps=state.maps.clone().requires_grad_()))
    assert not result.maps.requires_grad
    assert state.maps.equal(copies[0]) and state.images.equal(copies[1])


def test_in_a_pipeline():
    state, truth = square()
    pipeline = Pipeline([MinMax(), CRF(bilateral=(20, 13, 5), backend="torch"), FixedThreshold(0.5)])
    assert pipeline.needs_image
    assert pipeline(state).masks[0, 0].equal(truth)


def test_maps_that_are_not_normalised_are_refused():
    state = batch()
    with pytest.raises(PipelineError, match=r"needs maps within \[0, 1\], but these go from -3 to 5. Put MinMax\(\)"):
        CRF()(state.replace(maps=state.maps * 8 - 3))
    assert repr(Pipeline([NWC(), MinMax(), CRF()]))  # the normalising step may stand before it


def test_missing_or_wrong_images_are_named():
    state = batch()
    with pytest.raises(PipelineError, match="needs images, but this state has none"):
        CRF()(state.replace(images=None))
    with pytest.raises(PipelineError, match=r"shape \(2, 3, 24, 19\) .* expected floats \(2, 3, 24, 20\)"):
        CRF()(state.replace(images=state.images[..., 1:]))
    with pytest.raises(PipelineError, match=r"expected RGB in \[0, 1\]"):
        CRF()(state.replace(images=state.images * 255))
    with pytest.raises(PipelineError, match="needs maps"):
        CRF()(State())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("background", 0, "background must be a number, 0 < background < 1."),
        ("background", "0.5", "background must be a number"),
        ("eps", 0.5, "eps must be a number, 0 < eps < 0.5."),
        ("eps", math.nan, "eps must be a number"),
        ("backend", "numpy", "backend must be 'auto', 'torch' or 'pydensecrf'."),
        ("iterations", 0, "iterations must be a whole number of at least 1."),
        ("bilateral", (80, 13), "bilateral must be (sxy, srgb, compat)"),
        ("scale", 1.5, "scale must be a number, 0 < scale <= 1"),
    ],
)
def test_bad_parameters_are_named(name, value, expected):
    with pytest.raises(PipelineError) as error:
        CRF(**{name: value})
    assert f"CRF({name}={value!r}): {expected}" in str(error.value)


@needs_pydensecrf
def test_scale_is_for_torch():
    with pytest.raises(PipelineError, match="scale is for backend='torch'"):
        CRF(backend="pydensecrf", scale=0.5)


def test_declares_itself():
    step = CRF()
    assert repr(step) == (
        "CRF(background=0.5, eps=0.01, gaussian=(3, 3), bilateral=(80, 13, 10), iterations=10, "
        "backend='auto', scale=None)"
    )
    assert (step.stage, step.resolution, step.needs_image) == (Stage.REFINE, "image", True)
