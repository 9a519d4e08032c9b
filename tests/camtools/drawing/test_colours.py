"""Colours of VOC's masks, against values that its development kit lists."""

from camtools.drawing.colours import voc_colour, voc_palette


def test_the_colours_that_voc_lists():
    listed = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0), 15: (192, 128, 128)}
    listed |= {20: (0, 64, 128), 21: (128, 64, 128), 255: (224, 224, 192)}
    assert {value: voc_colour(value) for value in listed} == listed


def test_the_palette_is_all_colours_in_order_and_none_twice():
    palette = voc_palette()
    colours = list(zip(*[iter(palette)] * 3, strict=True))
    assert len(palette) == 768
    assert len(set(colours)) == 256
    assert colours[15] == voc_colour(15)


def test_values_beyond_a_byte_still_have_a_colour():
    assert voc_colour(256) == (0, 0, 32)
