"""Running a caller's model and leaving it exactly as it was found, after errors too."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock, get_ident
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Registries of nn.Module: buffers are put back separately; parameters and submodules are never touched here.
_REGISTRIES = frozenset({"_parameters", "_buffers", "_modules"})

Hook = TypeVar("Hook", bound=Callable[..., Any])

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_REGISTRY = Lock()
os.register_at_fork(after_in_child=_LOCKS.clear)  # a lock that another thread held would never open in the child


def lock_of(model: nn.Module) -> Any:
    """Return the one lock of a model, a `threading.RLock`: whoever hooks or runs it for maps takes turns.

    Modes, buffers and hooks belong to the model and not to a thread, so that calls on one model queue; calls on
    different models do not wait for each other.
    """
    with _REGISTRY:
        return _LOCKS.setdefault(model, RLock())


def in_this_thread(hook: Hook) -> Hook:
    """Return a module's hook that looks away when another thread, such as the caller's own training, runs the model."""
    thread = get_ident()
    return cast(Hook, lambda *args: hook(*args) if get_ident() == thread else None)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while and leave no trace of it; other threads wait for their turn.

    Restored on the way out, whatever happened inside: the `training` flag of every module, hooks, plain attributes
    that a forward set or cached (a cache filled here must not outlive the call, it may be stale by the next), and
    buffers, in value and in identity. Parameters are never written here; `param.grad` is put back by reference.

    Args:
        model: Any module. Its `train()` and `eval()` are not called, since models override them with side effects.
    """
    with lock_of(model):
        modules = [(module, _Attributes(module), dict(module._buffers)) for module in open_modules(model).values()]
        buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        grads = [(parameter, parameter.grad) for parameter in model.parameters()]
        scripts = [
            (script, script.training) for script in model.modules() if isinstance(script, torch.jit.ScriptModule)
        ]
        for module, _, _ in modules:
            module.__dict__["training"] = False
        for script, _ in scripts:
            script.training = False
        try:
            yield
        finally:
            for module, attributes, named in modules:
                attributes.restore()
                module._buffers.clear()
                module._buffers.update(named)
            for script, training in scripts:
                script.training = training
            for buffer, before in buffers:
                _write_back(buffer, before)
            for parameter, grad in grads:
                if parameter.grad is not grad:
                    parameter.grad = grad


def open_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules by name but TorchScript's, which take no hooks and keep what they hold to themselves."""
    return {name: one for name, one in model.named_modules() if not isinstance(one, torch.jit.ScriptModule)}


def call_eagerly(model: nn.Module, x: Tensor) -> Any:
    """Call a model such that hooks see what happens and autograd can follow, with no effect on the caller's own calls.

    Compiled parts run eagerly, since they would not see the hooks. Under autocast the weight cache stays clean: casts
    made here without gradients must not be served to the caller's own training step. Parameters made under inference
    mode are cloned, since autograd refuses them.
    """
    if torch.compiler.is_compiling():  # an exporter, which sees hooks as they are
        return model(x)
    frozen = {name: p for name, p in [*model.named_parameters(), *model.named_buffers()] if p.is_inference()}
    with ExitStack() as stack:
        stack.enter_context(_EAGER)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            stack.enter_context(torch.autocast(x.device.type, dtype, cache_enabled=False))
        if frozen:
            return torch.func.functional_call(model, {name: p.clone() for name, p in frozen.items()}, (x,))
        return model(x)


class _Eager:
    """Lets compiled parts run eagerly; the stance is the process's, so the first call sets it, the last leaves it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._stance = torch.compiler.set_stance("force_eager")  # which sets it at once
            self._calls += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                self._stance.__exit__(None, None, None)


_EAGER = _Eager()


class _Attributes:
    """A module's plain attributes as they were; containers one level deep."""

    def __init__(self, module: nn.Module) -> None:
        self.now = module.__dict__
        self.before = {key: value for key, value in self.now.items() if key not in _REGISTRIES}
        self.contents = {
            key: copy.copy(value) for key, value in self.before.items() if isinstance(value, (dict, list, set))
        }

    def restore(self) -> None:
        for key in [key for key in self.now if key not in self.before and key not in _REGISTRIES]:
            del self.now[key]
        for key, value in self.before.items():
            if self.now.get(key) is not value or key not in self.now:
                self.now[key] = value
        for key, contents in self.contents.items():
            value = self.before[key]
            if not _same(value, contents):  # refill the caller's own container: others may hold it
                value.clear()
                value.extend(contents) if isinstance(value, list) else value.update(contents)


def _same(current: Any, before: Any) -> bool:
    """Tell whether two containers of one type hold the same objects."""
    if len(current) != len(before):
        return False
    if isinstance(before, dict):
        return all(key in current and current[key] is value for key, value in before.items())
    if isinstance(before, list):
        return all(a is b for a, b in zip(current, before, strict=True))
    return {id(item) for item in current} == {id(item) for item in before}


def _write_back(buffer: Tensor, before: Tensor) -> None:
    """Give a buffer its old values, without comparing (a CUDA device would have to be waited for).

    Through `.data`, so that the version counter stays and a graph the caller holds stays good.
    """
    if buffer.layout is torch.strided and 0 in buffer.stride():
        return  # expanded: several elements share one place, so nothing can have written here
    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
        buffer.data.copy_(before)
