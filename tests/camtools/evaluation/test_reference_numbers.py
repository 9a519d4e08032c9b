"""The published protocol on real images: numbers that an independent script found for the same weights."""

import pytest

import camtools
from camtools.datasets import BoxFolder

ILSVRC = {  # MaxBoxAcc, MaxBoxAccV2 of the first 1,000 validation images, stock MobileNetV2
    "cam": (62.1, 59.6),
    "NWC": (62.6, 59.8),
    "AbsoluteNegative": (61.6, 59.0),
}
CUB = {  # every second image of cub/test, fine-tuned MobileNetV2
    "cam": (54.1, 53.1),
    "NWC": (59.6, 55.6),
    "AbsoluteNegative": (62.3, 56.9),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "images", "chosen", "expected"),
    [
        ("mobilenet_v2_imagenet", "ilsvrc_val", {"limit": 1000}, ILSVRC),
        ("mobilenet_v2_cub", "cub", {"every": 2}, CUB),
    ],
)
def test_mobilenet(shared, weights, images, chosen, expected):
    loaded = camtools.load_model("torchvision/mobilenet_v2", shared / "weights" / f"{weights}.safetensors")
    result = camtools.evaluate(
        loaded.model,
        BoxFolder(shared / "data" / images / "test"),
        "cam;NWC;AbsoluteNegative",
        transform=loaded.preprocess,
        class_names=loaded.class_names,
        bootstrap=0,
        progress=False,
        **chosen,
    )
    assert not result.failed
    for name, (one, two) in expected.items():
        found = result.metrics[name]
        assert found["MaxBoxAcc"].value == pytest.approx(one, abs=0.15)  # one image of 1,449 is 0.07
        assert found["MaxBoxAccV2"].value == pytest.approx(two, abs=0.15)
