"""Getting hold of F during one forward: a context manager with a single hook that comes off after errors too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camtools.errors import ModelError
from camtools.model.adapter import FeatureSpec
from camtools.model.guard import in_this_thread
from camtools.model.outputs import replace_tensor, tensors_in


class Capture:
    """Records the tensor a `FeatureSpec` names while the model runs.

    With `cut=True` the forward's autograd graph begins at F: whatever came before runs without a graph, and gradients
    of the logits stop at F, so the backbone is never back-propagated. Where F is already part of a graph (a caller
    who trains) it stays there, and gradients can go on into the backbone.

    Use as a context manager around one forward, then read `features`.

    Args:
        model: The module that `spec.layer` is a part of.
        spec: Which tensor to record.
        cut: Whether the head must be differentiable with respect to F.
    """

    def __init__(self, model: nn.Module, spec: FeatureSpec, *, cut: bool) -> None:
        self.spec = spec
        self.cut = cut
        self._recorded: Tensor | None = None
        self._handle: RemovableHandle | None = None
        try:
            self._module = model.get_submodule(spec.layer)
        except AttributeError as error:
            raise ModelError(
                f"{type(model).__name__} has no layer {spec.layer!r}, where its adapter says the features are. "
                "If the model was edited after it was wrapped, wrap it again"
            ) from error
        if spec.side == "input" and getattr(self._module, "inplace", False):
            raise ModelError(
                f"layer {spec.layer!r} changes its input in place, so that there are no features left to look at. Take "
                'what it makes of them (side="output"), or the output of the layer before'
            )

    def __enter__(self) -> Capture:
        self._grad_mode = torch.is_grad_enabled()
        if self.spec.side == "input":
            self._handle = self._module.register_forward_pre_hook(in_this_thread(self._on_input), with_kwargs=True)
        else:
            self._handle = self._module.register_forward_hook(in_this_thread(self._on_output))
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._handle is not None:
            self._handle.remove()
        torch.set_grad_enabled(self._grad_mode)

    @property
    def features(self) -> Tensor:
        """The recorded tensor in its own layout; of several calls in one forward the last.

        Raises:
            ModelError: The layer did not run.
        """
        if self._recorded is None:
            raise ModelError(
                f"layer {self.spec.layer!r} did not run in the model's forward, so it gave no features. "
                "If the model chooses its path by its input, wrap the part that always runs"
            )
        return self._recorded

    def _on_input(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        tensor = self._pick((args, kwargs))
        recorded = self._record(tensor)
        return None if recorded is tensor else replace_tensor((args, kwargs), tensor, recorded)

    def _on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        tensor = self._pick(output)
        # The model goes on with a clone: an in-place operation right after (DenseNet's ReLU) would change F otherwise.
        return replace_tensor(output, tensor, self._record(tensor).clone())

    def _pick(self, value: Any) -> Tensor:
        found = list(tensors_in(value))
        if self.spec.index >= len(found):
            raise ModelError(
                f"the {self.spec.side} of layer {self.spec.layer!r} holds {len(found)} tensors; its adapter asked for "
                f"number {self.spec.index}"
            )
        return found[self.spec.index]

    def _record(self, tensor: Tensor) -> Tensor:
        if self.cut and not (tensor.requires_grad and torch.is_grad_enabled()):
            torch.set_grad_enabled(True)  # from here to the logits; __exit__ puts it back
            # Other consumers of the same tensor (class attention reads its tokens twice) must see the leaf too:
            # where the caller's own graph does not claim it, the tensor itself becomes the leaf.
            if self.spec.side == "input" and not tensor.requires_grad and not tensor.is_inference():
                tensor = tensor.requires_grad_()
            else:
                tensor = (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()
        self._recorded = tensor
        return tensor


class Passage(Capture):
    """Records a node of its own on the graph, whose gradient is what passes where F is replaced, and no more."""

    def __init__(self, model: nn.Module, spec: FeatureSpec) -> None:
        super().__init__(model, spec, cut=False)

    def _record(self, tensor: Tensor) -> Tensor:
        self._recorded = tensor.view_as(tensor)
        return self._recorded


class Blank(Capture):
    """Goes on with zeros at all positions in place of F; class and register tokens before them stay."""

    def __init__(self, model: nn.Module, spec: FeatureSpec) -> None:
        super().__init__(model, spec, cut=False)

    def _record(self, tensor: Tensor) -> Tensor:
        if self.spec.side == "input" and not tensor.is_inference() and not tensor.requires_grad:
            self._recorded = tensor  # in place, as others (class attention) may read the same tensor
        else:
            self._recorded = tensor.clone()
        self._recorded[:, self.spec.prefix_tokens :].zero_()
        return self._recorded
