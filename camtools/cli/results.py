"""The folder of one image's results: written beside its place, moved there whole, and recognised as whole later."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camtools.errors import InputError
from camtools.explanation import Explanation

MANIFEST = "manifest.json"


def save_image(explanations: Sequence[Explanation], folder: Path, entry: dict[str, Any]) -> None:
    """Write an image's explanations to a folder: one class directly, several in a sub-folder each.

    The manifest is moved last, and an older result's is removed first, so a folder with a manifest is whole. Files of
    an older result are removed; anything else in the folder stays.

    Args:
        explanations: One a class, of one image.
        folder: Its folder; made if need be.
        entry: The image's entry in the run's manifest, kept in the folder's manifest under "image", where its
            "classes" are left out if there is but one: they are the rest of the manifest then.

    Raises:
        InputError: The folder's place is taken by a file.
        OSError: It cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, where the results' folder should be. Choose another --out.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        new = part / "new"
        new.mkdir()
        for explanation in explanations:
            explanation.save(new if len(explanations) == 1 else new / class_folder(explanation))
        manifest = _read_manifest(new) or {}
        files = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
        files = [name for name in files if name != MANIFEST]
        kept = {key: value for key, value in entry.items() if key != "classes" or len(explanations) > 1}
        write_json(manifest | {"image": kept | {"files": files}}, new / MANIFEST)
        _move_into_place(new, folder, files)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def class_folder(explanation: Explanation) -> str:
    """Name the sub-folder of one class: its index, and its name as far as file systems take it."""
    words = re.sub(r"[^\w-]+", "-", explanation.name or "").strip("-")
    return f"{explanation.label}-{words}" if words and words != str(explanation.label) else str(explanation.label)


def finished(folder: Path, image: Path) -> dict[str, Any] | None:
    """Return an image's entry if its folder holds a whole result of it, newer than the image; else None."""
    manifest = _read_manifest(folder) or {}
    entry = manifest.pop("image", None)
    if not isinstance(entry, dict) or entry.get("source") != str(image):
        return None
    files = entry.pop("files", None)
    if not isinstance(files, list) or not all((folder / name).is_file() for name in files):
        return None
    if (folder / MANIFEST).stat().st_mtime < image.stat().st_mtime:
        return None
    manifest.pop("files", None)
    return {"classes": [manifest]} | entry


def write_json(data: Any, path: Path) -> None:
    """Write a JSON file all or nothing."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _move_into_place(new: Path, folder: Path, files: Sequence[str]) -> None:
    """Move a finished result to its folder, over an older one if there is one."""
    if not folder.exists():
        new.replace(folder)
        return
    old = (_read_manifest(folder) or {}).get("image")
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in old.get("files", []) if isinstance(old, dict) else []:
        stale = folder / name
        if name not in files and stale.resolve().is_relative_to(folder.resolve()):
            stale.unlink(missing_ok=True)
            if stale.parent != folder and stale.parent.is_dir() and not any(stale.parent.iterdir()):
                stale.parent.rmdir()
    for name in [*files, MANIFEST]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).replace(folder / name)
