"""The site's formulas and the tutorials' images, without any script in the browser."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)


def on_page_content(html: str, **_: Any) -> str:
    """Turn the TeX that `pymdownx.arithmatex` has found in a page into MathML."""

    def drawn(found: re.Match[str]) -> str:
        tex = unescape(found[2]).replace("'", r"\text{′}")  # the sign is raised already
        return convert(tex, display="inline" if found[1] == "span" else "block")

    return FORMULA.sub(drawn, html)


def last_value(block: Any, script: Any) -> str:
    """Save what a cell ends in as an image, if a notebook would show it as one."""
    from mkdocs_gallery.scrapers import figure_md_or_html

    known = script.run_vars.example_globals
    value = known.get("___")
    if not hasattr(value, "_repr_png_"):
        return ""
    path = Path(next(script.run_vars.image_path_iterator))
    path.write_bytes(value._repr_png_())
    known["___"] = None  # shown
    return figure_md_or_html([path], script)


conf = {"image_scrapers": (last_value, "matplotlib")}  # for mkdocs-gallery
