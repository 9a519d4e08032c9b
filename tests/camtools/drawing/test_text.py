"""Text that keeps within a width."""

import pytest

from camtools.drawing.text import cut, font, line_height, wrapped

FACE = font(12)


@pytest.mark.parametrize(
    ("room", "expected"), [(8, "red kite"), (7, "red ki…"), (5, "red…"), (4, "red…"), (2, "r…"), (1, "…"), (0, "")]
)
def test_cut(room, expected):
    assert cut("red kite", lambda words: len(words) <= room) == expected


@pytest.mark.parametrize(
    "text", ["black and gold garden spider, Argiope aurantia", "w" * 90, "鳥" * 40, "a\nb c", "é " * 60]
)
@pytest.mark.parametrize("width", [20, 60, 150, 1000])
@pytest.mark.parametrize("lines", [1, 2, 5])
def test_lines_keep_within_width_and_number(text, width, lines):
    found = wrapped(text, FACE, width, lines)
    assert 1 <= len(found) <= lines and all(FACE.getlength(line) <= width for line in found)
    everything = wrapped(text, FACE, width, 1000)
    assert "".join(everything).replace(" ", "") == "".join(text.split())
    assert (found == everything) or (found[-1].endswith("…") and found[:-1] == everything[: lines - 1])


def test_words_stay_whole_where_they_fit():
    assert wrapped("one two three", FACE, FACE.getlength("one two"), 9) == ["one two", "three"]
    assert wrapped("one\ntwo", FACE, 500, 9) == ["one", "two"]
    assert wrapped(" \n ", FACE, 500, 9) == []


def test_long_words_break_between_their_parts():
    width = FACE.getlength("AdaptiveThreshold(sel")
    assert wrapped("AdaptiveThreshold(select='first')", FACE, width, 9) == ["AdaptiveThreshold(", "select='first')"]
    assert wrapped("AdaptiveThreshold", FACE, FACE.getlength("AdaptiveThr"), 9) == ["Adaptive", "Threshold"]
    assert wrapped("0.45", FACE, 1, 9) == ["0", ".", "4", "5"]  # never stuck


def test_fonts():
    assert font(12) is font(12) and font(12, bold=True).getname()[1] == "Bold"
    assert line_height(font(24)) > 1.8 * line_height(font(12)) - 2
