"""Pipelines on maps from elsewhere: two other libraries' Grad-CAM, and maps made by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import camtools
from camtools import Pipeline, PipelineError
from camtools.images import Geometry
from camtools.steps import CAM, CRF, IVR, NWC, FixedThreshold, MinMax, PaS, State
from camtools.steps.dense_crf import mean_field

SIZE = (24, 32)


@pytest.fixture
def batch():
    return torch.randn(3, 3, *SIZE)


def minmax(maps):
    """Return each map (B, K, H, W) on [0, 1], in numpy."""
    maps = maps.numpy().astype(np.float64)
    low, high = (f(maps, axis=(-2, -1), keepdims=True) for f in (np.min, np.max))
    return (maps - low) / (high - low)


def test_a_map_made_by_hand_passes_every_stage_in_numbers():
    own = torch.tensor([[[[-2.0, 0.0], [2.0, 6.0]]]])
    done = Pipeline([MinMax(), FixedThreshold(0.3)])(State(maps=own))
    assert done.maps.tolist() == [[[[0.0, 0.25], [0.5, 1.0]]]]
    assert done.masks.tolist() == [[[[False, False], [True, True]]]]
    assert done.thresholds.tolist() == [[pytest.approx(0.3)]]
    assert torch.equal(done.raw_maps, own)
    done = Pipeline([IVR(percentile=100 / 3), FixedThreshold(0.3)])(State(maps=own))
    assert done.maps.tolist() == [[[[0.0, 0.0], [pytest.approx(1 / 3), 1.0]]]]  # from the second lowest, 0, up
    done = Pipeline([PaS(percentile=100, threshold=0.6)])(State(maps=own))
    assert done.masks.tolist() == [[[[False, False], [False, True]]]]


def test_maps_are_taken_to_the_images_pixels_once():
    own = torch.tensor([[[[0.0, 4.0]]]])
    done = Pipeline([FixedThreshold(0.5)])(State(maps=own, resize=Geometry.identity((1, 4)).resize))
    assert done.maps.tolist() == [[[[0.0, 0.25, 0.75, 1.0]]]]
    assert done.masks.tolist() == [[[[False, False, True, True]]]]


def test_a_crf_on_brought_maps_is_mean_field_by_hand():
    maps, images = torch.rand(2, 2, 12, 10), torch.rand(2, 3, 12, 10)
    refined = Pipeline([MinMax(), CRF(background=0.4, eps=0.01, iterations=3, backend="torch", scale=1)])(
        State(maps=maps, images=images)
    )
    share = torch.from_numpy(minmax(maps)).clamp(0.01, 0.99)
    for k in range(2):
        unary = -torch.stack([(1 - share[:, k]) * 0.4, share[:, k] * 0.6], 1).log()
        expected = mean_field(unary, images.double(), iterations=3)[:, 1]
        torch.testing.assert_close(refined.maps[:, k].double(), expected, atol=1e-4, rtol=0)


def test_weights_steps_have_nothing_to_work_on():
    with pytest.raises(PipelineError, match=r"NWC\(\) needs weights, but this state brings finished maps"):
        Pipeline([NWC()])(State(maps=torch.rand(1, 1, 2, 2)))


def own_grad_cam(model, batch, labels, steps):
    """Run steps on camtools' own features: on a GAP head CAM with a ReLU is Grad-CAM, up to a positive factor."""
    found = camtools.wrap(model).activations(batch)
    weights = found.weights(torch.tensor(labels)[:, None]).detach()
    resize = Geometry.identity(SIZE).resize
    return Pipeline([CAM(relu=True), *steps])(State(features=found.features.detach(), weights=weights, resize=resize))


@pytest.mark.parametrize("steps", [[FixedThreshold(0.35)], [IVR(30), PaS(90, 0.5)]], ids=["fixed", "ivr-pas"])
def test_torch_cams_map(tiny, batch, steps):
    methods = pytest.importorskip("torchcam.methods", reason="needs torch-cam: pip install 'camtools[bench]'")
    labels = [0, 2, 1]
    with methods.GradCAM(tiny, target_layer="relu") as extractor:
        (maps,) = extractor(labels, tiny(batch.clone().requires_grad_()), normalized=False)
    maps = maps.detach()[:, None]
    assert maps.shape == (3, 1, 6, 8)
    done = Pipeline(steps)(State(maps=maps, resize=Geometry.identity(SIZE).resize))
    own = own_grad_cam(tiny, batch, labels, steps)
    torch.testing.assert_close(done.maps, own.maps, atol=1e-5, rtol=0)
    certain = (own.maps - own.thresholds[..., None, None]).abs() > 1e-4
    assert torch.equal(done.masks & certain, own.masks & certain) and certain.float().mean() > 0.99
    if isinstance(steps[0], FixedThreshold):
        upsampled = F.interpolate(maps, SIZE, mode="bilinear", align_corners=False)
        by_hand = minmax(upsampled)
        np.testing.assert_allclose(done.maps.numpy(), by_hand, atol=1e-5)
        borderline = np.abs(by_hand - 0.35) < 1e-4
        assert ((done.masks.numpy() == (by_hand > 0.35)) | borderline).all()
    assert 0 < done.masks.float().mean() < 1


def test_pytorch_grad_cams_map(tiny, batch):
    library = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install 'camtools[bench]'")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    labels = [0, 2, 1]
    with library.GradCAM(model=tiny, target_layers=[tiny.relu]) as extractor:
        given = extractor(input_tensor=batch, targets=[ClassifierOutputTarget(label) for label in labels])
    maps = torch.from_numpy(given)[:, None]  # its maps come normalised, at the input's size
    assert maps.shape == (3, 1, *SIZE)
    done = Pipeline([MinMax(), FixedThreshold(0.35)])(State(maps=maps))
    by_hand = minmax(maps)
    np.testing.assert_allclose(done.maps.numpy(), by_hand, atol=1e-6)
    borderline = np.abs(by_hand - 0.35) < 1e-6
    assert ((done.masks.numpy() == (by_hand > 0.35)) | borderline).all()
    own = own_grad_cam(tiny, batch, labels, [FixedThreshold(0.35)])
    torch.testing.assert_close(done.maps, own.maps, atol=1e-3, rtol=0)
    assert (done.masks != own.masks).float().mean() < 0.01
