"""Weights: read from a file, fitted to a model key by key, and hashed.

Files are safetensors or PyTorch's; what a pickle asks to execute is never executed.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from camtools.checks import as_path
from camtools.errors import WeightsError
from camtools.files import replacing

_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_BOOKKEEPING = ("n_averaged",)
_OPTIONAL = "num_batches_tracked"


def read_checkpoint(path: str | Path) -> OrderedDict[str, Tensor]:
    """Read a state dict from a file; its content, not its suffix, says what it is.

    Dictionaries that hold the state dict beside other things are opened: an averaged copy ("model_ema",
    "state_dict_ema") is preferred to "state_dict" and "model". Only tensors and plain containers are ever unpickled.

    Args:
        path: A safetensors file, or one written by `torch.save` (.pt, .pth, .bin, .ckpt).

    Returns:
        Tensors by key, on the CPU, in the file's own precision.

    Raises:
        WeightsError: The file is missing, empty, damaged, of another kind, holds no tensors, or is a pickle that needs
            more than tensors to load.
    """
    path = as_path("path", path, error=WeightsError)
    kind = _kind(path)
    if kind == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return _tensors(load_file(path), path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path} is damaged: {_first_line(error)}. Copy or download it again.") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds Python objects beside tensors{_unsafe_globals(path)}, which could run any code when loaded, "
            "so it is refused. Where you trust it, save the weights alone, once: "
            "torch.save(model.state_dict(), FILE) or safetensors.torch.save_file."
        ) from error
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as a PyTorch checkpoint: {_first_line(error)}. It may be damaged or a TorchScript "
            "archive; give a state dict saved by torch.save, or a safetensors file."
        ) from error
    return _tensors(loaded, path)


def _kind(path: Path) -> str:
    """Tell safetensors from PyTorch by a file's first bytes."""
    if not path.is_file():
        if path.is_dir():
            raise WeightsError(f"{path} is a folder, not a checkpoint. Give the file in it, .safetensors or .pth.")
        near = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        raise WeightsError(
            f"There is no weights file {path}." + (f" Did you mean {path.parent / close[0]}?" if close else "")
        )
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise WeightsError(f"{path} is empty. Copy or download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights. Fetch the file itself: git lfs pull.")
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    if len(head) > 8 and head[8:9] == b"{":
        if 8 + int.from_bytes(head[:8], "little") > path.stat().st_size:
            raise WeightsError(f"{path} is cut short: its header alone is longer. Copy or download it again.")
        return "safetensors"
    raise WeightsError(
        f"{path} is neither a safetensors file nor a PyTorch checkpoint: it starts with {head[:12]!r}. "
        "Give a state dict in one of these formats."
    )


