"""The scenes: the same everywhere, with truth that can be checked against what is drawn."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.ops import masks_to_boxes

from camtools.datasets import Scenes, open_dataset
from camtools.errors import InputError


def digest(scenes, index):
    return hashlib.sha256(scenes.draw(index).pixels.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("scenes", "digests", "first_box"),
    [
        (Scenes("test", n=3), ["b5be0c270e360d2f", "8c7243e40c3a5c0e", "ad56c16b310475bd"], [28, 22, 105, 79]),
        (
            Scenes("train", n=3, size=96, seed=3),
            ["7a945697129845dd", "8ad88018ea9e7ee5", "3c81805260e0c3a0"],
            [30, 11, 78, 64],
        ),
        (
            Scenes("val", n=3, objects=(2, 4)),
            ["3ec047ce55feed33", "e2c9f64b0115d0f3", "f5101fb08d5a8f71"],
            [56, 59, 88, 109],
        ),
    ],
    ids=["test", "train", "several"],
)
def test_the_same_on_every_machine(scenes, digests, first_box):
    # A difference here means that images are no longer those that published figures were measured on.
    assert [digest(scenes, i) for i in range(3)] == digests
    assert scenes[0].boxes[0].tolist() == first_box


def test_a_scene_depends_on_nothing_but_its_number():
    few, many = Scenes("test", n=2), Scenes("test", n=50)
    many.draw(7)
    assert digest(few, 1) == digest(many, 1)
    assert len({digest(Scenes(split, n=1, seed=seed), 0) for split in ("train", "val", "test") for seed in (0, 1)}) == 6


def test_another_size_draws_the_same_scene():
    small, large = Scenes("test", n=20, size=64), Scenes("test", n=20, size=256)
    for i in range(20):
        assert small[i].label == large[i].label
        assert (small[i].boxes * 4 - large[i].boxes).abs().max() <= 4  # one small pixel
        covered = torch.nn.functional.avg_pool2d(large[i].masks.float(), 4)
        assert (covered.gt(0.5) != small[i].masks).float().mean() < 0.01


@pytest.mark.parametrize("objects", [1, (2, 4)])
def test_truth_is_exact(objects):
    scenes = Scenes("test", n=30, objects=objects)
    for i in range(30):
        record, scene = scenes[i], scenes.draw(i)
        half_open = masks_to_boxes(record.masks) + torch.tensor([0, 0, 1, 1])
        assert torch.equal(record.boxes, half_open)
        assert record.masks.sum(dim=0).max() == 1  # every pixel shows one creature at most
        assert record.labels.tolist() == scenes.labels_of(i) == [c.label for c in scene.creatures]
        assert record.id == scenes.ids[i] == f"test-0-{i:06d}"
        for creature in scene.creatures:
            assert not (creature.head & ~creature.mask).any()
            assert creature.head.sum() >= 15  # no head is hidden
            x, y = creature.pose.nose
            assert creature.head[int(y * 128), int(x * 128)]


def test_masks_are_where_the_creature_is_painted():
    # The same random numbers with and without the creature give the same ground: pixels differ inside the mask only,
    # up to the lens blur of one pixel.
    from camtools.datasets.scenes.drawing import Stream
    from camtools.datasets.scenes.scene import draw_scene

    for number in range(10):
        first, second = (draw_scene(Stream(5, number), [label], 128) for label in (0, 3))
        mask, head = first.creatures[0].mask, first.creatures[0].head
        assert np.array_equal(mask, second.creatures[0].mask)
        changed = (first.pixels != second.pixels).any(axis=2)
        grown = np.zeros_like(head)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                grown |= np.roll(head, (dy, dx), (0, 1))
        assert changed.any()
        assert not (changed & ~grown).any()  # the class changes the head and nothing else


def test_heads_are_small_and_bodies_are_not():
    creatures = [Scenes("test", n=200).draw(i).creatures[0] for i in range(200)]
    share = np.array([c.head.sum() / c.mask.sum() for c in creatures])
    area = np.array([c.mask.mean() for c in creatures])
    assert share.min() > 0.12 and share.max() < 0.25
    assert area.min() > 0.04 and area.max() < 0.4
    touching = [c.mask[0].any() or c.mask[-1].any() or c.mask[:, 0].any() or c.mask[:, -1].any() for c in creatures]
    assert np.mean(touching) <= 0.02


def test_classes_are_even_and_independent_of_the_body():
    scenes = Scenes("test", n=2000)
    labels = np.array([scenes.labels_of(i)[0] for i in range(2000)])
    counts = np.bincount(labels, minlength=8)
    assert scenes.classes == ("disc", "ring", "triangle", "plus", "crescent", "hourglass", "pair", "ladder")
    assert ((counts - 250) ** 2 / 250).sum() < 24.3  # chi-squared, 7 degrees of freedom, 99.9 %


def test_one_class_an_image():
    mixed, same = Scenes("test", n=40, objects=3), Scenes("test", n=40, objects=3, mixed=False)
    assert all(len(same[i].labels) == 3 and len(same[i].classes) == 1 for i in range(10))
    assert any(len(set(mixed.labels_of(i))) > 1 for i in range(10))
    counts = {len(Scenes("test", n=40, objects=(1, 3)).labels_of(i)) for i in range(40)}
    assert counts == {1, 2, 3}


def test_targets_for_training():
    scenes = Scenes("train", n=6, target="label", transform=lambda image: torch.from_numpy(np.array(image)))
    images, labels = next(iter(DataLoader(scenes, batch_size=6)))
    assert images.shape == (6, 128, 128, 3)
    assert labels.tolist() == [scenes.labels_of(i)[0] for i in range(6)]
    _, many = Scenes("train", n=6, objects=3, target="labels")[0]
    assert many.nonzero().flatten().tolist() == sorted(set(Scenes("train", n=6, objects=3).labels_of(0)))
    again = pickle.loads(pickle.dumps(Scenes("test", n=3)))
    assert digest(again, 2) == "ad56c16b310475bd"


def test_lengths_and_indices():
    assert [len(Scenes(split)) for split in ("train", "val", "test")] == [10_000, 1_000, 1_000]
    scenes = Scenes("test", n=3)
    assert scenes[-1].id == scenes[2].id
    with pytest.raises(IndexError, match="Scenes has 3 images"):
        scenes[3]
    assert len(list(scenes)) == 3
    assert repr(scenes) == "Scenes('test', n=3, size=128, seed=0, objects=(1, 1))"


def test_by_one_line_of_text():
    scenes = open_dataset("scenes:val?n=4&seed=2&size=64&objects=1-3&mixed=false")
    assert repr(scenes) == "Scenes('val', n=4, size=64, seed=2, objects=(1, 3))"
    assert not scenes.mixed
    assert open_dataset("scenes:val?objects=2").objects == (2, 2)
    with pytest.raises(InputError, match="objects='many', expected a whole number, or a range such as 1-3"):
        open_dataset("scenes:val?objects=many")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split='dev': expected one of 'train', 'val', 'test'"),
        ({"n": 0}, "n=0: expected a whole number of at least 1"),
        ({"n": True}, "n=True: expected a whole number"),
        ({"size": 16}, "size=16: expected a whole number of at least 32"),
        ({"size": 64.0}, r"size=64.0: expected a whole number of at least 32"),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"objects": 0}, "objects=0: expected a whole number of at least 1 and at most 4"),
        ({"objects": (3, 2)}, "objects=2: expected a whole number of at least 3 and at most 4"),
        ({"objects": 5}, "objects=5: expected a whole number of at least 1 and at most 4"),
        ({"objects": (1, 2, 3)}, r"objects=\(1, 2, 3\): expected a whole number"),
        ({"target": "box"}, "target='box': expected one of 'record', 'label', 'labels'"),
        ({"transform": str}, "a transform would part the image from its boxes"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        Scenes(**arguments)
