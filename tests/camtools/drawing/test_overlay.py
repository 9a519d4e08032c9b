"""Drawing: which pixels change, and to what."""

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from camtools.drawing.legend import INK
from camtools.drawing.overlay import BOX, _shortened, draw_overlay
from camtools.errors import InputError

GREY = (100, 110, 120)


def canvas(width, height, colour=GREY):
    return Image.new("RGB", (width, height), colour)


def drawn(image, boxes=(), text="", alpha=0.0, values=None, **options):
    """Draw, and return the pixels (H, W, 3) as int."""
    values = np.zeros((image.height, image.width), np.float32) if values is None else values
    result = draw_overlay(image, values, boxes, text, alpha, **options)
    assert result.mode == "RGB" and result.size == image.size
    return np.asarray(result).astype(int)


def where(pixels, colour):
    return (pixels == colour).all(-1)


def extent(mask):
    """The half-open box of what is true, xyxy."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", ["inferno", "viridis"])
def test_blending(alpha, name):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    values = rng.random((20, 30), dtype=np.float32)
    colours = matplotlib.colormaps[name](values)[..., :3] * 255
    found = drawn(Image.fromarray(image), alpha=alpha, values=values, colormap=name)
    assert np.abs(found - ((1 - alpha) * image + alpha * colours)).max() <= 0.51


def test_without_a_map_only_the_lines_change():
    image = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    found = drawn(Image.fromarray(image), [(20, 30, 90, 80)])
    changed = (found != image).any(-1)
    bright, dark = where(found, BOX), where(found, INK)
    assert extent(bright) == [20, 30, 90, 80]  # half-open: the last line is within the box
    assert extent(dark & changed) == [19, 29, 91, 81]
    assert bright[30, 20:90].all() and bright[79, 20:90].all() and bright[30:80, 20].all() and bright[30:80, 89].all()
    inside = np.zeros_like(changed)
    inside[32:78, 22:88] = True
    outside = np.ones_like(changed)
    outside[29:81, 19:91] = False
    assert not changed[inside | outside].any()


def test_the_image_given_is_not_drawn_on():
    image = canvas(60, 40)
    drawn(image, [(5, 5, 50, 30)], "kite 99.9%", 0.5)
    assert np.array_equal(np.asarray(image), np.asarray(canvas(60, 40)))


def test_lines_grow_with_the_image():
    def thickness(width, height):
        column = where(drawn(canvas(width, height), [(10, 10, width - 10, height - 10)]), BOX)[:, width // 2]
        return int(column[: height // 2].sum())

    assert [thickness(60, 60), thickness(450, 450), thickness(2000, 1125)] == [1, 3, 10]


def caption(width, height, boxes=(), text="kite 99.9%"):
    """Where the caption's ground is, xyxy, and the pixels."""
    with_text, without = drawn(canvas(width, height), boxes, text), drawn(canvas(width, height), boxes)
    changed = (with_text != without).any(-1)
    return (extent(changed) if changed.any() else None), with_text


def test_the_caption_stands_above_the_box():
    box, pixels = caption(300, 200, [(40, 80, 200, 150)])
    assert box[0] == 40 and box[3] == 80 and 60 < box[1] < 70 and box[2] < 140
    ground = pixels[box[1] : box[3], box[0] : box[2]]
    assert where(ground, BOX).mean() > 0.5 and where(ground, INK).any()


def test_the_caption_stands_below_a_box_that_starts_at_the_top():
    box, _ = caption(300, 200, [(40, 0, 200, 150)])
    assert box[:2] == [40, 150]


def test_the_caption_stands_in_a_box_that_fills_the_image():
    box, pixels = caption(300, 200, [(0, 0, 300, 200)])
    assert box[0] <= 3 and box[1] <= 3 and where(pixels[:4, :60], BOX).mean() > 0.7


def test_the_caption_stands_at_the_top_where_there_is_no_box():
    box, _ = caption(300, 200)
    assert box[:2] == [0, 0]


