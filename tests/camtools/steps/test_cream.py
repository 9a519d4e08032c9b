import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import camtools
from camtools import Pipeline
from camtools.context_bank import ContextBank
from camtools.errors import PipelineError
from camtools.steps import CREAM, MinMax, Stage, State


def run(features, maps, labels=None, **settings):
    return CREAM(**settings)(State(features=features, maps=maps, labels=labels)).maps


def bank_of(foreground, background, counts=None):
    foreground, background = torch.tensor(foreground), torch.tensor(background)
    counts = torch.ones(len(foreground), 2, dtype=torch.int64) if counts is None else torch.tensor(counts)
    return ContextBank(foreground, background, counts)


def noise(seed=0, shape=(3, 2, 8, 5, 6)):
    """Features with negative values and maps of both signs, and labels."""
    batch, classes, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, height, width, generator=generator) + 0.3
    maps = torch.randn(batch, classes, height, width, generator=generator)
    return features, maps, torch.randint(4, (batch, classes), generator=generator)


def from_the_paper(f, cam, iterations, sigma, delta, start=None, calibrate=True, add_cam=True):
    """Eq. 3-12 for one image and class in float64: f (N, C), cam (N,). Also the log-likelihood at every E-step."""
    inside = cam > delta * cam.max()
    v_fg, v_bg = (f[inside].mean(0), f[~inside].mean(0)) if start is None else start
    a_fg = a_bg = 0.5
    z_fg = z_bg = np.full(len(f), 0.5)
    likelihood = []
    for iteration in range(iterations):
        if iteration:
            v_fg, v_bg = (z_fg[:, None] * f).sum(0) / z_fg.sum(), (z_bg[:, None] * f).sum(0) / z_bg.sum()
            a_fg, a_bg = z_fg.mean(), z_bg.mean()
        p_fg, p_bg = (np.exp(sigma * (f @ v) / (np.linalg.norm(f, axis=1) * np.linalg.norm(v))) for v in (v_fg, v_bg))
        total = a_fg * p_fg + a_bg * p_bg
        z_fg, z_bg = a_fg * p_fg / total, a_bg * p_bg / total
        likelihood.append(np.log(total).sum())
    chosen = z_bg if calibrate and z_bg[inside].mean() > z_fg[inside].mean() else z_fg
    normal = (cam - cam.min()) / (cam.max() - cam.min())
    return SimpleNamespace(map=chosen + normal if add_cam else chosen, likelihood=np.array(likelihood))


# Four positions: (2, 0) is the CAM's foreground; (3, 0), (0, 1), (0, 3) are not. V_fg = (2, 0), V_bg = (1, 4/3), so
# the cosines to them are 1 and 0.6 along the first channel, 0 and 0.8 along the second; sigma makes these 2 : 1, 1 : 4.
HAND_F = torch.tensor([[[[2.0, 3.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 3.0]]]])
HAND_M = torch.tensor([[[[4.0, 0.5], [0.0, 0.0]]]])
HAND_SIGMA = 2.5 * math.log(2)


def test_first_iteration_by_hand():
    result = run(HAND_F, HAND_M, iterations=1, sigma=HAND_SIGMA, add_cam=False)
    torch.testing.assert_close(result.flatten(), torch.tensor([2 / 3, 2 / 3, 1 / 5, 1 / 5]))


def test_second_iteration_by_hand():
    # V_fg ~ (2/3 · (2 + 3), 1/5 · (1 + 3)) ~ (25, 6); V_bg ~ (1/3 · 5, 4/5 · 4) ~ (25, 48); a_fg = 13/30, a_bg = 17/30
    prior = math.log(13 / 17)
    first = HAND_SIGMA * (25 / math.sqrt(661) - 25 / math.sqrt(2929)) + prior
    second = HAND_SIGMA * (6 / math.sqrt(661) - 48 / math.sqrt(2929)) + prior
    z = [1 / (1 + math.exp(-value)) for value in (first, first, second, second)]
    result = run(HAND_F, HAND_M, sigma=HAND_SIGMA, add_cam=False)
    torch.testing.assert_close(result.flatten(), torch.tensor(z))
    summed = run(HAND_F, HAND_M, sigma=HAND_SIGMA)  # the normalised CAM is 1, 1/8, 0, 0
    torch.testing.assert_close(summed.flatten(), torch.tensor(z) + torch.tensor([1.0, 0.125, 0.0, 0.0]))


