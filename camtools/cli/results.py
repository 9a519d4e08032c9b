"""The folder of one image's results: written beside its place, moved there whole, and recognised as whole later."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camtools.errors import InputError
from camtools.files import parse_json, shortened, staging

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

    from camtools.explanation import Explanation
    from camtools.segmentation import Segmentation

MANIFEST = "manifest.json"
COMPARISON = "compare.jpg"


def fingerprint(settings: dict[str, Any], model: nn.Module, class_names: Sequence[str] | None) -> str:
    """Return a hash of all that decides an image's results besides the image: settings, weights and class names."""
    from camtools.checkpoints import weights_hash

    told = {**settings, "weights": weights_hash(model), "class_names": class_names}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_image(
    results: Sequence[Explanation | Segmentation], folder: Path, entry: dict[str, Any], made_by: str, **looks: Any
) -> None:
    """Write an image's results to a folder: one class directly, several in a sub-folder each.

    The manifest is moved last; until then one takes its place that only lists the files, of an older result and of
    this one, so a folder whose manifest says what is in it is whole, and after a kill the next run knows what to
    remove. Anything else in the folder stays.

    Args:
        results: One per class, or one segmentation, of one image.
        folder: Its folder; made if need be.
        entry: The image's entry in the run's manifest, kept in the folder's manifest under "image", where its
            "classes" are left out if there is but one result: they are the rest of the manifest then.
        made_by: The fingerprint of the run, kept beside it.
        looks: What is saved and how, options of `Explanation.save`.

    Raises:
        InputError: The folder's place is taken by a file.
        OSError: It cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, where the results' folder should be. Choose another --out.")
    with staging(folder) as stage:
        pipelines = list(dict.fromkeys(result.pipeline for result in results))
        for result in results:
            place = stage if len(results) == 1 else stage / class_folder(result, pipelines)
            result.save(place, **looks)
        if len(pipelines) > 1 and "overlay" in (looks.get("files") or ("overlay",)):
            _compared(results, pipelines).save(stage / COMPARISON, quality=90)
        files = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())
        files = [name for name in files if name != MANIFEST]
        kept = {key: value for key, value in entry.items() if key != "classes" or len(results) > 1}
        document = _read_manifest(stage) | {"image": kept | {"files": files, "made_by": made_by}}
        older = _files(_read_manifest(folder))
        _put_manifest({"complete": False, "image": {"files": sorted({*older, *files})}}, stage, folder)
        for name in older:
            stale = folder / name
            if stale.resolve().is_relative_to(folder.resolve()):
                stale.unlink(missing_ok=True)
                for parent in stale.parents:
                    if parent == folder or not parent.is_dir() or any(parent.iterdir()):
                        break
                    parent.rmdir()
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).replace(folder / name)
        _put_manifest(document, stage, folder)


def class_folder(result: Any, pipelines: Sequence[str] = ()) -> str:
    """Name the sub-folder of one class: its index, and its name as far as file systems take it.

    Args:
        result: Of the class.
        pipelines: Of all results of the image; where there are several, the result's own is the folder above.
    """
    words = re.sub(r"[^\w-]+", "-", result.name or "").strip("-")
    name = shortened(f"{result.label}-{words}") if words and words != str(result.label) else str(result.label)
    if len(pipelines) < 2:
        return name
    own = re.sub(r"[^\w.+-]+", "-", result.pipeline).strip("-.")
    same = [text for text in pipelines if re.sub(r"[^\w.+-]+", "-", text).strip("-.") == own]
    number = f"-{same.index(result.pipeline) + 1}" if len(same) > 1 else ""
    return f"{shortened(own)}{number}/{name}"


def _compared(results: Sequence[Any], pipelines: Sequence[str]) -> Image.Image:
    """Draw an image's results: a row per class, a column per pipeline."""
    from camtools.plot import compare

    rows = {label: [result for result in results if result.label == label] for label in (r.label for r in results)}
    return compare(list(rows.values()), titles=pipelines, image=True)


def finished(folder: Path, image: Path, made_by: str) -> list[dict[str, Any]] | None:
    """Return what the results' `to_dict` said, if the folder holds them whole, newer than the image and of this run.

    Args:
        folder: The image's.
        image: Where the image is.
        made_by: The fingerprint of the run; results of another, or of none, do not count.
    """
    manifest = _read_manifest(folder)
    entry = manifest.pop("image", None)
    if not isinstance(entry, dict) or entry.get("source") != str(image) or entry.get("made_by") != made_by:
        return None
    files = _files({"image": entry})
    if not files or not all((folder / name).is_file() for name in files):
        return None
    if (folder / MANIFEST).stat().st_mtime < image.stat().st_mtime:
        return None
    for name in ("files", "rebuild"):  # what `to_dict` does not say
        manifest.pop(name, None)
    return entry.get("classes", [manifest])


def _files(manifest: dict[str, Any]) -> list[str]:
    """Return the files that a folder's manifest lists."""
    entry = manifest.get("image")
    files = entry.get("files") if isinstance(entry, dict) else None
    return [name for name in files if isinstance(name, str)] if isinstance(files, list) else []


def _put_manifest(document: dict[str, Any], stage: Path, folder: Path) -> None:
    """Write a folder's manifest, whole or not at all."""
    (stage / MANIFEST).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (stage / MANIFEST).replace(folder / MANIFEST)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest; empty where there is none."""
    try:
        data = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