def _unsafe_globals(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # old pickles cannot be looked through; the refusal stands without the names
        return ""
    return f" ({', '.join(sorted(names)[:3])})" if names else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _tensors(loaded: object, path: Path) -> OrderedDict[str, Tensor]:
    """Open nested dictionaries until one holds tensors; keep its tensors."""
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            break
        tensors = OrderedDict((str(k), v) for k, v in loaded.items() if isinstance(v, Tensor) and k not in _BOOKKEEPING)
        inner = next((loaded[k] for k in _NESTED if isinstance(loaded.get(k), Mapping) and loaded[k]), None)
        if inner is None and tensors:
            if hasattr(loaded, "_metadata"):
                tensors._metadata = loaded._metadata  # type: ignore[attr-defined]
            return tensors
        if inner is None:
            break
        loaded = inner
    if isinstance(loaded, Tensor):
        what = f"a single tensor {_kindred(loaded)}"
    elif isinstance(loaded, Mapping) and loaded:
        what = f"a dictionary with {', '.join(map(repr, list(loaded)[:5]))}"
    else:
        what = f"a {type(loaded).__name__}" if loaded else "nothing"
    raise WeightsError(f"{path} holds no state dict, but {what}. Save one: torch.save(model.state_dict(), FILE).")


def match_prefix(state: Mapping[str, Tensor], keys: Sequence[str]) -> Mapping[str, Tensor]:
    """Take "module.", "model." and "_orig_mod." off a checkpoint's keys, as far as more of them then are a model's.

    Args:
        state: Tensors by key.
        keys: The model's own keys.

    Returns:
        The same tensors; keys without such a prefix stay as they are.
    """
    own = set(keys)
    best = current = state
    while True:
        prefix = next((p for p in _PREFIXES if any(k.startswith(p) for k in current)), None)
        if prefix is None:
            return best
        shorter = {k.removeprefix(prefix): v for k, v in current.items()}
        if len(shorter) < len(current):
            return best
        current = shorter
        if len(own & current.keys()) > len(own & best.keys()):
            best = current


def class_count(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Compare a model's number of classes with a checkpoint's.

    The classifier's tensors are those that differ in their first dimension only, all by the same pair of numbers.

    Args:
        model: Built with its default number of classes.
        state: Tensors by the model's keys.

    Returns:
        (the model's count, the checkpoint's), or None where no tensor differs, or where they differ in other ways too.
    """
    pairs = set()
    for key, own in model.state_dict().items():
        given = state.get(key)
        if given is None or given.shape == own.shape:
            continue
        if given.ndim != own.ndim or given.ndim == 0 or given.shape[1:] != own.shape[1:]:
            return None
        pairs.add((own.shape[0], given.shape[0]))
    return pairs.pop() if len(pairs) == 1 else None


def fit(model: nn.Module, state: Mapping[str, Tensor], *, source: str, name: str) -> None:
    """Load a state dict into a model, all of it; values are cast to the model's own precision.

    Args:
        model: Changed in place.
        state: Tensors by key; float16 and bfloat16 are fine for a float32 model.
        source: Where the weights come from, for the error.
        name: The model's name, for the error.

    Raises:
        WeightsError: Keys are missing, unexpected, of another shape, or integers where the model has floats; the first
            few are named. The model may be half loaded then.
    """
    reference = model.state_dict()
    odd = [
        f"{k} (file {_kindred(v)}, model {_kindred(reference[k])})"
        for k, v in state.items()
        if k in reference
        and (v.shape != reference[k].shape or v.is_floating_point() != reference[k].is_floating_point())
    ]
    missing = [k for k in reference if k not in state and not k.endswith(_OPTIONAL)]
    unexpected = [k for k in state if k not in reference]
    if not odd:
        ordered = OrderedDict(state)
        # Versions tell modules which old keys to translate; a file without them is taken to be of today's version.
        ordered._metadata = getattr(state, "_metadata", None) or getattr(reference, "_metadata", {})  # type: ignore[attr-defined]
        try:
            result = model.load_state_dict(ordered, strict=False)
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{source} does not fit {name}: {_first_line(error)}.") from error
        missing = [k for k in result.missing_keys if not k.endswith(_OPTIONAL)]
        unexpected = list(result.unexpected_keys)
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("keys missing", missing), ("keys unexpected", unexpected), ("tensors of another kind", odd))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{source} does not fit {name}: {'; '.join(problems)}. Name the model that these weights were made for."
        )


def _kindred(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def weights_hash(model: nn.Module) -> str:
    """Return a short hash of all parameters and buffers, the same on every device."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all: the same bytes for the same content, with the mode of other files.

    The library itself writes the metadata in any order, and files that only their owner may read.

    Args:
        path: The file; its folder is made, a file of that name is replaced.
        tensors: By name; written from the CPU.
        metadata: Text by key.

    Raises:
        InputError: It cannot be written.
    """
    # Copies: tensors that share memory, such as tied weights, are written once for each name.
    data = save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines([len(text).to_bytes(8, "little"), text, memoryview(data)[end:]])
