from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from camtools.errors import InputError
from camtools.metrics import average_drop, average_increase, deletion, insertion, masked_scores, road
from camtools.metrics.faithfulness import _fill

MAPS = torch.tensor([[[0.1, 0.9], [0.4, 0.2]]])
IMAGES = torch.tensor([[[[1.0, 5.0], [3.0, 2.0]]] * 3])
TARGETS = [1]


def total(images: torch.Tensor) -> torch.Tensor:
    """Two classes: 0 and the sum over the first channel, so that a score is a sigmoid of what is left."""
    left = images[:, 0].sum((1, 2))
    return torch.stack([torch.zeros_like(left), left], 1)


def sigmoids(*sums: float) -> list[float]:
    return [1 / (1 + math.exp(-value)) for value in sums]


def test_deletion_takes_the_highest_first():
    found = deletion(total, IMAGES, MAPS, TARGETS, steps=4)
    assert found.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    expected = sigmoids(11, 6, 3, 1, 0)  # without 5, then 3, then 2, then 1
    assert found.scores[0].tolist() == pytest.approx(expected)
    by_hand = (expected[0] / 2 + sum(expected[1:4]) + expected[4] / 2) / 4
    assert found.area.item() == pytest.approx(by_hand)


def test_insertion_brings_the_highest_first():
    found = insertion(total, IMAGES, MAPS, TARGETS, steps=2, baseline=-1.0)
    assert found.scores[0].tolist() == pytest.approx(sigmoids(-4, 5 + 3 - 2, 11))


def test_insertion_starts_from_the_blurred_image():
    images = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    seen = []

    def watch(x):
        seen.append(x.clone())
        return total(x)

    insertion(watch, images, torch.rand(1, 24, 24), TARGETS, steps=1)
    assert seen[0].std() < 0.3 * images.std()  # blurred
    assert torch.equal(seen[1], images)


def test_a_baseline_image_takes_the_place():
    found = deletion(total, IMAGES, MAPS, TARGETS, steps=1, baseline=torch.full((3, 1, 1), 2.0))
    assert found.scores[0].tolist() == pytest.approx(sigmoids(11, 8))


def test_a_constant_map_goes_in_raster_order():
    found = deletion(total, IMAGES, torch.zeros(1, 2, 2), TARGETS, steps=4)
    assert found.scores[0].tolist() == pytest.approx(sigmoids(11, 10, 5, 2, 0))


def test_batches_do_not_matter():
    images = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    maps = torch.rand(5, 6, 6, generator=torch.Generator().manual_seed(2))
    alone = deletion(total, images, maps, [0, 1, 0, 1, 1], steps=3, batch_size=2)
    assert torch.equal(alone.scores, deletion(total, images, maps, [0, 1, 0, 1, 1], steps=3).scores)
    assert alone.scores.shape == (5, 4)


def test_a_single_hole_is_the_weighted_mean_of_its_neighbours():
    image = torch.arange(9.0).reshape(1, 3, 3)
    image[0, 0, 0] = 13
    holes = torch.zeros(3, 3, dtype=torch.bool)
    holes[1, 1] = True
    filled = _fill(image, holes)
    assert filled[0, 1, 1].item() == pytest.approx((13 + 2 + 6 + 8) / 12 + (1 + 3 + 5 + 7) / 6)
    assert torch.equal(filled[0][~holes], image[0][~holes])


def test_a_corner_has_three_neighbours():
    image = torch.tensor([[[0.0, 6.0], [3.0, 12.0]]])
    holes = torch.tensor([[True, False], [False, False]])
    assert _fill(image, holes)[0, 0, 0].item() == pytest.approx((6 / 6 + 3 / 6 + 12 / 12) / (1 / 6 + 1 / 6 + 1 / 12))


def test_neighbouring_holes_are_solved_together():
    """In a row a b c d with b and c missing: b = (a + c) / 2, c = (b + d) / 2."""
    image = torch.tensor([[[0.0, 9.0, 9.0, 3.0]]])
    filled = _fill(image, torch.tensor([[False, True, True, False]]))
    assert filled[0, 0].tolist() == pytest.approx([0, 1, 2, 3])


