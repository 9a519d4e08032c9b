"""What scenes are made of: random numbers, textures, marks."""

import numpy as np
import pytest

from camtools.datasets.scenes.creature import FACE, MARKS, face, mark
from camtools.datasets.scenes.drawing import PATTERNS, Canvas, Stream, colour, value_noise, variant


def grid(size=200, half=1.5):
    place = (np.arange(size) + 0.5) / size * 2 * half - half
    return np.meshgrid(place, place)


def test_streams_are_those_of_numpys_frozen_generator():
    stream = Stream(1, 2, 3)
    reference = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((1, 2, 3))))
    assert stream.uniform(2, 4) == 2 + 2 * reference.random_sample()
    assert stream.integer(3, 9) == reference.randint(3, 10)
    assert np.array_equal(stream.array(2, 3), reference.random_sample((2, 3)))
    assert Stream(1, 2, 4).uniform(0, 1) != Stream(1, 2, 3).uniform(0, 1)


def test_directions_have_length_one_and_go_everywhere():
    stream = Stream(0)
    directions = np.array([stream.direction() for _ in range(500)])
    assert np.allclose((directions**2).sum(axis=1), 1, atol=1e-15)
    quadrants = 2 * (directions[:, 0] > 0) + (directions[:, 1] > 0)
    assert np.bincount(quadrants).min() > 80


def test_value_noise_goes_through_its_lattice():
    lattice = Stream(3).array(5, 5)
    corners = np.linspace(0, 1, 5)
    x, y = np.meshgrid(corners, corners)
    assert np.allclose(value_noise(Stream(3), x, y, 4), lattice)
    middle = value_noise(Stream(3), np.array([[0.125]]), np.array([[0.0]]), 4)
    assert middle[0, 0] == pytest.approx((lattice[0, 0] + lattice[0, 1]) / 2)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_grey_and_not_flat(pattern):
    x, y = grid(half=0.5)
    grey = pattern(Stream(4), x + 0.5, y + 0.5)
    assert 0 <= grey.min() < 0.3 and 0.7 < grey.max() <= 1


def test_colours_keep_away():
    stream = Stream(5)
    for _ in range(50):
        one = colour(stream)
        other = colour(stream, one)
        assert np.abs(one - other).sum() >= 0.45
        assert np.abs(variant(stream, one, 0.1) - one).max() <= 0.1


def test_every_mark_lies_on_the_face_and_differs_from_all_others():
    u, v = grid()
    marks = [mark(label, u, v) for label in range(len(MARKS))]
    for one in marks:
        assert not (one & ~face(u, v)).any()
        assert 0.1 < one.sum() / face(u, v).sum() < 0.6
    for i, one in enumerate(marks):
        for other in marks[:i]:
            turned = max((one & np.rot90(other, k)).sum() / (one | np.rot90(other, k)).sum() for k in range(4))
            assert turned < 0.7


def test_marks_have_the_areas_of_their_shapes():
    u, v = grid(1500)
    cell = (3 / 1500) ** 2
    areas = {name: mark(i, u, v).sum() * cell for i, name in enumerate(MARKS)}
    assert areas["disc"] == pytest.approx(np.pi * 0.85, rel=0.01)
    assert areas["ring"] == pytest.approx(np.pi * 0.7, rel=0.01)
    assert areas["plus"] == pytest.approx(2 * 2 * 0.6 - 0.6**2, rel=0.01)
    assert areas["pair"] == pytest.approx(2 * np.pi * 0.2, rel=0.01)
    assert areas["ladder"] == pytest.approx(1.9 * 0.38 * 3, rel=0.01)
    assert face(u, v).sum() * cell == pytest.approx(np.pi * FACE**2, rel=0.01)


def test_windows_share_the_canvas():
    canvas = Canvas.blank(10)
    window = canvas.window(0.25, -1, 0.55, 0.19)
    assert window.place == (slice(0, 2), slice(2, 6))
    window.paint(np.ones((2, 4), dtype=bool), np.full((2, 4, 3), 0.5))
    assert canvas.pixels[:2, 2:6].min() == 0.5 and canvas.pixels.sum() == 0.5 * 2 * 4 * 3
    assert window.whole(np.ones((2, 4), dtype=bool), 10).sum() == 8
    assert canvas.window(2, 2, 3, 3).pixels.shape == (1, 1, 3)  # beyond the edge: one pixel, which nothing falls on
    assert (canvas.x[0, 0], canvas.y[9, 0]) == (0.05, 0.95)