@pytest.mark.parametrize("iterations", [1, 2, 3, 6])
@pytest.mark.parametrize(("calibrate", "add_cam"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("with_bank", [False, True])
def test_equals_the_paper_in_float64(iterations, calibrate, add_cam, with_bank):
    features, maps, labels = noise()
    generator = torch.Generator().manual_seed(1)
    bank = ContextBank(*torch.randn(2, 4, 8, generator=generator), torch.ones(4, 2, dtype=torch.int64))
    settings = {"iterations": iterations, "sigma": 8.0, "delta": 0.2, "calibrate": calibrate, "add_cam": add_cam}
    result = run(features, maps, labels if with_bank else None, bank=bank if with_bank else None, **settings)
    for b in range(len(maps)):
        for k in range(maps.shape[1]):
            f, cam = features[b].flatten(1).T.double().numpy(), maps[b, k].flatten().double().numpy()
            start = [v[labels[b, k]].double().numpy() for v in (bank.foreground, bank.background)]
            expected = from_the_paper(f, cam, start=start if with_bank else None, **settings).map
            np.testing.assert_allclose(result[b, k].flatten().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("with_bank", [False, True])
def test_centred_equals_the_paper_on_what_the_mean_leaves(iterations, with_bank):
    features, maps, labels = noise()
    bank = ContextBank(*torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1)), torch.ones(4, 2).long())
    settings = {"iterations": iterations, "sigma": 8.0, "delta": 0.2}
    result = run(features, maps, labels, bank=bank if with_bank else None, centre=True, **settings)
    for b in range(len(maps)):
        for k in range(maps.shape[1]):
            f, cam = features[b].flatten(1).T.double().numpy(), maps[b, k].flatten().double().numpy()
            mean = f.mean(0)
            start = [v[labels[b, k]].double().numpy() - mean for v in (bank.foreground, bank.background)]
            expected = from_the_paper(f - mean, cam, start=start if with_bank else None, **settings).map
            np.testing.assert_allclose(result[b, k].flatten().numpy(), expected, atol=2e-5)


def test_centred_does_not_see_what_all_features_share():
    features, maps, labels = noise()
    shared = torch.linspace(0, 20, 8)
    bank = ContextBank(*torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1)), torch.ones(4, 2).long())
    moved = ContextBank(bank.foreground + shared, bank.background + shared, bank.counts)
    for original, shifted in ((None, None), (bank, moved)):
        plain = run(features, maps, labels, bank=original, centre=True)
        result = run(features + shared[:, None, None], maps, labels, bank=shifted, centre=True)
        torch.testing.assert_close(result, plain, atol=1e-4, rtol=1e-4)
        uncentred = run(features + shared[:, None, None], maps, labels, bank=shifted)
        assert (uncentred - plain).abs().max() > 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_centred_constant_features_give_one_half(value):
    result = run(torch.full((1, 3, 5, 5), value), noise()[1][:1, :1, :5, :5], add_cam=False, centre=True)
    torch.testing.assert_close(result, torch.full((1, 1, 5, 5), 0.5))


def test_calibration_takes_the_larger_map():
    swapped = bank_of([[0.0, 1.0]], [[1.0, 0.0]])
    labels = torch.zeros(1, 1, dtype=torch.int64)
    plain = run(HAND_F, HAND_M, labels, bank=swapped, calibrate=False, add_cam=False)
    chosen = run(HAND_F, HAND_M, labels, bank=swapped, add_cam=False)
    assert plain[0, 0, 0, 0] < 0.01 and chosen[0, 0, 0, 0] > 0.99
    torch.testing.assert_close(chosen, 1 - plain)
    right = bank_of([[1.0, 0.0]], [[0.0, 1.0]])
    torch.testing.assert_close(run(HAND_F, HAND_M, labels, bank=right, add_cam=False), chosen)


@pytest.mark.parametrize("sigma", [1e-6, 100, 1e6, 1e30, 1e300])
def test_no_sigma_overflows(sigma):
    features, maps, _ = noise()
    result = run(features, maps, sigma=sigma, iterations=5, add_cam=False)
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1


def test_steepest_is_the_nearest_centre():
    result = run(HAND_F, HAND_M, sigma=1e6, add_cam=False)
    assert result.flatten().tolist() == [1, 1, 0, 0]


def test_likelihood_never_falls_where_all_features_have_one_length():
    """Then the weighted mean is the maximiser: this is EM for two von Mises-Fisher distributions of one known kappa."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        f = generator.normal(size=(40, 5)) + 0.5
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        likelihood = from_the_paper(f, generator.normal(size=40), 15, 8.0, 0.2).likelihood
        assert (np.diff(likelihood) > -1e-9).all(), seed


def test_likelihood_may_fall_otherwise():
    """The maximiser of the expected sum of cosines is the mean of F / |F|; the paper's mean weighs by |F| as well."""
    fallen = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        f = (generator.normal(size=(40, 5)) + 0.5) * generator.exponential(size=(40, 1))
        fallen += (np.diff(from_the_paper(f, generator.normal(size=40), 15, 8.0, 0.2).likelihood) < -1e-3).any()
    assert fallen > 0