def test_road_removes_most_or_least():
    most = road(total, IMAGES, MAPS, TARGETS, fractions=[0.25, 0.5], noise=0)
    one = (1 / 6 + 2 / 6 + 3 / 12) / (5 / 12)  # the 5 at the top right, from 1, 2 and 3
    assert most.scores[0, 0].item() == pytest.approx(sigmoids(6 + one)[0])
    least = road(total, IMAGES, MAPS, TARGETS, fractions=[0.25], order="least", noise=0)
    other = (5 / 6 + 3 / 6 + 2 / 12) / (5 / 12)  # the 1 at the top left
    assert least.scores[0, 0].item() == pytest.approx(sigmoids(10 + other)[0])


def test_roads_noise_is_its_seeds():
    found = [road(total, IMAGES / 9, MAPS, TARGETS, fractions=[0.5], noise=0.5, seed=seed).scores for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_holes_are_filled_as_by_pytorch_grad_cam():
    road_of = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="pip install -e '.[bench]'")
    random = torch.Generator().manual_seed(5)
    image, kept = torch.rand(3, 14, 17, generator=random), torch.rand(14, 17, generator=random) > 0.6
    theirs = road_of.NoisyLinearImputer(noise=0)(image, kept.float())
    assert np.allclose(_fill(image, ~kept), theirs, atol=1e-5)


def test_average_drop_and_increase():
    scores, masked = torch.tensor([0.8, 0.5, 0.4]), torch.tensor([0.4, 0.6, 0.4])
    assert average_drop(scores, masked).item() == pytest.approx(100 * (0.5 + 0 + 0) / 3)
    assert average_increase(scores, masked).item() == pytest.approx(100 / 3)


def test_masked_scores_multiply_image_and_map():
    before, after = masked_scores(total, IMAGES, MAPS, TARGETS)
    assert before.tolist() == pytest.approx(sigmoids(11))
    assert after.tolist() == pytest.approx(sigmoids(0.1 + 4.5 + 1.2 + 0.4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: deletion(total, IMAGES[0], MAPS, TARGETS), r"images: \(3, 2, 2\) .* expected floats \(B, 3, H, W\)"),
        (
            lambda: deletion(total, IMAGES, MAPS[:, :1], TARGETS),
            r"maps: \(1, 1, 2\), expected finite values \(1, 2, 2\)",
        ),
        (lambda: deletion(total, IMAGES, MAPS, [2]), "targets: class 2, but the model has 2 classes"),
        (lambda: deletion(total, IMAGES, MAPS, [0, 1]), "targets: expected 1 class indices"),
        (lambda: deletion(total, IMAGES, MAPS, TARGETS, steps=0), "steps=0"),
        (lambda: deletion(total, IMAGES, MAPS, TARGETS, baseline=torch.zeros(2, 5)), "baseline: .* does not fit"),
        (lambda: deletion(torch.nn.Flatten(), IMAGES, MAPS, TARGETS), "in training mode"),
        (lambda: deletion(lambda x: x, IMAGES, MAPS, TARGETS), "the model returned Tensor: expected logits"),
        (lambda: road(total, IMAGES, MAPS, TARGETS, fractions=[0.5, 0.2]), "expected shares of the pixels, ascending"),
        (lambda: road(total, IMAGES, MAPS, TARGETS, fractions=[1.0]), "fractions=1.0"),
        (lambda: road(total, IMAGES, MAPS, TARGETS, order="first"), "order='first'"),
        (lambda: masked_scores(total, IMAGES, MAPS * 2, TARGETS), r"from 0.2 to 1.8, expected values in \[0, 1\]"),
        (lambda: average_drop(torch.tensor([0.5]), torch.tensor([0.5, 0.1])), "expected one probability per image"),
        (lambda: average_drop(torch.tensor([1.5]), torch.tensor([0.5])), "expected probabilities"),
        (lambda: average_drop(torch.tensor([0.0]), torch.tensor([0.5])), "0 for some image"),
    ],
)
def test_errors(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_map_of_the_class_beats_its_opposite():
    """On a trained classifier and a scene: the creature's true mask against its complement."""
    from camtools.datasets import Scenes
    from camtools.datasets.scenes import scene_classifier
    from camtools.explainer import Explainer

    model, record = scene_classifier().eval(), Scenes("test", n=3, seed=1)[2]
    transform = Explainer(model).transform
    from camtools.images import read_image

    image, mask = transform(read_image(record.image))[0][None], record.mask[None].float()
    true, false = (deletion(model, image, m, [record.label], steps=8).area.item() for m in (mask, 1 - mask))
    assert true < false
    true, false = (insertion(model, image, m, [record.label], steps=8).area.item() for m in (mask, 1 - mask))
    assert true > false
