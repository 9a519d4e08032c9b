"""The HTML report in a headless Chromium: what it shows is what Python says."""

import importlib.util
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

import camtools
from camtools import InputError
from camtools.boxes import SPECK, boxes_from_masks
from camtools.exports import Expected, Exports, ImageExport, export

spec = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)
browser = pytest.mark.skipif(chromium.FOUND is None, reason="needs chromium, which is not installed")
SLIDE = "$('threshold').value = {}; $('threshold').dispatchEvent(new Event('input'))"
CARDS = "[...document.querySelectorAll('main > article')]"


def boxes_at(exp, threshold):
    return boxes_from_masks(exp.map > threshold, SPECK)[0].tolist()


def scripts(page):
    """The cards' data and images."""
    text = page.read_text("utf-8")
    cards = re.findall(r'<script type="application/json" class="card">(.*)</script>', text)
    return [json.loads(card) for card in cards], re.findall(r'<script type="text/plain">(.*)</script>', text)


@pytest.fixture(scope="session")
def explained(model, folder, options):
    """Two classes of every image, cropped in the middle: a part of each is unseen."""
    cropped = camtools.Preprocess(input_size=(32, 32), resize=40, mean=(0, 0, 0), std=(1, 1, 1))
    files = sorted(str(path) for path in folder.rglob("*.*"))
    return camtools.explain(model, files, top_k=2, pipeline="cam", **options | {"transform": cropped})


