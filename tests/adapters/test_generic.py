"""Classifiers that no other adapter knows."""

import pytest
import torch
from torch import nn

from camtools import wrap
from camtools.model.adapter import find_adapter
from camtools_adapters.generic import GenericAdapter


def test_it_knows_every_module_and_tells_nothing_about_images(tiny):
    adapter = GenericAdapter()
    assert adapter.matches(nn.Linear(1, 1)) and adapter.matches(tiny)
    assert adapter.data_config(tiny) is None and adapter.class_names(tiny) is None
    assert find_adapter(tiny).name == "generic"


def test_a_plain_network(tiny):
    x = torch.randn(2, 3, 16, 24)
    cam_model = wrap(tiny)
    f = torch.relu(tiny.conv(x))
    torch.testing.assert_close(cam_model.maps(x), torch.einsum("kc,bchw->bkhw", tiny.fc.weight, f))
    assert cam_model.decomposition.exact and cam_model.decomposition.adapter == "generic"


def test_the_example_is_224_pixels_and_always_the_same(tiny):
    cam_model = wrap(tiny)
    assert cam_model.example().shape == (1, 3, 224, 224)
    assert torch.equal(cam_model.example(), cam_model.example())
    assert wrap(tiny.half()).example().dtype is torch.float16


@pytest.mark.parametrize(
    ("build", "exact", "grid"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(True), nn.Flatten(), nn.Linear(2048, 4)), False, 16),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                nn.Linear(8, 4)
            ),
            True,
            16,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(16), nn.Conv2d(8, 4, 1), nn.Flatten()
            ),
            True,
            16,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(),
                nn.LayerNorm(8), nn.Linear(8, 4)
            ),
            False,
            16,
        ),
    ],
    ids=["flatten", "max pooling", "convolution as classifier", "norm after pooling"],
)  # fmt: skip
def test_usual_heads(build, exact, grid):
    model = build().eval()
    cam_model = wrap(model)
    x = torch.randn(2, 3, 32, 32)
    found = cam_model.activations(x)
    assert found.decomposition.exact is exact and found.decomposition.grid == (grid, grid)
    f = found.features.detach()
    tail = [m for name, m in model.named_children() if int(name) > int(found.decomposition.layer)]
    for image, target in ((0, 1), (1, 3)):
        one = f[image : image + 1]
        weights = torch.autograd.functional.jacobian(lambda t, k=target: nn.Sequential(*tail)(t)[0, k], one)
        if exact and isinstance(tail[0], nn.AdaptiveMaxPool2d):  # W for every position, not only where the maximum is
            weights = tail[-1].weight[target].view(1, -1, 1, 1).expand_as(one) / one[0, 0].numel()
        want = (weights * one).sum(1)[0] * grid * grid
        torch.testing.assert_close(found.maps()[image, target], want, atol=1e-5, rtol=1e-4)
