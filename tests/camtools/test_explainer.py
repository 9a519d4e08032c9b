"""From images to explanations, on a classifier whose answers are known: F is the image, the classes its colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import nn
from torchvision.transforms import v2

import camtools
from camtools import Explainer, Explanation, InputError, ModelError, PipelineError, Preprocess, TargetError
from camtools.steps import FixedThreshold

NAMES = ["red", "green", "blue"]
HALF = FixedThreshold(0.5)  # a blurred edge crosses half its height just where the sharp one was


class Colours(nn.Module):
    """Logits are the mean red, green and blue of the image, so the map of a class is its colour channel."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, classes, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])
            self.fc.weight.copy_(torch.eye(3)[:classes])
        self.eval()

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))


def plain(resize, size=(32, 32)):
    return Preprocess(input_size=size, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))


def painted(height, width, box, colour=0):
    """A black image (H, W, 3) uint8 with one square of a pure colour."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1, colour] = 255
    return image


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(one, other, exactly=True):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-5, "atol": 1e-6}
    assert (one.label, one.name, one.size) == (other.label, other.name, other.size)
    assert one.score == pytest.approx(other.score, abs=tolerance["atol"])
    for field in ("map", "raw_map", "logits"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field), **tolerance)
    assert torch.equal(one.mask, other.mask)
    assert one.boxes.tolist() == other.boxes.tolist()


@pytest.fixture
def explainer():
    return Explainer(Colours(), HALF, transform=plain((32, 32)), class_names=NAMES, batch_size=2)


@pytest.fixture
def tiny_explainer(make_tiny):
    def make(**options):
        return Explainer(make_tiny(5), transform=plain((32, 32)), **options)

    return make


# Boxes --------------------------------------------------------------------------------------------------------------


RESIZE_CROP = v2.Compose([v2.ToImage(), v2.Resize(40), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)])
SQUASH = v2.Compose([v2.ToImage(), v2.Resize((32, 32)), v2.ToDtype(torch.float32, scale=True)])


@pytest.mark.parametrize(
    ("transform", "height", "width", "box"),
    [
        (plain((32, 32)), 64, 64, (20, 30, 40, 44)),
        (plain((32, 32)), 96, 64, (10, 33, 30, 66)),
        (plain((32, 32)), 64, 128, (40, 10, 88, 50)),
        (plain((32, 32)), 75, 50, (11, 21, 33, 53)),
        (plain((32, 32)), 16, 16, (5, 3, 12, 10)),
        (plain((48, 32), (48, 32)), 96, 96, (0, 0, 30, 40)),
        (plain(32), 64, 64, (20, 30, 40, 44)),
        (plain(32), 64, 128, (40, 10, 88, 50)),
        (plain(40), 120, 80, (20, 34, 60, 80)),
        (plain(40), 100, 137, (50, 30, 90, 77)),
        (plain(None), 40, 60, (20, 10, 30, 30)),
        (SQUASH, 64, 128, (40, 10, 88, 50)),
        (RESIZE_CROP, 120, 80, (20, 34, 60, 80)),
        (RESIZE_CROP, 100, 137, (50, 30, 90, 77)),
    ],
)
@pytest.mark.parametrize("colour", [0, 2])
def test_the_box_of_a_painted_square(transform, height, width, box, colour):
    exp = camtools.explain(
        Colours(), painted(height, width, box, colour), pipeline=HALF, transform=transform, class_names=NAMES
    )
    assert (exp.label, exp.name) == (colour, NAMES[colour])
    assert exp.boxes.tolist() == [list(box)]
    assert exp.box.tolist() == list(box)
    assert exp.box.dtype == torch.int64
    x0, y0, x1, y1 = box
    corners = 4 * (1 + max(height, width) // 32)  # blurring rounds them off
    assert int(exp.mask.sum()) == pytest.approx((x1 - x0) * (y1 - y0), abs=corners)


def test_an_object_beyond_the_crop_is_boxed_as_far_as_it_was_seen():
    exp = camtools.explain(Colours(), painted(64, 128, (0, 20, 64, 50)), pipeline=HALF, transform=plain(32))
    assert exp.box.tolist() == [32, 20, 64, 50]  # the crop shows columns 32 to 96
    assert exp.map.shape == (64, 128)
    for outside in (slice(0, 32), slice(96, 128)):
        assert exp.map[:, outside].abs().max() == 0
        assert not exp.mask[:, outside].any()


def test_outside_the_crop_is_zero_even_where_the_object_fills_what_is_seen():
    exp = camtools.explain(Colours(), painted(64, 128, (32, 0, 96, 32)), pipeline=HALF, transform=plain(32))
    assert exp.map[:, :32].max() == exp.map[:, 96:].max() == 0
    assert exp.box.tolist() == [32, 0, 96, 32]


def test_two_squares_the_larger_first():
    image = np.maximum(painted(64, 64, (4, 4, 14, 14)), painted(64, 64, (30, 30, 60, 50)))
    exp = camtools.explain(Colours(), image, pipeline=HALF, transform=plain((32, 32)))
    assert exp.boxes.tolist() == [[30, 30, 60, 50], [4, 4, 14, 14]]


@pytest.mark.parametrize(("orientation", "stored"), [
    (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270),
    (2, Image.Transpose.FLIP_LEFT_RIGHT), (5, Image.Transpose.TRANSPOSE),
])  # fmt: skip
def test_boxes_of_a_rotated_file_are_upright(explainer, tmp_path, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.fromarray(painted(64, 96, (10, 5, 40, 25)))
    upright.transpose(stored).save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    for image in (tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")):
        exp = explainer(image)
        assert exp.size == (64, 96) and exp.map.shape == (64, 96) and exp.image.size == (96, 64)
        assert exp.box.tolist() == [10, 5, 40, 25]


# Kinds of images, batches, streams ----------------------------------------------------------------------------------


def test_every_kind_of_image_gives_what_its_file_gives(tiny_explainer, tmp_path):
    array = noise(50, 70)
    file = tmp_path / "noise.png"
    Image.fromarray(array).save(file)
    explain = tiny_explainer()
    expected = explain(str(file))
    assert expected.source == str(file)
    kinds = [
        file, Image.open(file), Image.fromarray(array), array, array.astype(np.float32) / 255,
        array.astype(np.float64) / 255, array.astype(np.uint16) * 257, torch.from_numpy(array).permute(2, 0, 1),
    ]  # fmt: skip
    for kind in kinds:
        assert_same(explain(kind), expected)
    for one in explain(kinds):
        assert_same(one, expected)
    assert explain(array).source is None


def test_ready_tensors_are_taken_as_they_are(make_tiny):
    model, x = make_tiny(5), torch.randn(5, 3, 24, 40)
    found = camtools.explain(model, x)
    expected = camtools.wrap(model).maps(x)
    assert len(found) == 5
    for i, exp in enumerate(found):
        assert exp.size == (24, 40) and exp.map.shape == (24, 40) and exp.raw_map.shape == (6, 10)
        torch.testing.assert_close(exp.raw_map, expected[i, exp.label])
        up = nn.functional.interpolate(exp.raw_map[None, None], (24, 40), mode="bilinear")[0, 0]
        torch.testing.assert_close(exp.map, (up - up.min()) / (up.max() - up.min()))
    one = camtools.explain(model, x[2])
    assert isinstance(one, Explanation)
    assert_same(one, found[2], exactly=False)
    assert isinstance(camtools.explain(model, x[2:3]), list)


def test_ready_tensors_of_any_floating_type(make_tiny):
    x = torch.randn(3, 24, 24)
    expected = camtools.explain(make_tiny(5), x)
    assert_same(camtools.explain(make_tiny(5), x.double()), expected)
    assert_same(camtools.explain(make_tiny(5), x.clone().requires_grad_()), expected)


def test_mixed_sizes_stay_in_order(explainer):
    boxes = [(20, 30, 40, 44), (10, 33, 30, 60), (40, 10, 88, 50), (8, 12, 28, 44), (10, 33, 30, 60)]
    sizes = [(64, 64), (96, 64), (64, 128), (64, 64), (96, 64)]
    images = [painted(*size, box, i % 3) for i, (size, box) in enumerate(zip(sizes, boxes, strict=True))]
    found = explainer(images)
    assert [exp.label for exp in found] == [0, 1, 2, 0, 1]
    assert [tuple(exp.box.tolist()) for exp in found] == boxes
    assert [exp.size for exp in found] == sizes
    assert [exp.box.tolist() for exp in explainer.stream(images)] == [exp.box.tolist() for exp in found]


def test_inputs_of_several_shapes_stay_in_order(make_tiny):
    tensors = [torch.randn(3, *size) for size in [(24, 24), (24, 24), (16, 32), (24, 24), (32, 16)]]
    found = camtools.explain(make_tiny(5), tensors)
    for tensor, exp in zip(tensors, found, strict=True):
        assert_same(exp, camtools.explain(make_tiny(5), tensor), exactly=False)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"target": 3}])
def test_batches_and_streams_give_what_single_images_give(tiny_explainer, batch_size, options):
    images = [noise(40 + 8 * (i % 2), 48, i) for i in range(5)]
    explain = tiny_explainer(batch_size=batch_size)
    alone = [tiny_explainer(batch_size=1)(image, **options) for image in images]
    for found in (explain(images, **options), list(explain.stream(iter(images), **options))):
        assert len(found) == 5
        for ours, expected in zip(found, alone, strict=True):
            assert isinstance(ours, list) == isinstance(expected, list) == ("top_k" in options)
            pairs = zip(ours, expected, strict=True) if isinstance(ours, list) else [(ours, expected)]
            for one, other in pairs:
                assert_same(one, other, exactly=False)


def test_a_stream_reads_no_further_ahead_than_it_says(tiny_explainer):
    taken = []
    images = (taken.append(i) or noise(32, 32, i) for i in range(1000))
    stream = tiny_explainer(batch_size=3).stream(images)
    next(stream)
    assert len(taken) == 6
    stream.close()
    assert len(taken) == 6


def test_a_stream_yields_what_comes_before_a_broken_image(tiny_explainer, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    stream = tiny_explainer(batch_size=4).stream([noise(32, 32, i) for i in range(6)] + [broken, noise(32, 32)])
    assert [next(stream).size for _ in range(6)] == [(32, 32)] * 6
    with pytest.raises(InputError, match=r"image 6 \(.*broken\.png.*not an image"):
        next(stream)
    assert list(tiny_explainer().stream([])) == []


def test_one_open_file_many_times(tiny_explainer, tmp_path):
    Image.fromarray(noise(300, 300)).save(tmp_path / "noise.png")
    opened = Image.open(tmp_path / "noise.png")
    found = tiny_explainer()([opened] * 12)
    for exp in found[1:]:
        assert_same(exp, found[0], exactly=False)


# Classes --------------------------------------------------------------------------------------------------------------


def labels(found):
    return [labels(one) for one in found] if isinstance(found, list) else found.label


def test_targets_in_every_form(explainer):
    one = noise(40, 40)
    two = [one, noise(64, 40, 1)]
    best = [exp.label for exp in explainer(two)]
    cases = [
        (one, 2, 2), (one, "blue", 2), (one, "Blue", 2), (one, [0, "green"], [0, 1]), (one, (2,), [2]),
        (one, None, best[0]), (one, torch.tensor(1), 1), (one, torch.tensor([2, 0]), [2, 0]), (one, np.int64(1), 1),
        (two, 1, [1, 1]), (two, [2, "red"], [2, 0]), (two, torch.tensor([0, 2]), [0, 2]),
        (two, np.array([0, 2]), [0, 2]), (two, torch.tensor([[0, 1], [2, 1]]), [[0, 1], [2, 1]]),
        (two, [[0, 1], ["blue", "green"]], [[0, 1], [2, 1]]), (two, None, best), (two, [None, 2], [best[0], 2]),
        (two, [[0, 1, 2], [2]], [[0, 1, 2], [2]]), (two, [1, ["blue", 0]], [[1], [2, 0]]),
        (two, [None, [2, 0]], [[best[0]], [2, 0]]), (two[:1], [1], [1]), (two[:1], [[1, 2]], [[1, 2]]),
        (two, ([torch.tensor(1), torch.tensor([2, 0])]), [[1], [2, 0]]),
    ]  # fmt: skip
    for images, target, expected in cases:
        assert labels(explainer(images, target)) == expected, target
    for target, expected in [
        (1, [1, 1]), ([1, "red"], [[1, 0]] * 2), (torch.tensor(2), [2, 2]), (torch.tensor([2, 1]), [[2, 1]] * 2),
        (None, best),
    ]:  # fmt: skip
        assert labels(list(explainer.stream(two, target))) == expected, target


def test_ragged_targets_are_the_classes_asked_for(explainer):
    image = np.maximum(painted(64, 64, (4, 4, 24, 24), 0), painted(64, 64, (30, 30, 60, 50), 2))
    red, (blue, same_red) = explainer([image, image], [["red"], ["blue", "red"]])
    assert red[0].box.tolist() == same_red.box.tolist() == [4, 4, 24, 24]
    assert blue.box.tolist() == [30, 30, 60, 50]
    assert [exp.name for exp in (*red, blue, same_red)] == ["red", "blue", "red"]


def test_top_k_is_the_likeliest_classes_in_order(tiny_explainer):
    explain, image = tiny_explainer(), noise(40, 40)
    found = explain(image, top_k=3)
    assert labels(found) == found[0].logits.topk(3).indices.tolist()
    assert [exp.score for exp in found] == sorted((exp.score for exp in found), reverse=True)
    for exp in found:
        assert_same(explain(image, exp.label), exp, exactly=False)
    assert len(explain(image, top_k=1)) == 1
    assert np.shape(labels(explain([image, image], top_k=5))) == (2, 5)


def test_scores_and_logits_are_the_models_own(make_tiny):
    model, x = make_tiny(5), torch.randn(4, 3, 24, 24)
    logits = model(x).detach()
    for i, exp in enumerate(camtools.explain(model, x, target=3)):
        torch.testing.assert_close(exp.logits, logits[i])
        assert exp.score == pytest.approx(float(logits[i].softmax(0)[3]), rel=1e-5)
    for i, exp in enumerate(camtools.explain(model, x, target=3, activation="sigmoid")):
        assert exp.score == pytest.approx(float(logits[i, 3].sigmoid()), rel=1e-5)


def test_a_model_with_a_single_score():
    image = painted(64, 64, (20, 30, 40, 44))
    exp = camtools.explain(Colours(1), image, pipeline=HALF, transform=plain((32, 32)), activation="sigmoid")
    mean = 20 * 14 / 64**2
    assert (exp.label, exp.box.tolist()) == (1, [20, 30, 40, 44])
    assert exp.logits.tolist() == pytest.approx([-mean, mean], abs=1e-3)
    assert exp.score == pytest.approx(1 / (1 + np.exp(-mean)), abs=1e-3)


def test_names_come_from_the_caller_or_are_the_index(make_tiny):
    x = torch.randn(3, 24, 24)
    assert camtools.explain(make_tiny(3), x, target=2).name == "2"
    assert camtools.explain(make_tiny(3), x, target=2, class_names=("a", "b", "c")).name == "c"


# The map, the mask, the boxes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["cam", "rcam", "adaptive", [camtools.steps.IVR(45)]])
def test_map_mask_and_threshold_agree(tiny_explainer, pipeline):
    images = [noise(50, 70, i) for i in range(3)]
    for found in tiny_explainer(pipeline=pipeline)(images, top_k=5):
        seen = [exp for exp in found if exp.raw_map.any()]  # clamping may leave a class without weights
        assert len(seen) >= 4
        for exp in seen:
            assert exp.map.dtype == torch.float32 and exp.map.shape == exp.mask.shape == exp.size == (50, 70)
            assert exp.map.min() == 0 and exp.map.max() == pytest.approx(1, abs=1e-6) and exp.map.max() <= 1
            assert exp.mask.dtype == torch.bool and torch.equal(exp.mask, exp.map > exp.threshold)
            assert 0 < exp.threshold < 1 and 0 < int(exp.mask.sum()) < 50 * 70
            boxed = torch.zeros_like(exp.mask)
            for x0, y0, x1, y1 in exp.boxes.tolist():
                boxed[y0:y1, x0:x1] = True
                part = exp.mask[y0:y1, x0:x1]
                assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
            parts, count = ndimage.label(exp.mask.numpy(), structure=np.ones((3, 3)))
            pixels = np.bincount(parts.ravel(), minlength=count + 1)[1:]
            assert len(exp.boxes) == (pixels >= 0.01 * pixels.max()).sum()
            large = np.isin(parts, 1 + np.flatnonzero(pixels >= 0.01 * pixels.max()))
            assert not (torch.from_numpy(large) & ~boxed).any()


@pytest.mark.parametrize("pipeline", ["cam", "rcam", "adaptive"])
def test_a_constant_map_has_no_box(pipeline):
    exp = camtools.explain(Colours(), np.zeros((40, 60, 3), np.uint8), pipeline=pipeline, transform=plain((32, 32)))
    assert exp.map.shape == (40, 60) and exp.map.abs().max() == 0
    assert not exp.mask.any() and exp.boxes.shape == (0, 4) and exp.box is None


def test_half_precision_models_give_float32_maps(make_tiny):
    x = torch.randn(2, 3, 24, 24)
    expected = camtools.explain(make_tiny(5), x, target=2)
    for one, exact in zip(camtools.explain(make_tiny(5).bfloat16(), x, target=2), expected, strict=True):
        assert one.map.dtype == one.raw_map.dtype == torch.float32 and one.logits.dtype == torch.bfloat16
        torch.testing.assert_close(one.map, exact.map, rtol=0, atol=0.03)
        assert one.score == pytest.approx(exact.score, abs=0.01)


# What is left behind --------------------------------------------------------------------------------------------------


def training_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Dropout(0.5)).append(nn.Linear(4, 3)).train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    return model


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = training_model()
    calls = []
    hook = model[2].register_forward_hook(lambda *args: calls.append(1))
    grads = [(p, p.grad, None if p.grad is None else p.grad.clone(), p.requires_grad) for p in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    if fails:
        with pytest.raises(InputError, match="can't be run on inputs of 7x16x16"):
            camtools.explain(model, torch.randn(2, 7, 16, 16), transform=lambda image: None)
    else:
        x = torch.randn(2, 3, 16, 16)
        found = camtools.explain(model, x, top_k=2)
        assert calls
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for parameter, grad, value, flag in grads:
        assert parameter.grad is grad and parameter.requires_grad == flag
        assert grad is None or torch.equal(grad, value)
    hook.remove()
    if not fails:  # the answer is that of eval mode: no dropout, no batch statistics
        logits = model.eval()(x).detach()
        torch.testing.assert_close(torch.stack([ones[0].logits for ones in found]), logits)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradient_modes_are_the_callers(make_tiny, mode):
    model, x = make_tiny(5), torch.randn(5, 3, 24, 24)
    expected = camtools.explain(model, x)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        for one, other in zip(Explainer(model, batch_size=2).stream(x), expected, strict=True):
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
            assert_same(one, other, exactly=False)
            for tensor in (one.map, one.raw_map, one.mask, one.boxes, one.logits):
                assert not tensor.requires_grad and not tensor.is_inference()
        assert_same(camtools.explain(model, x.clone()[0]), expected[0], exactly=False)


def test_an_exact_head_needs_no_graph(make_tiny):
    model, x = make_tiny(5), torch.randn(2, 3, 24, 24)
    explainer = Explainer(model)
    explainer(x)  # finding the features takes gradients, once
    modes = []
    model.fc.register_forward_hook(lambda *args: modes.append(torch.is_grad_enabled()))
    explainer(x)
    assert modes == [False]


def test_the_model_is_not_copied_without_need(make_tiny):
    model = make_tiny()
    assert Explainer(model, device="cpu").model.model is model
    wrapped = camtools.wrap(model)
    assert Explainer(wrapped).model is wrapped


@pytest.mark.gpu
def test_another_device_gets_a_copy(make_tiny, cuda):
    model, x = make_tiny(5), torch.randn(3, 3, 24, 24)
    for device in ("cuda", "cuda:0", "auto", cuda):
        found = camtools.explain(model, [x[0], x[1].to(cuda), x[2]], device=device)
        assert next(model.parameters()).device.type == "cpu"
        for one, other in zip(found, camtools.explain(model, x), strict=True):
            assert one.map.is_cuda and one.mask.is_cuda and not one.boxes.is_cuda
            torch.testing.assert_close(one.cpu().map, other.map, rtol=0, atol=1e-3)
            assert one.cpu().label == other.label


# Wrong use ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": 3}, TargetError, "Class index 3 is out of range: this model's classes are numbered 0 to 2"),
        ({"target": -1}, TargetError, "Class index -1 is out of range"),
        ({"target": "purple"}, TargetError, "no class named 'purple' among this model's 3"),
        ({"target": True}, TargetError, "an index or a name, not True"),
        ({"target": 1.5}, TargetError, "an index or a name, not 1.5"),
        ({"target": [[0, 1]]}, TargetError, r"an index or a name, not \[0, 1\]"),
        ({"target": []}, TargetError, "the target list of an image is empty"),
        ({"target": 0, "top_k": 2}, TargetError, "both target=0 and top_k=2 were given; give one"),
        ({"top_k": 4}, TargetError, "top_k=4 is more than the model's 3 classes"),
        ({"top_k": 0}, TargetError, "top_k=0: expected a whole number of at least 1"),
        ({"top_k": -2}, TargetError, "top_k=-2: expected"),
        ({"top_k": True}, TargetError, "top_k=True: expected"),
        ({"top_k": 2.0}, TargetError, r"top_k=2\.0: expected"),
        ({"batch_size": 0}, InputError, "batch_size=0: expected a whole number of at least 1"),
        ({"batch_size": True}, InputError, "batch_size=True: expected"),
        ({"batch_size": 2.5}, InputError, r"batch_size=2\.5: expected"),
        ({"activation": "relu"}, InputError, "activation='relu': expected one of 'softmax', 'sigmoid', 'none'"),
        ({"device": "toaster"}, InputError, "device='toaster' cannot be used: .*Pass 'cpu', 'cuda' or 'auto'"),
        ({"device": "cuda:77"}, InputError, "device='cuda:77' cannot be used"),
        ({"device": 1.5}, InputError, r"device=1\.5 cannot be used"),
        ({"device": "meta"}, InputError, "device='meta' holds no values"),
        ({"transform": 5}, InputError, "transform is 5: expected a Preprocess, or a callable"),
        ({"transform": Preprocess}, InputError, "transform is <class .*expected a Preprocess"),
        ({"transform": lambda image: image}, InputError, "gives Image: expected a floating tensor"),
        ({"transform": v2.Compose([v2.RandomCrop(20), SQUASH])}, InputError, "is random"),
        ({"class_names": ["a", "b"]}, TargetError, "2 class names were given for a model with 3 classes"),
        ({"class_names": ["a", "b"], "target": 2}, TargetError, "2 class names were given for a model with 3"),
        ({"class_names": "abc"}, TargetError, "class_names='abc': expected a list of one name per class"),
        ({"class_names": {0: "a", 1: "b", 2: "c"}}, TargetError, "expected a list of one name per class"),
        ({"class_names": [1, 2, 3]}, TargetError, r"class_names=\[1, 2, 3\]: expected a list"),
        ({"class_names": []}, TargetError, r"class_names=\[\]: expected a list"),
        ({"class_names": 3}, TargetError, "class_names=3: expected a list"),
        ({"pipeline": "rcma"}, PipelineError, "no pipeline 'rcma'. Did you mean 'rcam'"),
        ({"pipeline": [5]}, PipelineError, "Got 5"),
    ],
)
def test_wrong_options(options, error, message):
    given = {"class_names": NAMES, "transform": plain((32, 32))} | options
    with pytest.raises(error, match=message):
        camtools.explain(Colours(), noise(40, 40), **given)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([0], "1 targets were given for 2 images; pass one per image"),
        ([0, 1, 2], "3 targets were given for 2 images"),
        (torch.tensor([0, 1, 2]), "3 targets were given for 2 images"),
        ([[0, 1, 2]], "1 targets were given for 2 images"),
        ([0, 3], "Class index 3 is out of range"),
        ([0, []], "the target list of an image is empty"),
        ([0, "purple"], "no class named 'purple'"),
        (torch.tensor([0.0, 1.0]), "an index or a name, not 0.0"),
    ],
)
def test_wrong_target_lists(explainer, target, message):
    with pytest.raises(TargetError, match=message):
        explainer([noise(40, 40), noise(40, 40)], target)


@pytest.mark.parametrize("target", [torch.tensor(True), np.array(False), torch.tensor(1.0)])
def test_targets_that_are_no_indices(explainer, target):
    for explain in (explainer, lambda *args: list(explainer.stream(*args))):
        with pytest.raises(TargetError, match=r"an index or a name, not (True|False|1\.0)"):
            explain([noise(40, 40)], target)


def test_names_are_missing_where_there_are_none(make_tiny):
    with pytest.raises(TargetError, match=r"no class named 'cat': .* have no names.*class_names="):
        camtools.explain(make_tiny(3), torch.randn(3, 24, 24), target="cat")


@pytest.mark.parametrize("model", ["resnet50", Colours, None])
def test_a_model_has_to_be_a_module(model):
    with pytest.raises(ModelError, match=r"expected a torch\.nn\.Module, got (str|type|NoneType)"):
        camtools.explain(model, noise(40, 40))


class Normed(Colours):
    def forward(self, x):
        logits = super().forward(x)
        return logits / logits.sum(1, keepdim=True)  # 0 / 0 for a black image


def test_scores_that_are_no_numbers_name_their_images(tmp_path):
    file = tmp_path / "black.png"
    Image.new("RGB", (40, 40)).save(file)
    images = [noise(40, 40), noise(40, 40), np.zeros((40, 40, 3), np.uint8), file]
    explainer = Explainer(Normed(), transform=plain((32, 32)))
    with pytest.raises(ModelError, match=r"NaN or infinite class scores for image 2, .*black\.png\. Check its weig"):
        explainer(images)
    with pytest.raises(ModelError, match=r"for image 0, image 1, image 2 and 2 more\. Check"):
        explainer([images[2]] * 5)
    with pytest.raises(ModelError, match=r"class scores for the image\. Check"):
        explainer(images[2])
    explainer.engine.batch_size = 1
    with pytest.raises(ModelError, match=r"scores for image 2\. Check"):
        explainer(images)


def test_a_model_whose_weights_are_no_numbers():
    model = Colours()
    nn.init.constant_(model.fc.weight, torch.nan)
    model = camtools.wrap(model, spec=camtools.model.FeatureSpec("conv"))
    with pytest.raises(ModelError, match=r"NaN or infinite class scores for the image\. Check its weights"):
        camtools.explain(model, noise(40, 40), transform=plain((32, 32)))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_without_class_scores(layers):
    model = nn.Sequential(*list(Colours().children())[:layers])
    with pytest.raises(ModelError, match=r"class scores of shape \(batch, classes\).*Give camtools a classifier"):
        camtools.explain(model, noise(40, 40))


def test_the_broken_image_is_named(explainer, tmp_path):
    (tmp_path / "empty.jpg").touch()
    images = [noise(40, 40), noise(40, 40), noise(40, 40), tmp_path / "empty.jpg", noise(40, 40)]
    with pytest.raises(InputError, match=r"image 3 \(.*empty\.jpg'\) is an empty file"):
        explainer(images)
    with pytest.raises(InputError, match=r"the image \(.*empty\.jpg'\) is an empty file"):
        explainer(images[3])
    with pytest.raises(InputError, match=r"image 1 .* does not exist"):
        explainer([noise(40, 40), tmp_path / "none.jpg"])
    with pytest.raises(InputError, match=r"image 1 is of type dict"):
        explainer([noise(40, 40), {}])
    with pytest.raises(InputError, match=r"got an empty list"):
        explainer([])
    with pytest.raises(InputError, match=r"an iterator.*Explainer\.stream"):
        explainer(iter(images))
    with pytest.raises(InputError, match=r"image 1 has 1 NaN or infinite values of 1200"):
        x = torch.zeros(2, 3, 20, 20)
        x[1, 0, 5, 5] = torch.nan
        explainer(x)
    with pytest.raises(InputError, match=r"image 0 .* of 4 channels: expected 3, as the model takes"):
        explainer(torch.zeros(2, 4, 20, 20))


def test_repr_reads_like_the_call(explainer):
    text = repr(explainer)
    assert text.startswith("Explainer(Colours (generic), Pipeline([")
    assert "FixedThreshold(theta=0.5)" in text and "transform=Preprocess(input_size=(32, 32)" in text


def test_paths_may_be_relative(explainer, tmp_path, monkeypatch):
    Image.fromarray(painted(64, 64, (20, 30, 40, 44))).save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    exp = explainer(Path("red.png"))
    assert (exp.name, exp.source, exp.box.tolist()) == ("red", "red.png", [20, 30, 40, 44])


@pytest.mark.parametrize("images", [5, None, Image.new("RGB", (4, 4))], ids=["number", "none", "image"])
def test_a_stream_of_what_is_no_stream(tiny, images):
    with pytest.raises(InputError, match=r"expected an iterable of images"):
        next(Explainer(tiny).stream(images))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_stream_yields_what_came_before_its_iterators_error(tiny, batch_size):
    def images():
        yield from (noise(32, 32, i) for i in range(5))
        raise ConnectionError("the camera is gone")

    seen = []
    with pytest.raises(ConnectionError, match="the camera is gone"):
        for explanation in Explainer(tiny, batch_size=batch_size).stream(images()):
            seen.append(explanation)
    assert len(seen) == 5