@pytest.fixture(scope="session")
def page(explained, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    export(explained, str(path), root=folder)
    with chromium.Page(path) as page:
        page.settle()
        yield page


@browser
def test_the_boxes_are_pythons_at_every_threshold(page, explained):
    several = {len({str(boxes_at(exp, t)) for t in np.linspace(0.01, 0.99, 25)}) for exp, _ in explained}
    assert max(several) > 10  # they do change
    for number, per_image in enumerate(explained):
        for panel, exp in enumerate(per_image):
            for threshold in (exp.threshold, *np.linspace(0.01, 0.99, 25).tolist()):
                there = page.run(
                    f"(() => {{ const p = cards[{number}].panels[{panel}]; "
                    f"return new PixelMap(p, ...p.size).parts({threshold!r}).boxes }})()"
                )
                assert there == boxes_at(exp, threshold), (number, panel, threshold)


@browser
def test_the_slider_moves_the_boxes(page, explained):
    page.press("0")
    text = "[...document.querySelectorAll('.box')].map(box => box.textContent)"
    flat = [exp for per_image in explained for exp in per_image]
    for threshold in (None, 0.3, 0.7):
        if threshold is not None:
            page.run(SLIDE.format(threshold))
            page.settle()
        for shown, exp in zip(page.run(text), flat, strict=True):
            boxes = boxes_at(exp, exp.threshold if threshold is None else threshold)
            wanted = ", ".join(map(str, boxes[0])) if boxes else "none"
            assert re.match(r"box (none|\d+, \d+, \d+, \d+)", shown)[1] == wanted
    page.press("0")


@browser
def test_keys_filters_and_order(page, explained, folder):
    assert page.run(f"{CARDS}.length") == len(explained)
    page.press("]")
    before = float(page.run("$('value').textContent"))
    page.press("]")
    assert float(page.run("$('value').textContent")) == pytest.approx(before + 0.01)
    page.press("0")
    assert page.run("$('value').textContent") == "own"
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.run(f"{CARDS}.indexOf(document.activeElement)") == 1
    page.run("$('sort').value = 'score'; $('sort').dispatchEvent(new Event('change'))")
    assert page.run(f"{CARDS}.map(a => a.card.score)") == sorted(per_image[0].score for per_image in explained)
    page.run("$('sort').value = 'doubt'; $('sort').dispatchEvent(new Event('change'))")
    doubts = page.run(f"{CARDS}.map(a => a.card.doubt)")
    assert doubts == sorted(doubts, reverse=True) and doubts[0] > 0
    page.run("$('sort').value = 'order'; $('find').value = 'B/'; $('find').dispatchEvent(new Event('input'))")
    assert page.run(f"{CARDS}.map(a => a.card.file)") == ["b/same.jpg", "b/same.png"]
    page.run("$('find').value = ''; $('find').dispatchEvent(new Event('input'))")
    name = explained[0][0].name
    page.run(f"$('class').value = {json.dumps(name)}; $('class').dispatchEvent(new Event('change'))")
    count = sum(any(exp.name == name for exp in per_image) for per_image in explained)
    assert page.run(f"{CARDS}.length") == count
    page.run("$('class').value = ''; $('class').dispatchEvent(new Event('change'))")


@browser
def test_doubt_is_how_the_largest_box_changes(page, explained):
    def iou(a, b):
        if not a or not b:
            return float(a == b)
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        both = max(w, 0) * max(h, 0)
        return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

    def first(exp, threshold):
        return next(iter(boxes_at(exp, min(max(threshold, 0.01), 0.99))), None)

    for number, per_image in enumerate(explained):  # images are small, and so not reduced
        doubts = [
            1 - sum(iou(first(exp, exp.threshold), first(exp, exp.threshold + d)) for d in (-0.1, 0.1)) / 2
            for exp in per_image
        ]
        assert page.run(f"cards[{number}].doubt") == pytest.approx(max(doubts))


@browser
def test_expected_beside_predicted(explained, folder, tmp_path):
    per_image = explained[0]
    other = next(label for label in range(3) if label != per_image[0].label)
    truth = [Expected(other, "<b>wren</b>", [[8.0, 8.0, 30.0, 24.0]])]
    with Exports([f"report:{tmp_path / 'report.html'}"]) as exports:
        exports.add(ImageExport("</script>.png", per_image, "x", truth))
        exports.add(ImageExport("right.png", explained[1][:1], "y", [Expected(explained[1][0].label, "kite", [])]))
    with chromium.Page(tmp_path / "report.html") as page:
        page.settle()
        titles = page.run("[...document.querySelectorAll('h2')].map(h => h.textContent)")
        assert titles == ["</script>.png", "right.png"]
        box = per_image[0].boxes[0].tolist()
        w, h = min(box[2], 30) - max(box[0], 8), min(box[3], 24) - max(box[1], 8)
        both = max(w, 0) * max(h, 0)
        expected = both / ((box[2] - box[0]) * (box[3] - box[1]) + 22 * 16 - both)
        assert f", IoU {expected:.2f}, at" in page.run("document.querySelector('.box').textContent")
        assert page.run("document.querySelector('figcaption span').textContent").endswith(", predicted")
        page.run("$('wrong').checked = true; $('wrong').dispatchEvent(new Event('change'))")
        assert page.run(f"{CARDS}.map(a => a.card.file)") == ["</script>.png"]


@pytest.mark.slow
@browser
def test_a_thousand_images_are_drawn_only_where_they_are_seen(explained, tmp_path):
    with Exports([f"report:{tmp_path / 'report.html'}"]) as exports:
        for number in range(1000):
            exports.add(ImageExport(f"{number}.png", explained[number % len(explained)], str(number)))
    start = time.perf_counter()
    with chromium.Page(tmp_path / "report.html") as page:
        page.settle()
        assert time.perf_counter() - start < 30
        assert page.run(f"{CARDS}.length") == 1000
        assert 0 < page.run("[...document.images].filter(i => i.src).length") < 200
        moved = f"const t = performance.now(); {SLIDE.format(0.5)}; near.forEach(draw); return performance.now() - t"
        assert page.run(f"(() => {{ {moved} }})()") < 1000


def test_a_page_is_whole_and_small(explained, model, options, folder, tmp_path):
    rng = np.random.default_rng(0)
    noise = camtools.explain(model, rng.integers(0, 256, (900, 1200, 3), dtype=np.uint8), pipeline="cam", **options)
    export([*explained, noise], str(tmp_path / "report.html"), root=folder)
    cards, images = scripts(tmp_path / "report.html")
    assert len(cards) == len(images) == len(explained) + 1
    assert all(image.startswith("data:image/jpeg;base64,") and len(image) < 100_000 for image in images)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"(src|href)=|https?://|@import", text)  # nothing is loaded from elsewhere
    assert [panel["threshold"] for panel in cards[0]["panels"]] == [exp.threshold for exp in explained[0]]


def test_maps_that_no_grid_makes_come_reduced_and_say_so(model, options, tmp_path):
    pytest.importorskip("pydensecrf", reason="needs the extra crf")
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    exp = camtools.explain(model, pixels, pipeline="rcam+crf", **options)
    export([exp], str(tmp_path / "report.html"))
    [[card], _] = scripts(tmp_path / "report.html")
    assert card["panels"][0]["rough"] and card["panels"][0]["grid"] == [96, 128]


def test_segmentations_are_refused(segmented, folder, tmp_path):
    with pytest.raises(InputError, match="the report shows explanations"):
        export(segmented, str(tmp_path / "report.html"), root=folder)