@pytest.mark.parametrize("add_cam", [True, False])
def test_without_foreground_the_cam_stays(add_cam):
    maps = torch.tensor([[[[-4.0, -1.0], [-2.0, -3.0]]]])
    result = run(HAND_F, maps, add_cam=add_cam)
    torch.testing.assert_close(result.flatten(), torch.tensor([0.0, 1.0, 2 / 3, 1 / 3]))


@pytest.mark.parametrize("add_cam", [True, False])
def test_without_background_the_cam_stays(add_cam):
    maps = torch.tensor([[[[4.0, 1.0], [2.0, 3.0]]]])  # all above 0.2 of the maximum
    result = run(HAND_F, maps, add_cam=add_cam)
    torch.testing.assert_close(result.flatten(), torch.tensor([1.0, 0.0, 1 / 3, 2 / 3]))


@pytest.mark.parametrize("value", [-2.0, 0.0, 2.0])
def test_constant_cam_counts_as_zeros(value):
    assert run(HAND_F, torch.full((1, 1, 2, 2), value)).eq(0).all()


@pytest.mark.parametrize("value", [-2.0, 0.0, 2.0])
def test_a_bank_works_where_the_cam_says_nothing(value):
    labels = torch.zeros(1, 1, dtype=torch.int64)
    bank = bank_of([[1.0, 0.0]], [[0.0, 1.0]])
    result = run(HAND_F, torch.full((1, 1, 2, 2), value), labels, bank=bank).flatten()
    assert (result[:2] > 0.99).all() and (result[2:] < 0.01).all()


def test_zero_features_give_one_half():
    result = run(torch.zeros(1, 2, 2, 2), HAND_M, add_cam=False)
    assert result.eq(0.5).all()
    assert run(torch.zeros(1, 2, 2, 2), HAND_M).flatten().tolist() == [1.5, 0.625, 0.5, 0.5]


def test_one_zero_feature_is_between():
    features = HAND_F.clone()
    features[0, :, 1, 1] = 0
    assert run(features, HAND_M, iterations=1, add_cam=False)[0, 0, 1, 1] == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["maps", "features"])
def test_what_is_not_finite_counts_as_zeros_and_alone(bad, where):
    features, maps, _ = noise()
    whole = run(features, maps)
    {"maps": maps, "features": features}[where][1, 0, 2, 3] = bad
    result = run(features, maps)
    assert result[1, 0].eq(0).all() and result.isfinite().all()
    torch.testing.assert_close(result[[0, 2]], whole[[0, 2]])


def test_missing_classes_start_from_the_image():
    features, maps, _ = noise()
    labels = torch.tensor([[0, 1], [1, 0], [1, 1]])
    bank = ContextBank(torch.ones(2, 8), -torch.ones(2, 8), torch.tensor([[3, 3], [3, 0]]))
    own, all_own = run(features, maps, labels, bank=bank), run(features, maps)
    assert bank.missing == [1]
    torch.testing.assert_close(own[labels == 1], all_own[labels == 1])
    assert not own[labels == 0].allclose(all_own[labels == 0], atol=1e-2)


def test_each_image_and_class_is_on_its_own():
    features, maps, labels = noise()
    bank = ContextBank(*torch.randn(2, 4, 8), torch.ones(4, 2, dtype=torch.int64))
    for chosen in (None, bank):
        together = run(features, maps, labels, bank=chosen)
        for b in range(3):
            for k in range(2):
                alone = run(features[b : b + 1], maps[b : b + 1, k : k + 1], labels[b : b + 1, k : k + 1], bank=chosen)
                torch.testing.assert_close(together[b, k], alone[0, 0], atol=1e-5, rtol=1e-5)


def test_features_scale_does_not_matter():
    features, maps, _ = noise()
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(run(features * scale, maps), run(features, maps), atol=1e-5, rtol=1e-5)


def test_input_untouched_and_float32():
    features, maps, _ = noise()
    before = features.clone(), maps.clone()
    assert run(features.double(), maps.half()).dtype == torch.float32
    run(features, maps)
    assert features.equal(before[0]) and maps.equal(before[1])


def test_in_a_pipeline_the_raw_maps_stay():
    features, _, _ = noise()
    weights = torch.randn(1, 2, 8)
    done = Pipeline([CREAM()])(State(features=features, weights=weights))
    torch.testing.assert_close(done.raw_maps, torch.einsum("bchw,okc->bkhw", features, weights))
    torch.testing.assert_close(done.maps, MinMax()(State(maps=run(features, done.raw_maps))).maps)


