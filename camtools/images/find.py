"""From the paths on the command line to images, and from each image to the folder of its results."""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from camtools.errors import InputError
from camtools.files import shortened
from camtools.images.stored import ImageBytes, in_store

# What folders, and patterns without a suffix, are searched for; a file named itself is read whatever its suffix.
SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Job:
    """One image and where its results go.

    Attributes:
        path: The image, as the user would write it.
        folder: Folder of its results, relative to the output folder, with forward slashes.
        file: The image, relative to what was named, with forward slashes: what exports call it.
    """

    path: Path
    folder: str
    file: str


def natural_key(path: Path | str) -> list[list[tuple[int, int, str]]]:
    """Sort key in which "bird" comes before "bird2" and that before "bird10", folder by folder."""
    path = Path(path)
    return [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part.casefold())]
        for part in (*path.parts[:-1], path.stem, path.suffix)
    ]


def find_jobs(paths: Sequence[str], out: Path | None = None) -> list[Job]:
    """Expand files, folders (with their sub-folders) and glob patterns; every image once, in natural order.

    Each image gets a folder of its own: its path without the suffix, relative to the folder that was named, or to the
    closest folder that holds all that were named. Images that differ in their suffix alone keep it ("bird-png").

    Args:
        paths: What the user named.
        out: The output folder; results in it from an earlier run are not taken for images.

    Raises:
        InputError: Something named does not exist or a folder holds no images.
    """
    files: dict[Path, Path] = {}
    roots: list[Path] = []
    for text in paths:
        root, matches = _expand(text, out)
        roots.append(root)
        for file in matches:
            files.setdefault(_resolved(file), file)
    ordered = sorted(files.values(), key=natural_key)
    places = _places(ordered, roots)
    return [Job(*job) for job in zip(ordered, _folders(places), map(str, places), strict=True)]


def find_images(place: str | os.PathLike[str]) -> list[Path] | list[str] | Iterator[ImageBytes]:
    """Return the images of a folder and its sub-folders, of a pattern, or of a list file (.txt, a path per line).

    Paths in a list file are relative to where the program runs. A folder or pattern may also be in a store of fsspec's
    ("s3://bucket/birds"), and a path or pattern that ends with .tar means shards as WebDataset makes them: their
    images, one after another, read when asked for.

    Args:
        place: What the caller named.

    Raises:
        InputError: It holds no images, or is none of these.
    """
    text = os.fspath(place)
    if in_store(text):
        return _in_store(text)
    if Path(text).suffix == ".tar":
        shards = sorted(map(Path, glob.glob(text)), key=natural_key)  # noqa: PTH207 - patterns may be absolute
        if not shards:
            raise InputError(f"There is no shard {text}. Name a .tar file, or a pattern such as 'birds-*.tar'.")
        return _in_shards(shards)
    if Path(text).suffix == ".txt" and Path(text).is_file():
        lines = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines()]
        return [Path(line) for line in lines if line]
    if not Path(text).is_dir() and not _MAGIC.search(text):
        raise InputError(f"{text!r} is neither a folder nor a pattern nor a list (.txt): pass [{text!r}] for one image")
    return [job.path for job in find_jobs([text])]