def test_the_caption_moves_left_to_stay_in_the_image():
    box, _ = caption(300, 200, [(280, 80, 300, 150)])
    assert box[2] == 300 and box[3] == 80


def test_the_caption_grows_with_the_image():
    small, large = (box[3] - box[1] for box in (caption(750, 500)[0], caption(1500, 1000)[0]))
    assert large / small == pytest.approx(2, abs=0.1)


@pytest.fixture
def written(monkeypatch):
    """Every text that is written, with its box (xyxy)."""
    texts, text_of = [], ImageDraw.ImageDraw.text

    def text(draw, position, words, font=None, **options):
        texts.append((words, draw.textbbox(position, words, font=font)))
        text_of(draw, position, words, font=font, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


@pytest.mark.parametrize("width", [300, 160, 100, 80])
@pytest.mark.parametrize("name", ["black and gold garden spider, a very long name indeed", "w" * 80])
def test_long_names_are_shortened_and_the_score_stays_whole(written, width, name):
    box, pixels = caption(width, 100, text=f"{name} 12.3%")
    words, (x0, y0, x1, y1) = written[0]
    assert words.endswith("… 12.3%") and name.startswith(words[: -len("… 12.3%")]) and len(words) > 8
    assert box[0] <= x0 and box[1] <= y0 and x1 <= box[2] <= width and y1 <= box[3] <= 100
    assert where(pixels, BOX)[: box[3], box[2] - 2 : box[2]].all()
    assert x1 > 0.7 * width  # as long as there is room


@pytest.mark.parametrize(
    ("room", "expected"),
    [(20, "red kite 1.0%"), (13, "red kite 1.0%"), (12, "red ki… 1.0%"), (11, "red k… 1.0%"), (10, "red… 1.0%"),
     (9, "red… 1.0%"), (8, "re… 1.0%"), (7, "r… 1.0%"), (6, "1.0%"), (4, "1.0%"), (3, "")],
)  # fmt: skip
def test_how_names_are_shortened(room, expected):
    assert _shortened("red\n kite 1.0%", lambda words: len(words) <= room) == expected


@pytest.mark.parametrize(
    "text", ["", "kite", "a\nb\tc 5%", "птица 5%", "Ψάρι 5%", "鳥 5%", "🐦 5%", "\x00 5%", "\udce9 5%", "5%"]
)
def test_any_text_can_be_drawn(text):
    drawn(canvas(120, 80), [(10, 30, 60, 60)], text)


def test_letters_beyond_latin_are_not_boxes():
    shapes = {text: np.packbits(where(caption(300, 200, text=text)[1], INK)).tobytes() for text in ("пт", "Ψά", "鳥")}
    assert len(set(shapes.values())) == 3


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (8, 8), (8, 300), (300, 8), (28, 28), (32, 32)])
def test_tiny_images_go_without_a_caption(size):
    boxes = [(0, 0, *size)]
    box, _ = caption(*size, boxes)
    assert box is None
    drawn(canvas(*size), boxes, "kite 99.9%", 0.5)
    drawn(canvas(*size), [(size[0] - 1, size[1] - 1, *size)], "kite 99.9%", 0.5)


@pytest.mark.parametrize("size", [(60, 700), (900, 60), (64, 64), (224, 224), (500, 375)])
@pytest.mark.parametrize("place", ["whole", "top left", "bottom right", "none"])
def test_the_caption_is_whole_in_tall_wide_and_small_images(written, size, place):
    width, height = size
    boxes = {"whole": (0, 0, *size), "top left": (0, 0, 9, 9), "bottom right": (width - 9, height - 9, *size)}
    box, _ = caption(width, height, [boxes[place]] if place in boxes else [])
    words, (x0, y0, x1, y1) = written[0]
    assert words.endswith("99.9%")
    assert 0 <= box[0] <= x0 and 0 <= box[1] <= y0 and x1 <= box[2] <= width and y1 <= box[3] <= height


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_other_modes_become_rgb(mode):
    image = Image.new("L", (40, 30), 255).convert(mode) if mode != "I;16" else Image.new(mode, (40, 30), 255)
    assert np.array_equal(drawn(image), np.full((30, 40, 3), 255))


