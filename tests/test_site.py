"""The built site: every public name has a reference entry, links lead somewhere, nothing is fetched from elsewhere.

`mkdocs build && pytest tests/test_site.py`. Links to other sites are only listed: `pytest tests/test_site.py -s`.
"""

from __future__ import annotations

import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).resolve().parent.parent / "site"
API = Path(__file__).with_name("api.txt")
pytestmark = pytest.mark.skipif(not SITE.exists(), reason="the site is not built: mkdocs build")


class Page(HTMLParser):
    """What a page points at, and where it can be pointed to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.parts: list[str] = []  # scripts, styles, images, fonts: what a browser loads by itself
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value for name, value in attrs if value}
        self.ids |= {known[name] for name in ("id", "name") if name in known}
        if tag == "a" and "href" in known:
            self.links.append(known["href"])
        elif "src" in known:
            self.parts.append(known["src"])
        elif tag == "link" and known.get("rel") != "canonical" and "href" in known:
            self.parts.append(known["href"])


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(SITE.rglob("*.html")) if path.name != "404.html"}


def leads_nowhere(link: str, page: Path, pages: dict[Path, Page]) -> bool:
    """Return whether a relative link has no file, or its file no such place."""
    address = urlsplit(link)
    target = (page.parent / unquote(address.path)).resolve() if address.path else page
    target = target / "index.html" if target.is_dir() else target
    known = target in pages and address.fragment
    return not target.exists() or bool(known and unquote(address.fragment) not in pages[target].ids)


def public_names() -> list[str]:
    """Return the names that `tests/api.txt` lists, each with its module."""
    module, names = "", []
    for line in API.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            module = line[2:]
        elif found := re.match(r"(?:class )?(\w+)", line):
            names.append(f"{module}.{found[1]}")
    return names


def test_every_public_name_has_a_reference_entry():
    inventory = zlib.decompress((SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    entries = {line.split(" ", 1)[0] for line in inventory.splitlines()}
    public = public_names()
    assert {"camtools.explain", "camtools.steps.NWC", "camtools.PRESETS", "camtools.plot.compare"} <= set(public)
    own = [f"{name}.{name.rpartition('.')[2]}" for name in public]  # a function that is called like its module
    assert [name for name, full in zip(public, own, strict=True) if not {name, full} & entries] == []


def test_internal_links_lead_somewhere(pages):
    inside = {
        (path, link) for path, page in pages.items() for link in page.links + page.parts if not urlsplit(link).scheme
    }
    assert len(inside) > 1000
    broken = [f"{path.relative_to(SITE)}: {link}" for path, link in sorted(inside) if leads_nowhere(link, path, pages)]
    assert not broken, "\n".join(broken)


def test_nothing_is_loaded_from_elsewhere(pages):
    foreign = {part for page in pages.values() for part in page.parts if urlsplit(part).netloc}
    styles = "".join(path.read_text(encoding="utf-8") for path in SITE.rglob("*.css"))
    foreign |= {url for url in re.findall(r"url\(\s*[\"']?([^)\"']+)", styles) if urlsplit(url).netloc}
    assert not foreign


def test_external_links_are_listed(pages):
    outside = sorted({link for page in pages.values() for link in page.links if urlsplit(link).netloc})
    print("\n" + "\n".join(outside))
    assert all(urlsplit(link).scheme == "https" for link in outside), outside


def test_formulas_are_drawn(pages):
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    assert "<math" in text and 'class="arithmatex"' not in text
    drawn = set(re.findall(r"<math [^>]*>", text))
    assert drawn == {
        f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="{how}">' for how in ("inline", "block")
    }