def _in_store(text: str) -> list[str]:
    """Return the URLs of the images of a store's folder or pattern, in natural order."""
    from fsspec.core import url_to_fs

    try:
        store, path = url_to_fs(text)
        found = store.glob(path) if _MAGIC.search(text) else store.find(path)
    except Exception as error:  # whatever the store's own library raises
        raise InputError(f"{text!r} cannot be listed ({type(error).__name__}: {error}): expected a folder") from error
    images = [str(store.unstrip_protocol(name)) for name in found if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not images:
        raise InputError(f"{text!r} holds no images ({', '.join(sorted(SUFFIXES))})")
    return sorted(images, key=natural_key)


def _in_shards(shards: Sequence[Path]) -> Iterator[ImageBytes]:
    for shard in shards:
        try:
            with tarfile.open(shard) as archive:
                for member in archive:
                    if member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                        file = archive.extractfile(member)
                        assert file is not None  # of a plain file
                        yield ImageBytes(file.read(), f"{shard}/{member.name}")
        except (OSError, tarfile.TarError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise InputError(f"{shard} cannot be read ({reason}): expected a whole .tar file. Copy it again") from error


def _expand(text: str, out: Path | None) -> tuple[Path, list[Path]]:
    """Return the folder that results are named relative to, and the images."""
    path = Path(text)
    if path.is_dir():
        files = _images_below(path, out)
        if not files:
            raise InputError(
                f"The folder {text} holds no images ({', '.join(sorted(SUFFIXES))}), nor do its sub-folders."
            )
        return path, files
    if path.exists():
        return path.parent, [path]
    if not _MAGIC.search(text):
        raise InputError(f"There is no file or folder {text}. Name images, folders, or patterns such as 'birds/*.jpg'.")
    any_suffix = path.suffix and not _MAGIC.search(path.suffix)
    files = []
    for match in glob.glob(text, recursive=True):  # noqa: PTH207 - patterns may be absolute
        hit = Path(match)
        if hit.is_dir():
            files += _images_below(hit, out) if not text.endswith("**") else []
        elif (any_suffix or hit.suffix.lower() in SUFFIXES) and not _inside(hit, out):
            files.append(hit)
    if not files:
        raise InputError(f"The pattern {text} matches no images. Quote it, or name the images' folder.")
    fixed = itertools.takewhile(lambda part: not _MAGIC.search(part), path.parts[:-1])
    return Path(*fixed), files


def _images_below(folder: Path, out: Path | None) -> list[Path]:
    files = []
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if not name.startswith(".") and not _inside(here / name, out)]
        files += [here / n for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")]
    return files


def _inside(path: Path, out: Path | None) -> bool:
    """Whether a path lies in one of the output folder's result folders, which hold a manifest."""
    if out is None or not out.is_dir():
        return False
    resolved, top = _resolved(path), out.resolve()
    below = [place for place in (resolved, *resolved.parents) if place != top and place.is_relative_to(top)]
    return any((place / "manifest.json").exists() for place in below)


def _resolved(path: Path) -> Path:
    """Return where a path leads; itself for links in a circle, which lead nowhere and fail when they are read."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _places(files: Sequence[Path], roots: Iterable[Path]) -> list[PurePosixPath]:
    """Return the images' paths relative to the closest folder that holds all that was named."""
    try:
        base = Path(os.path.commonpath([str(root.resolve()) for root in roots]))
    except ValueError:  # different drives
        base = Path()
    return [_relative(file, base) for file in files]


def _folders(places: Sequence[PurePosixPath]) -> list[str]:
    """Name a result folder for each image, without collisions."""
    plain = [
        str(PurePosixPath(*map(shortened, place.parts[:-1]), shortened(place.stem or place.name))) for place in places
    ]
    counts = Counter(name.casefold() for name in plain)
    above = {str(parent).casefold() for name in plain for parent in PurePosixPath(name).parents}
    names: list[str] = []
    taken = {"manifest.json"}
    for place, name in zip(places, plain, strict=True):
        if counts[name.casefold()] > 1 or name.casefold() in above:
            name += shortened(place.suffix.lower().replace(".", "-"), 30)
        unique, number = name, 2
        while unique.casefold() in taken or (number > 2 and unique.casefold() in above):
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.casefold())
        names.append(unique)
    return names


def _relative(file: Path, base: Path) -> PurePosixPath:
    """Return an image's place below the base; links are followed for their folder, not for their own name."""
    whole = file.parent.resolve() / file.name
    if whole.is_relative_to(base) and base.parts:
        return PurePosixPath(whole.relative_to(base).as_posix())
    return PurePosixPath(*[part for part in whole.parts if part != whole.anchor])
