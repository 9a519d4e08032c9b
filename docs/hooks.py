"""The site's formulas: TeX between dollars becomes MathML, drawn without any script."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)


def on_page_content(html: str, **_: Any) -> str:
    """Replace the formulas that `pymdownx.arithmatex` has found in a page."""
    return FORMULA.sub(
        lambda found: convert(
            unescape(found[2]), "inline" if found[1] == "span" else "block"
        ),
        html,
    )
