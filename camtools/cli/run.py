"""One run of `camtools explain` or `segment`: images read ahead, done by the batch, saved, and accounted for."""

from __future__ import annotations

import abc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from camtools.cli import common
from camtools.cli.options import Format, Progress
from camtools.cli.results import MANIFEST, fingerprint, finished, save_image
from camtools.errors import InputError, ModelError
from camtools.files import locked, parse_json, write_json

if TYPE_CHECKING:
    from rich.text import Text

    from camtools.images.batches import Batch, Ready
    from camtools.images.find import Job
    from camtools.processes import Team
    from camtools.sources.base import LoadedModel

MOST_ROWS = 20  # of a table; above it, what people want is a summary


class Run(abc.ABC):
    """The account of one run; `explain` and `segment` are a subclass each.

    Attributes:
        doing: What the progress bar says.
        columns: Of the table that is printed.
        source: The model, as `load` takes it.
        settings: What decides the results, as the user wrote it; kept in the manifest and compared by --resume.
        out: The output folder; None where nothing is written.
        export_to: What --export names.
        class_names: Names of the model's classes; None where they are not known.
        team: This process and the others of the run, which share the images; the first writes the manifest and prints.
        made_by: Fingerprint of settings and weights, kept with every result: --resume keeps only what it made.
        results: One per image: "source", "file" (see `Job`), "folder" (relative to `out`) and what `entry` returns, in
            the images' order.
        failed: One per image: "source" and "error".
        began: When, as `time.perf_counter` counts.
        fresh: How many images were done in this run.
        interrupted: Whether Ctrl-C ended it.
    """

    team: Team
    doing: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        source: dict[str, Any],
        settings: dict[str, Any],
        looks: dict[str, Any],
        out: Path | None,
        resume: bool,
        exports: Sequence[str] = (),
    ) -> None:
        self.began = time.perf_counter()
        if exports and resume:
            raise typer.BadParameter(
                "does not go with --resume, which leaves results out: 'camtools export-results OUT ...' exports all of "
                "them afterwards",
                param_hint="--export",
            )
        if resume and out is None:
            raise typer.BadParameter("needs --out, where the earlier results are", param_hint="--resume")
        self.source, self.out, self.resume = source, out, resume
        self.export_to = exports
        self.class_names: Sequence[str] | None = None
        self.looks, self.plain, self.lines = looks, False, False
        drawn = out is not None and "overlay" in (looks["files"] or ("overlay",))
        self.overlay_side = (looks["overlay_size"] or 0) if drawn else None
        self.targets: list[int] | None = None
        self.made_by = ""
        self.settings = json.loads(json.dumps(source | settings, default=str))  # as the manifest gives them back
        self.results: list[dict[str, Any]] = []
        self.failed: list[dict[str, str]] = []
        self.fresh = 0
        self.interrupted = False

    def __call__(
        self,
        paths: list[str],
        class_names: Path | None,
        device: str,
        batch_size: int,
        output: Format,
        workers: int = 4,
        progress: Progress = Progress.AUTO,
    ) -> None:
        """Do what a command is for: find the images, build the model, run it over them, print and exit.

        Args:
            paths: What the user named.
            class_names: File of the names of the model's classes.
            device: A device's name.
            batch_size: Images per forward.
            output: What to print.
            workers: Threads that read, and as many that save.
            progress: How progress is shown.
        """
        self.plain, self.lines, self.stdout = progress is Progress.PLAIN, output is Format.JSONL, sys.stdout
        with common.exit_codes(self.out):
            from camtools.images.find import find_jobs

            jobs = find_jobs(paths, self.out)
            with common.stdout_to_stderr():
                from camtools.exports import Exports
                from camtools.processes import team

                self.team = team()
                if self.export_to and self.team.size > 1:
                    raise typer.BadParameter(
                        "is for one process, and this run has several: 'camtools export-results OUT ...' exports "
                        "everything afterwards",
                        param_hint="--export",
                    )
                self.exports = Exports(self.export_to)
                with locked(self.out if self.team.leads else None):
                    if self.team.leads:
                        self.open_out()
                    self.team.wait()
                    loaded = common.load(**self.source, class_names=class_names)
                    known = {"transform": loaded.preprocess, "class_names": loaded.class_names}
                    self.made_by = fingerprint(self.settings, loaded.model, loaded.class_names)
                    place = common.pick_device(self.team.device(device))
                    self.prepare(loaded, device=place, batch_size=batch_size, **known)
                    self.class_names = self.exports.class_names = loaded.class_names
                    start = time.perf_counter()
                    with self.exports:
                        self.over(jobs, batch_size, workers)
                        if self.interrupted:
                            self.exports.discard()
            if not self.team.leads:  # exits with 0: launchers end all when one fails, and the leader still writes
                return
            self.show(output)
            failed = [(failure["source"], failure["error"]) for failure in self.failed]
            before = len(self.results) - self.fresh
            common.summarise(self.fresh, self.began, time.perf_counter() - start, failed, self.out, before)
            if self.interrupted:
                raise KeyboardInterrupt
        if self.failed:
            raise typer.Exit(common.SOME_FAILED)

    @abc.abstractmethod
    def prepare(self, loaded: LoadedModel, **known: Any) -> None:
        """Make ready what is run on every batch, and find the classes asked for.

        Args:
            loaded: The model.
            known: device, batch_size, transform and class_names, as `Explainer` and `Segmenter` take them.
        """

    @property
    @abc.abstractmethod
    def workers(self) -> Sequence[Any]:
        """The `Explainer`s, one per pipeline, or the `Segmenter`."""

    @abc.abstractmethod
    def do(self, batch: Batch) -> list[list[Any]]:
        """Return each image's explanations, one per class, or its segmentation."""

    @abc.abstractmethod
    def entry(self, documents: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what the manifest says of an image whose results have these dictionaries."""

    @abc.abstractmethod
    def rows(self, entry: dict[str, Any]) -> Iterator[list[str]]:
        """Yield an image's rows of the table, without the image's name."""

    def to_dict(self) -> dict[str, Any]:
        """Return the whole account, as the manifest and `--format json` give it."""
        done = {"complete": not self.interrupted, "images": self.results, "failed": self.failed}
        return {"settings": self.settings} | done

    def over(self, jobs: Sequence[Job], batch_size: int, workers: int) -> None:
        """Do all images that are not done yet, save each, and write the manifest; Ctrl-C ends it early, tidily.

        Reading and saving go on in threads while the model runs; at most some two batches wait at either side of it.

        Args:
            jobs: The images.
            batch_size: Images per forward.
            workers: Threads that read, and as many that save.

        Raises:
            CamtoolsError: What is wrong with all images alike: the model, the class, the pipeline.
        """
        from camtools.exports import ImageExport
        from camtools.images.batches import read_ahead
        from camtools.progress import progress_bar

        mine = self.team.part(jobs, batch_size)
        entries = {job: entry for job in mine if (entry := self._done(job)) is not None}
        todo = [job for job in mine if job not in entries]
        self._write({"complete": False})
        images = read_ahead(self._read, todo, workers, ahead=batch_size + workers)
        shown = len(todo) if self.team.leads else 0
        with closing(images), progress_bar(shown, self.doing, plain=self.plain) as advance:
            results = self._results(zip(todo, images, strict=True), batch_size)
            try:
                with closing(read_ahead(self._save, results, workers, ahead=batch_size)) as saved:
                    for outcome in saved:
                        if isinstance(outcome, Exception):
                            raise outcome
                        job, entry, of_image = outcome
                        if entry is not None:
                            entries[job] = entry
                            self.exports.add(ImageExport(job.file, of_image, job.folder))
                            self._tell(entry)
                        advance(1)
            except KeyboardInterrupt:
                self.interrupted = True
        if self.interrupted:  # what was being saved by then has been saved, by all processes: they cannot be asked
            entries |= {job: entry for job in jobs if job not in entries and (entry := self._whole(job)) is not None}
        self.fresh = sum(job in entries for job in todo)
        if not self.interrupted:
            shares = self.team.gather((entries, self.failed, self.fresh))
            entries = {job: entry for share in shares for job, entry in share[0].items()}
            self.failed = [failure for share in shares for failure in share[1]]
            self.fresh = sum(share[2] for share in shares)
        self.results = [entries[job] for job in jobs if job in entries]
        self._write({})

    def _read(self, job: Job) -> Ready:
        """Read an image and make it ready for the model; of a large one only as much as is drawn on is kept."""
        from camtools.images.batches import prepare
        from camtools.result import fitted

        if printable(job.path) != str(job.path):
            raise InputError(f"the name of {printable(job.path)} is no UTF-8: expected one that is. Rename the file")
        engines, drawn = [worker.engine for worker in self.workers], self.overlay_side
        needs = [engine.least for engine in engines]
        engine = engines[0]
        if None in needs or drawn == 0:  # 0: overlays as large as the image
            return prepare(engine.transform, job.path, self.targets or None)

        def least(size: tuple[int, int]) -> tuple[int, int]:
            sizes = [need(size) for need in needs if need is not None]
            heights, widths = zip(*sizes, fitted(size, drawn) if drawn else (0, 0), strict=True)
            return max(heights), max(widths)

        ready = prepare(engine.transform, job.path, self.targets or None, least=least)
        image = ready.input_image
        return ready._replace(input_image=image.shrunk(least(image.size)))

    def _results(self, read: Iterator[tuple[Job, Any]], batch_size: int) -> Iterator[tuple[Job, list[Any] | None]]:
        """Yield every image's results, None where it failed, which is noted."""
        while chunk := list(islice(read, batch_size)):
            sound = []
            for job, outcome in chunk:
                if isinstance(outcome, OSError | InputError):
                    self._fail(job, outcome)
                    yield job, None
                elif isinstance(outcome, Exception):
                    raise outcome
                else:
                    sound.append((job, outcome))
            yield from self._each(sound)

    def _each(self, ready: list[tuple[Job, Ready]]) -> Iterator[tuple[Job, list[Any] | None]]:
        """Do a batch; where an image in it cannot be, go image by image and note which."""
        import torch

        from camtools.images.batches import batches_of

        if not ready:
            return
        try:
            results = [result for batch in batches_of([image for _, image in ready]) for result in self.do(batch)]
        except InputError as error:
            if len(ready) == 1:
                self._fail(ready[0][0], error)
                yield ready[0][0], None
            else:
                for pair in ready:
                    yield from self._each([pair])
            return
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"The device ran out of memory with {len(ready)} images per forward: give a smaller --batch-size."
            ) from error
        yield from zip((job for job, _ in ready), results, strict=True)

    def _save(self, pair: tuple[Job, list[Any] | None]) -> tuple[Job, dict[str, Any] | None, list[Any]]:
        """Save an image's results and return its entry; None where it failed, which is noted."""
        job, results = pair
        if results is None:
            return job, None, []
        entry = self._entry(job, [result.to_dict() for result in results])
        try:
            if self.out is not None:
                save_image(results, self.out / job.folder, entry, self.made_by, **self.looks)
        except (OSError, InputError) as error:
            self._fail(job, error)
            return job, None, []
        return job, entry, results

    def _entry(self, job: Job, documents: list[dict[str, Any]]) -> dict[str, Any]:
        place = {"source": str(job.path), "file": job.file, "folder": None if self.out is None else job.folder}
        return place | self.entry(documents)

    def _done(self, job: Job) -> dict[str, Any] | None:
        """Return the entry of an image that --resume leaves out."""
        return self._whole(job) if self.resume else None

    def _whole(self, job: Job) -> dict[str, Any] | None:
        """Return the entry of an image whose result is whole, newer than the image, and made with these settings."""
        if self.out is None:
            return None
        documents = finished(self.out / job.folder, job.path, self.made_by)
        return None if documents is None else self._entry(job, documents)

    def _fail(self, job: Job, error: Exception) -> None:
        self.failed.append({"source": printable(job.path), "error": " ".join(str(error).split())})

    def open_out(self) -> None:
        """Make the output folder.

        Raises:
            InputError: It cannot be a folder, or holds results of other settings, which --resume would mix.
        """
        if self.out is None:
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.out} cannot be made a folder: {error.strerror}.") from error
        manifest = self.out / MANIFEST
        if not self.resume or not manifest.exists():
            return
        try:
            before = parse_json(manifest.read_text(encoding="utf-8"))["settings"]
            pairs = {key: (before.get(key), self.settings.get(key)) for key in before | self.settings}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{manifest} is not a manifest of camtools, so --resume cannot go by it.") from error
        changed = [f"{key} {then!r}, now {now!r}" for key, (then, now) in pairs.items() if then != now]
        if changed:
            raise InputError(
                f"{self.out} holds results of other settings ({'; '.join(changed)}), so --resume would mix them. "
                "Choose another --out, or leave out --resume to replace them."
            )

    def _write(self, more: dict[str, Any]) -> None:
        if self.out is not None and self.team.leads:
            write_json(self.to_dict() | {"class_names": self.class_names} | more, self.out / MANIFEST)

    def show(self, output: Format) -> None:
        """Print the results on stdout: a table for people, or the manifest's document."""
        if output is Format.JSON:
            common.print_json(self.to_dict())
        elif output is Format.TABLE and len(self.results) > MOST_ROWS:
            common.print_table(("Class", "Images"), self._counts())
        elif output is Format.TABLE and self.results:
            from rich.text import Text

            rows = [
                (Text("" if number else entry["source"], overflow="fold"), *map(Text, row))
                for entry in self.results
                for number, row in enumerate(self.rows(entry))
            ]
            common.print_table(("Image", *self.columns), rows)

    def _counts(self) -> list[tuple[Text, str]]:
        """Return how many images have each class, the most frequent first; of very many classes the first."""
        from rich.text import Text

        count = Counter(row[0] for entry in self.results for row in self.rows(entry))
        rows = [(Text(name, overflow="fold"), str(number)) for name, number in count.most_common(MOST_ROWS)]
        return [*rows, *([(Text("..."), f"{len(count) - MOST_ROWS} classes more")] if len(count) > MOST_ROWS else [])]

    def _tell(self, entry: dict[str, Any]) -> None:
        """Print an image's entry on stdout, with --format jsonl as soon as it is done."""
        if self.lines:
            typer.echo(json.dumps(entry, ensure_ascii=False), file=self.stdout)


def class_cell(result: dict[str, Any]) -> str:
    """Return a class as tables show it: its name, and its index."""
    name, label = result.get("name"), str(result["label"])
    return f"{name} ({label})" if name and name != label else label


def box_cell(box: Sequence[int] | None) -> str:
    """Return a box as tables show it."""
    return ", ".join(map(str, box)) if box else "none"


def printable(path: Path) -> str:
    """Return a path as text that can be written; bytes that are no UTF-8 are shown as such."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