@pytest.mark.parametrize(
    ("alpha", "colormap", "message"),
    [
        (1.01, "inferno", r"alpha=1\.01: expected a weight between 0 \(image only\) and 1 \(map only\)"),
        (-1, "inferno", r"alpha=-1: expected"),
        (0.5, "infernal", r"colormap='infernal' is not one of matplotlib's; try 'inferno', 'viridis' or 'magma'"),
        (0.5, "", r"colormap='' is not one"),
        (0.5, None, r"colormap=None is not one"),
    ],
)
def test_options_out_of_range(alpha, colormap, message):
    with pytest.raises(InputError, match=message):
        drawn(canvas(10, 10), alpha=alpha, colormap=colormap)


# The legend -----------------------------------------------------------------------------------------------------------


def bars(strip, name):
    """The rows of a legend in which a line of pixels is the colour map from end to end, and their columns."""
    whole = np.rint(matplotlib.colormaps[name](np.linspace(0, 1, 15 * 11))[:, :3] * 255).astype(int)
    rows = [y for y in range(len(strip)) if np.array_equal(strip[y, 6 : 6 + 15 * 11], whole)]
    return rows


@pytest.mark.parametrize("name", ["inferno", "viridis"])
def test_the_legends_bar_is_the_colour_map(name):
    image = canvas(300, 200)
    pixels = np.asarray(draw_overlay(image, np.zeros((200, 300), np.float32), [], "kite 1%", 0.5, name, key="no box"))
    rows = bars(pixels[200:].astype(int), name)
    assert len(rows) == 10 and rows == list(range(rows[0], rows[0] + 10))  # 0.9 of 11 pixels, unbroken: no mark


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.83])
def test_the_threshold_is_marked_on_the_bar(threshold):
    zeros = np.zeros((200, 300), np.float32)
    with_mark, without = (
        np.asarray(draw_overlay(canvas(300, 200), zeros, [], "kite 1%", 0.5, threshold=value, key="no box"))[200:]
        for value in (threshold, 7.0)  # beyond the bar: not marked
    )
    rows = bars(without.astype(int), "inferno")
    changed = (with_mark[rows[3]] != without[rows[3]]).any(-1)
    centre = 6 + round(threshold * (15 * 11 - 1))
    assert np.flatnonzero(changed).tolist() == list(range(centre - 2, centre + 3))
    assert with_mark[rows[3], centre].tolist() == [0, 0, 0] and with_mark[rows[3], centre - 2].tolist() == [255] * 3


def test_the_threshold_is_written_near_its_mark(written):
    zeros = np.zeros((200, 300), np.float32)
    spots = {}
    for threshold in (0.0, 0.2, 0.5, 0.9, 1.0):
        written.clear()
        draw_overlay(canvas(300, 200), zeros, [], "", 0.5, threshold=threshold)
        spots[threshold] = dict(written)
        label = spots[threshold][f"threshold {threshold:.2f}"]
        assert spots[threshold]["0"][2] < label[0] and label[2] < spots[threshold]["1"][0]
    middle = spots[0.5]["threshold 0.50"]
    assert (middle[0] + middle[2]) / 2 == pytest.approx(0.5 * 164, abs=2)


def test_without_anything_to_say_there_is_no_legend():
    assert draw_overlay(canvas(50, 40), np.zeros((40, 50), np.float32), [], "kite 1%").size == (50, 40)


def test_a_legends_letters_grow_with_the_image(written):
    heights = []
    for width, height in ((96, 72), (386, 256), (4000, 2700)):
        written.clear()
        draw_overlay(canvas(width, height), np.zeros((height, width), np.float32), [], "", 0.5, threshold=0.3)
        (_, top, _, bottom) = next(box for words, box in written if words.startswith("threshold"))
        heights.append(bottom - top)
    assert 8 <= heights[0] == heights[1] <= 12 and heights[2] == pytest.approx(heights[0] * 97 / 11, rel=0.1)
