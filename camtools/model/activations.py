"""What one forward gives: logits, features, and the class weights and maps between them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from camtools.classes.targets import Targets, target_indices
from camtools.model.adapter import FeatureSpec
from camtools.model.backward import Backward
from camtools.model.decomposition import Decomposition, class_maps, head_gradient
from camtools.model.layout import to_nchw
from camtools.model.outputs import Activation


@dataclass(frozen=True)
class Activations:
    """What one forward gave: logits, features, and the class weights between them.

    Attributes:
        logits: The model's own class scores, (B, K).
        features: F as (B, C, h, w).
        decomposition: How the logits come from F.
        pyramid: Outputs of the network's earlier stages, (B, C', h', w') each, coarse to fine, finer than F or, where
            strides were taken out, as fine; detached, and only where they were asked for.
        backward: From F back to those of them at which gradients were asked for.
        activation: What makes probabilities of the logits, as far as the model's output tells.
    """

    logits: Tensor
    features: Tensor
    decomposition: Decomposition
    backward: Backward = field(repr=False)
    _captured: Tensor = field(repr=False)
    _scores: Tensor = field(repr=False)
    _spec: FeatureSpec = field(repr=False)
    _weight: Tensor | None = field(repr=False)
    _input_size: tuple[int, int] = field(repr=False)
    pyramid: tuple[Tensor, ...] = field(default=(), repr=False)
    activation: Activation = "softmax"

    def weights(self, targets: Targets = None) -> Tensor:
        """Return the class weights.

        Args:
            targets: Class indices: one for all images, one per image (B,), or several per image (B, K').
                None gives all classes.

        Returns:
            Exact heads: the classifier's own weights, (B, K', C), or (1, K, C) for all classes. Linearised heads:
            h·w · d logit / d F, (B, K', C, h, w).

        Raises:
            TargetError: A class index out of range, or a list of the wrong length.
        """
        if self._weight is not None and targets is None:
            return self._weight[None]
        return self.weights_of(self._targets(targets))

    def weights_of(self, indices: Tensor) -> Tensor:
        """Return what `weights` does, of class indices (B, K') that are known to be in range."""
        return self._gradient(indices) if self._weight is None else self._weight[indices]

    def maps(self, targets: Targets = None) -> Tensor:
        """Return class maps M_k = sum_c W[k, c] F_c, signed, without bias (B, K', h, w); see `weights`."""
        if self._weight is not None:
            return class_maps(self.features, self.weights(targets))
        # One class at a time: a linearised head has a weight per position, C times the size of the map.
        columns = self._targets(targets).split(1, dim=1)
        return torch.cat([class_maps(self.features, self._gradient(column)) for column in columns], dim=1)

    def depends_on_features(self) -> bool:
        """Whether the logits depend on the features through autograd; True where the maps need no gradient."""
        if self._weight is not None:
            return True
        if not self._scores.requires_grad:
            return False
        ones = torch.ones_like(self._scores)
        return torch.autograd.grad(self._scores, self._captured, ones, True, allow_unused=True)[0] is not None

    def two_classes(self) -> Activations:
        """Return one logit z as two classes: -z for the first, whose map is the negative, and z for the second."""
        with torch.set_grad_enabled(self._scores.requires_grad):
            both = torch.cat([-self._scores, self._scores], 1)
        share = self.decomposition.share
        return replace(
            self,
            logits=torch.cat([-self.logits, self.logits], 1),
            decomposition=replace(self.decomposition, share=share and share * 2),
            _scores=both,
            _weight=self._weight if self._weight is None else torch.cat([-self._weight, self._weight]),
            activation="sigmoid",
        )

    def _gradient(self, targets: Tensor) -> Tensor:
        raw = head_gradient(self._captured, self._scores, targets, create_graph=torch.is_grad_enabled())
        spec, positions = self._spec, self.features.shape[2] * self.features.shape[3]
        nchw = to_nchw(raw.flatten(0, 1), spec.layout, self._input_size, spec.prefix_tokens)
        return nchw.unflatten(0, tuple(targets.shape)) * positions

    def _targets(self, targets: Targets) -> Tensor:
        return target_indices(targets, *self.logits.shape).to(self.logits.device)
