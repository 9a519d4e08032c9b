"""The HTML report: one page with everything in it, whose threshold slider moves masks and boxes live."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from camtools.errors import InputError
from camtools.explanation import Explanation
from camtools.exports.item import ImageExport, Writer
from camtools.files import replacing
from camtools.steps import MinMax

_LONGEST, _BYTES = 480, 60_000  # of an image: pixels, and its JPEG's size
_REDUCED = 128  # longest side of a map that no grid makes
_PLACE = "<!-- cards -->"


def report(path: Path, class_names: Sequence[str] | None) -> Writer:
    """Write the page, one image at a time.

    Each image comes as a JPEG of at most 480 pixels and 60 kB, and each class's map as the grid that it is made of,
    float32: the page resizes and thresholds it as `Explanation` does, so boxes are the same at any threshold. Maps that
    no grid makes (those of CRF) come reduced to 128 pixels, and the page says so.
    """
    page = (files("camtools.exports") / "report.html").read_text(encoding="utf-8")
    head, tail = page.split(_PLACE)
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(head)
        while (item := (yield)) is not None:
            # Nothing in a name may end the script that it is in.
            text = json.dumps(_card(item), ensure_ascii=False).replace("<", "\\u003c")
            file.write(f'<script type="application/json" class="card">{text}</script>\n')
            file.write(f'<script type="text/plain">{_jpeg(item.image)}</script>\n')
        file.write(tail)


def _card(item: ImageExport) -> dict[str, Any]:
    expected, panels = item.expected, []
    labels = [one.label for one in expected or ()]
    several = len({result.pipeline for result in item.results}) > 1
    for result in item.results:
        if not isinstance(result, Explanation):
            raise InputError("the report shows explanations: expected those of explain or evaluate, got a segmentation")
        role = "" if expected is None else "expected" if result.label in labels else "predicted"
        about = {"label": result.label, "name": result.name, "score": result.score, "role": role}
        about |= {"threshold": result.threshold, "pipeline": result.pipeline if several else ""}
        panels.append(about | _map(result))
    truth = None if expected is None else [asdict(one) for one in expected]
    predicted = int(item.results[0].logits.argmax())
    return {"file": item.file, "predicted": predicted, "expected": truth, "panels": panels}


def _map(exp: Explanation) -> dict[str, Any]:
    """Return what the page makes the map of: a grid, where it lies in the image, and whether it is then normalised."""
    size, geometry = exp.size, exp.geometry
    if exp.kept is None and all(type(step) is MinMax for step in exp.pixel_steps):
        minmax, rough = bool(exp.pixel_steps), False
        grid, input_size, scale, offset = exp.grid_map, geometry.input_size, geometry.scale, geometry.offset
    else:
        shrink = min(1.0, _REDUCED / max(size))
        height, width = (max(1, round(side * shrink)) for side in size)
        minmax, rough = False, shrink < 1
        grid, input_size = exp.map_at((height, width)), (height, width)
        scale, offset = (height / size[0], width / size[1]), (0.0, 0.0)
    place = {"size": size, "input": input_size, "scale": scale, "offset": offset}
    return {"grid": list(grid.shape), "values": _base64(grid), "minmax": minmax, "rough": rough} | place


def _base64(values: Tensor) -> str:
    array = np.ascontiguousarray(values.detach().cpu().numpy().astype("<f4"))
    return base64.b64encode(array.tobytes()).decode()


def _jpeg(image: Image.Image) -> str:
    """Return an image as a data URL."""
    small = image.convert("RGB")
    small.thumbnail((_LONGEST, _LONGEST), reducing_gap=2)
    for quality in range(85, 0, -15):
        stream = io.BytesIO()
        small.save(stream, "jpeg", quality=quality)
        if stream.tell() <= _BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
