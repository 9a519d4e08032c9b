"""Explaining on the machines of a cluster, with Ray Data (extra `ray`): any number of images, results as Parquet.

rows = camtools.ray.explain("s3://bucket/birds", "timm/resnet50.a1_in1k", workers=8, gpus=1, out="s3://bucket/found")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from torch import nn

from camtools.checks import whole
from camtools.classes.targets import is_list
from camtools.defaults import DEFAULT_PRESET
from camtools.errors import InputError
from camtools.explainer import Explainer
from camtools.exports.table import results_frame
from camtools.images.stored import ImageBytes
from camtools.loading import load_model
from camtools.regions import extra

if TYPE_CHECKING:
    from ray.data import Dataset

CHECKPOINT = "_checkpoint"
"""Folder in `out` that says which images are done; readers of Parquet leave out what begins with an underscore."""


def explain(
    images: Dataset | str | list[str],
    model: str | nn.Module | Callable[[], nn.Module],
    pipeline: Any = DEFAULT_PRESET,
    *,
    out: str | None = None,
    resume: bool = False,
    workers: int | tuple[int, int] = 1,
    cpus: float = 1,
    gpus: float = 0,
    batch_size: int = 32,
    target: Any = None,
    top_k: int | None = None,
    weights: str | None = None,
    **options: Any,
) -> Dataset:
    """Explain images on a cluster: each worker has the model and works in batches; a killed one is replaced.

    A row per image and class, with the columns of `camtools.results_frame`, but `path` in place of `file`, and `error`:
    an image that cannot be used has a row with its path and the error alone. Images are read as everywhere else, EXIF
    rotation included. Maps and overlays are not kept: `camtools.explain` makes them for the images that matter.

    Args:
        images: What `ray.data.read_binary_files` takes: a folder, a file or a list of them, here or in a store; or a
            dataset with its columns "bytes" and "path".
        model: A name as `camtools.load_model` takes it; a model, which is sent to all workers; or a function that makes
            one there.
        pipeline: As `Explainer` takes it.
        out: Folder for Parquet files, here or in a store, that all machines see; None writes nothing.
        resume: Whether to go on with what an earlier call has left in `out`; images that are done are left out.
        workers: How many, or the fewest and most of a pool that grows.
        cpus: Of each worker.
        gpus: Of each worker; 0 runs on the CPU.
        batch_size: Images per forward.
        target: A class for all images, or several in a list; None takes the likeliest.
        top_k: This many likeliest classes instead.
        weights: With a name, as `camtools.load_model` takes them.
        options: More of `Explainer`'s.

    Returns:
        The rows. Without `out` nothing has run yet: they are worked out when they are used.

    Raises:
        InputError: ray is missing; `out` holds files and `resume` is not set; or `resume` comes without `out`, or with
            several classes per image, whose rows a kill could part.
    """
    extra("ray", "ray")
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    one = top_k is None and not is_list(target)
    if resume and (out is None or not one):
        raise InputError("resume=True: expected out=, and one class per image, as images are checked off by their path")
    if out is not None and not resume and _holds_files(out):
        raise InputError(f"out={out!r} holds files already: expected an empty folder, or resume=True to go on with it")
    found = images if isinstance(images, ray.data.Dataset) else ray.data.read_binary_files(images, include_paths=True)
    least, most = (workers, workers) if isinstance(workers, int) else workers
    pool = ray.data.ActorPoolStrategy(min_size=whole("workers", least), max_size=whole("workers", most))
    given = {"device": "cuda" if gpus else "cpu", "batch_size": whole("batch_size", batch_size), **options}
    rows = found.map_batches(
        _Worker,
        fn_constructor_args=(model, weights, pipeline, target, top_k, given),
        batch_size=batch_size,
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus,
    )
    if out is None:
        return rows
    if one:
        place = f"{out.rstrip('/')}/{CHECKPOINT}"
        rows.context.checkpoint_config = CheckpointConfig("path", place, delete_checkpoint_on_success=False)
    rows.write_parquet(out)
    return ray.data.read_parquet(out)


class _Worker:
    """Explains batches of files, in a process of its own."""

    def __init__(
        self, model: Any, weights: str | None, pipeline: Any, target: Any, top_k: int | None, options: dict[str, Any]
    ) -> None:
        known: dict[str, Any] = {}
        if isinstance(model, str):
            loaded = load_model(model, weights)
            model, known = loaded.model, {"transform": loaded.preprocess, "class_names": loaded.class_names}
        elif not isinstance(model, nn.Module):
            model = model()
        self.explainer = Explainer(model, pipeline, **{**known, **options})
        self.target, self.top_k = target, top_k

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        files = [ImageBytes(bytes(data), str(path)) for data, path in zip(batch["bytes"], batch["path"], strict=True)]
        errors: dict[str, str] = {}

        def failed(image: ImageBytes, error: InputError) -> None:
            errors[str(image.name)] = str(error)

        how: dict[str, Any] = {"top_k": self.top_k, "errors": failed}
        found = self.explainer.stream(files, self.target, **how)
        table = results_frame(found, to="arrow")
        table = table.rename_columns(["path" if name == "file" else name for name in table.column_names])
        table = table.append_column("error", pa.nulls(len(table), pa.string()))
        lost = [{"path": path, "error": error} for path, error in errors.items()]
        return pa.concat_tables([table, pa.Table.from_pylist(lost, schema=table.schema)])


def _holds_files(place: str) -> bool:
    from fsspec.core import url_to_fs

    store, path = url_to_fs(place)
    return bool(store.exists(path) and store.find(path))