def test_explain_hands_the_classes_on(tiny):
    bank = bank_of([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]], [[0.0, 0, 0, 1]] * 3)
    images = torch.rand(2, 3, 32, 32)
    result = camtools.explain(tiny, images, target=[[0, 2], [1, 0]], pipeline=[CREAM(bank, add_cam=False)])
    with torch.no_grad():
        model = camtools.wrap(tiny).activations(images)
        labels = torch.tensor([[0, 2], [1, 0]])
        state = State(features=model.features, maps=model.maps(labels), labels=labels)
    expected = MinMax()(CREAM(bank, add_cam=False)(state)).maps
    for b in range(2):
        for k in range(2):
            assert result[b][k].label == labels[b, k]
            back = torch.nn.functional.interpolate(
                CREAM(bank, add_cam=False)(state).maps, (32, 32), mode="bilinear", align_corners=False
            )
            torch.testing.assert_close(result[b][k].map, MinMax()(State(maps=back)).maps[b, k], atol=1e-4, rtol=1e-4)
    assert not expected[0, 0].allclose(expected[1, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bank": "birds"}, "CREAM(bank='birds'): bank must be a ContextBank or None"),
        ({"iterations": 0}, "CREAM(iterations=0): iterations must be a whole number of at least 1"),
        ({"iterations": True}, "CREAM(iterations=True): iterations must be a whole number"),
        ({"iterations": 2.0}, "CREAM(iterations=2.0): iterations must be a whole number"),
        ({"sigma": 0}, "CREAM(sigma=0): sigma must be a finite number above 0"),
        ({"sigma": math.inf}, "CREAM(sigma=inf): sigma must be a finite number above 0"),
        ({"sigma": math.nan}, "CREAM(sigma=nan): sigma must be a finite number above 0"),
        ({"sigma": "8"}, "CREAM(sigma='8'): sigma must be a finite number above 0"),
        ({"delta": 1}, "CREAM(delta=1): delta must be a number, 0 <= delta < 1"),
        ({"delta": -0.1}, "CREAM(delta=-0.1): delta must be a number, 0 <= delta < 1"),
        ({"calibrate": 1}, "CREAM(calibrate=1): calibrate must be True or False"),
        ({"centre": 1}, "CREAM(centre=1): centre must be True or False"),
        ({"add_cam": None}, "CREAM(add_cam=None): add_cam must be True or False"),
    ],
)
def test_parameters_out_of_range_are_named(settings, message):
    with pytest.raises(PipelineError) as error:
        CREAM(**settings)
    assert message in str(error.value)


def test_what_a_state_lacks_is_named():
    bank = bank_of([[1.0, 0.0]], [[0.0, 1.0]])
    with pytest.raises(PipelineError, match="needs features"):
        CREAM()(State(maps=HAND_M))
    with pytest.raises(PipelineError, match="needs maps"):
        CREAM()(State(features=HAND_F))
    with pytest.raises(PipelineError, match="needs labels"):
        run(HAND_F, HAND_M, bank=bank)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(PipelineError, match=r"features are \(1, 2, 2, 2\) and maps \(1, 1, 4, 4\)"):
        run(HAND_F, torch.rand(1, 1, 4, 4))
    with pytest.raises(PipelineError, match=r"features are \(1, 2, 2, 2\) and maps \(2, 1, 2, 2\)"):
        run(HAND_F, HAND_M.expand(2, 1, 2, 2))
    bank = bank_of([[1.0, 0.0]], [[0.0, 1.0]])
    with pytest.raises(PipelineError, match=r"labels are \(1, 2\), but maps \(1, 1, 2, 2\): expected \(1, 1\)"):
        run(HAND_F, HAND_M, torch.zeros(1, 2, dtype=torch.int64), bank=bank)


def test_bank_of_another_model_is_refused():
    bank = bank_of([[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    with pytest.raises(PipelineError, match="does not fit features of 2 channels: expected 3"):
        run(HAND_F, HAND_M, torch.zeros(1, 1, dtype=torch.int64), bank=bank)
    bank = bank_of([[1.0, 0.0]], [[0.0, 1.0]])
    for label in (1, -1):
        with pytest.raises(PipelineError, match=rf"class {label} is not in .*expected 0 to 0"):
            run(HAND_F, HAND_M, torch.full((1, 1), label), bank=bank)


def test_declares_itself():
    text = "CREAM(bank=None, iterations=2, sigma=8.0, delta=0.2, calibrate=True, add_cam=True, centre=False)"
    assert (repr(CREAM()), CREAM.stage, CREAM.resolution) == (text, Stage.REFINE, "feature")
