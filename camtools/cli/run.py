"""One run of `camtools explain`: images read ahead, explained by the batch, saved, and accounted for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from camtools.classes.names import resolve_target
from camtools.cli.common import Format, complain, stdout_console
from camtools.cli.images import Job
from camtools.cli.results import finished, save_image, write_json
from camtools.errors import InputError, ModelError, TargetError
from camtools.explainer import Explainer
from camtools.explanation import Explanation
from camtools.images.read import read_image

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Settings:
    """What decides a run's results, as the user wrote it; kept in the manifest and compared by --resume."""

    model: str
    weights: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    pipeline: str = "cam"
    target: list[str] | None = None
    top_k: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    threshold: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON would give them back."""
        return json.loads(json.dumps(asdict(self), default=str))


class Batches:
    """Explains lists of images with one explainer and the classes asked for.

    Args:
        explainer: Ready to run.
        targets: Classes by index or name; None for the likeliest.
        top_k: How many of the likeliest; None for one.
        class_names: For the targets.
    """

    def __init__(
        self,
        explainer: Explainer,
        targets: Sequence[str] | None,
        top_k: int | None,
        class_names: Sequence[str] | None,
    ) -> None:
        self.explainer = explainer
        self.top_k = top_k
        self.targets = [resolve_target(target, class_names) for target in targets] if targets else None
        if self.targets and len(set(self.targets)) < len(self.targets):
            raise TargetError(f"--target names a class twice: {', '.join(targets or ())} are classes {self.targets}.")

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Explanation]]:
        """Return the explanations of each image, one a class."""
        target: Any = None
        if self.targets:
            target = self.targets[0] if len(self.targets) == 1 else [self.targets] * len(images)
        found: Any = self.explainer(list(images), target=target, top_k=self.top_k)
        return [list(one) if isinstance(one, Sequence) else [one] for one in found]


class Run:
    """The account of one run.

    Attributes:
        settings: What decides the results.
        out: The output folder; None where nothing is written.
        results: An image each: "source", "folder" (relative to `out`) and "classes", in the order of the images.
        failed: An image each: "source" and "error".
        fresh: How many images were explained in this run.
        interrupted: Whether Ctrl-C ended it.
        doing: What the progress bar says.
    """

    doing = "Explaining"

    def __init__(self, settings: Settings, out: Path | None, *, resume: bool = False) -> None:
        """Prepare the output folder.

        Args:
            settings: What decides the results.
            out: The output folder, made if need be; None to write nothing.
            resume: Whether whole results in it are kept.

        Raises:
            InputError: `out` cannot be a folder, or holds results of other settings.
        """
        self.settings, self.out, self.resume = settings, out, resume
        self.results: list[dict[str, Any]] = []
        self.failed: list[dict[str, str]] = []
        self.fresh = 0
        self.interrupted = False
        if out is None:
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out} cannot be made a folder: {error.strerror}.") from error
        if resume:
            self._check_settings(out / MANIFEST)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole account, as the manifest and `--format json` give it."""
        return {
            "settings": self.settings.to_dict(),
            "complete": not self.interrupted,
            "images": self.results,
            "failed": self.failed,
        }

    def over(self, jobs: Sequence[Job], explain: Batches, batch_size: int) -> None:
        """Explain all images that are not done yet, save each, and write the manifest; Ctrl-C ends it early, tidily.

        Args:
            jobs: The images.
            explain: What to do with a batch.
            batch_size: Images per forward.

        Raises:
            CamtoolsError: What is wrong with all images alike: the model, the class, the pipeline.
        """
        done = {job: entry for job in jobs if (entry := self._done(job)) is not None}
        entries: dict[Job, dict[str, Any]] = dict(done)
        todo = [job for job in jobs if job not in done]
        if self.out is not None:
            self._write(complete=False)
        with _progress(len(todo)) as progress, ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            bar = progress.add_task(self.doing, total=len(todo))
            try:
                for chunk in _read_ahead(todo, batch_size, pool):
                    entries.update(self._chunk(chunk, explain, pool))
                    progress.advance(bar, len(chunk))
            except KeyboardInterrupt:
                self.interrupted = True
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self.results = [entries[job] for job in jobs if job in entries]
                self.fresh = len(entries) - len(done)
        if self.out is not None:
            self._write(complete=not self.interrupted)

    def _chunk(
        self, chunk: list[tuple[Job, Image.Image | InputError]], explain: Batches, pool: ThreadPoolExecutor
    ) -> dict[Job, dict[str, Any]]:
        """Explain and save one batch; images that fail are noted."""
        read: list[tuple[Job, Image.Image]] = []
        for job, image in chunk:
            if isinstance(image, InputError):
                self._fail(job, image)
            else:
                read.append((job, image))
        found = self._explained(read, explain)
        saves = {job: pool.submit(self._save, job, explanations) for job, explanations in found}
        entries = {}
        for job, save in saves.items():
            try:
                entries[job] = save.result()
            except (OSError, InputError) as error:
                self._fail(job, error)
        return entries

    def _explained(
        self, read: list[tuple[Job, Image.Image]], explain: Batches
    ) -> Iterator[tuple[Job, list[Explanation]]]:
        """Explain a batch; where an image in it cannot be, go image by image and note which."""
        import torch

        if not read:
            return
        try:
            found = explain([image for _, image in read])
        except InputError as error:
            if len(read) == 1:
                self._fail(read[0][0], error)
                return
            for one in read:
                yield from self._explained([one], explain)
            return
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"The device ran out of memory with {len(read)} images per forward: give a smaller --batch-size."
            ) from error
        yield from zip((job for job, _ in read), found, strict=True)

    def _save(self, job: Job, explanations: list[Explanation]) -> dict[str, Any]:
        entry: dict[str, Any] = {"source": str(job.path), "folder": None if self.out is None else job.folder}
        entry["classes"] = [explanation.to_dict() for explanation in explanations]
        if self.out is not None:
            save_image(explanations, self.out / job.folder, entry)
        return entry

    def _done(self, job: Job) -> dict[str, Any] | None:
        """Return the entry of an image whose result is whole and newer than the image."""
        if not self.resume or self.out is None:
            return None
        return finished(self.out / job.folder, job.path)

    def _fail(self, job: Job, error: Exception) -> None:
        self.failed.append({"source": str(job.path), "error": " ".join(str(error).split())})

    def _check_settings(self, manifest: Path) -> None:
        try:
            before = json.loads(manifest.read_text(encoding="utf-8"))["settings"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{manifest} is not a manifest of camtools, so --resume cannot go by it.") from error
        now = self.settings.to_dict()
        changed = [f"{key} {before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
        if changed:
            raise InputError(
                f"{manifest.parent} holds results of other settings ({'; '.join(changed)}), so --resume would mix "
                "them. Choose another --out, or leave out --resume to replace them."
            )

    def _write(self, *, complete: bool) -> None:
        assert self.out is not None
        write_json(self.to_dict() | {"complete": complete}, self.out / MANIFEST)


def _read(path: Path) -> Image.Image | InputError:
    try:
        image = read_image(path).image
    except InputError as error:
        return error
    assert image is not None  # paths give images, never ready tensors
    image.filename = str(path)  # type: ignore[attr-defined]  # PIL's own name for where an image came from
    return image


def _read_ahead(
    jobs: Sequence[Job], batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[list[tuple[Job, Image.Image | InputError]]]:
    """Yield batches of images, or of what is wrong with them; the next is read while one is worked on."""
    chunks = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    ahead: list[Future[Image.Image | InputError]] = []
    for number, chunk in enumerate(chunks):
        current = ahead or [pool.submit(_read, job.path) for job in chunk]
        following = chunks[number + 1] if number + 1 < len(chunks) else []
        ahead = [pool.submit(_read, job.path) for job in following]
        yield [(job, future.result()) for job, future in zip(chunk, current, strict=True)]


class _Speed(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "- images/s")


def _progress(total: int) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal or total == 0,
        transient=True,
    )


def show(run: Run, output: Format) -> None:
    """Print a run's results on stdout.

    Args:
        run: The finished run.
        output: A table for people, or JSON: the same document as the manifest.
    """
    if output is Format.JSON:
        typer.echo(json.dumps(run.to_dict(), indent=1, ensure_ascii=False))
        return
    if not run.results:
        return
    table = Table("Image", "Class", "Score", "Box (x0, y0, x1, y1)", "Map")
    for entry in run.results:
        for number, found in enumerate(entry["classes"]):
            table.add_row(Text("" if number else entry["source"], overflow="fold"), *_cells(found))
    stdout_console().print(table)


def _cells(found: dict[str, Any]) -> list[Text]:
    name, label = found.get("name"), found["label"]
    box = found.get("box")
    cells = [
        f"{name} ({label})" if name and name != str(label) else str(label),
        f"{found['score']:.3f}",
        ", ".join(str(edge) for edge in box) if box else "none",
        "exact" if found["exact"] else "linearised",
    ]
    return [Text(cell) for cell in cells]


def summarise(run: Any, seconds: float) -> None:
    """Say on stderr how much was done, and what failed."""
    for failure in run.failed:
        complain(f"{failure['source']}: {failure['error']}")
    done, skipped = run.fresh, len(run.results) - run.fresh
    parts = [f"{done} image{'s' * (done != 1)} in {seconds:.1f} s ({done / max(seconds, 1e-9):.1f} images/s)"]
    parts += [f"{skipped} done before"] if skipped else []
    parts += [f"{len(run.failed)} failed"] if run.failed else []
    parts += [f"results in {run.out}"] if run.out is not None else []
    typer.echo(", ".join(parts), err=True)
