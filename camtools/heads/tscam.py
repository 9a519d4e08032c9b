"""TS-CAM's head (Gao et al., ICCV 2021): class maps of patch tokens, times the class token's attention to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camtools.checks import whole
from camtools.errors import ModelError
from camtools.heads.layers import of_classes


class TSCAM(nn.Module):
    """Class scores of a vision transformer's patch tokens, and maps that are class maps times the attention.

    The patch tokens after the last norm go through one 3 x 3 convolution to class maps, whose means are the logits. The
    attention is that of the class token to each patch, averaged over the heads and added up over all blocks; it has no
    part in the logits, and no gradient. The step `HeadMaps` reads the product.

    `replace_head(model, TSCAM)` gives it what it needs: F has the patch tokens' channels, and one more, the attention.

    Source: Gao et al., "TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object Localization", ICCV
    2021, section 3; which attention is added up is the authors' code's.

    Args:
        channels: C of the patch tokens, without the attention.
        classes: K.

    Raises:
        ModelError: A number is out of range; when called, F has another number of channels.
    """

    makes_logits = True
    reads_attention = True

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels, self.classes = (
            whole(name, value, error=ModelError) for name, value in (("channels", channels), ("classes", classes))
        )
        self.conv = nn.Conv2d(channels, classes, 3, padding=1)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make it again, as JSON's types."""
        return {"channels": self.channels, "classes": self.classes}

    def class_maps(self, features: Tensor) -> Tensor:
        """Return the class maps, (B, K, h, w), before the attention; their means are the logits.

        Args:
            features: F, (B, C + 1, h, w), the attention last.
        """
        if features.shape[1] != self.channels + 1:
            raise ModelError(
                f"TSCAM got features of {features.shape[1]} channels: expected {self.channels + 1}, the last one the "
                "class token's attention. Pass the class itself: replace_head(model, camtools.heads.TSCAM)"
            )
        maps: Tensor = self.conv(features[:, :-1])
        return maps

    def maps(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return maps of some classes, (B, K', h, w), for the step `HeadMaps`.

        Args:
            features: F, (B, C + 1, h, w).
            labels: (B, K').
        """
        return of_classes(self.class_maps(features), labels) * features[:, -1:]

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, (B, K), of F, (B, C + 1, h, w)."""
        return self.class_maps(features).mean((2, 3))


class ClassAttention:
    """Adds up how much a transformer's class token, its first, attends to each token in the forward that is running.

    Attention layers may be fused and give no weights away, so the row is computed again from what their `q_norm` and
    `k_norm` (identities, where a model normalises neither) hand on: (B, heads, tokens, channels of a head).
    """

    def __init__(self) -> None:
        self._query: Tensor | None = None
        self.rows: Tensor | None = None

    def attach(self, body: nn.Module, layers: Sequence[str]) -> list[RemovableHandle]:
        """Put hooks on attention layers, by their dotted names, from now on."""
        modules = [body.get_submodule(layer) for layer in layers]
        return [
            module.get_submodule(name).register_forward_hook(hook)
            for module in modules
            for name, hook in (("q_norm", self._on_query), ("k_norm", self._on_key))
        ]

    def joined(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, N, C) with the attention as one more channel, (B, N, C + 1), and forget it.

        Raises:
            ModelError: No attention layer has run.
        """
        rows, self.rows = self.rows, None
        if rows is None:
            raise ModelError("no attention layer ran, so there is no attention. Give the model that was built")
        return torch.cat([tokens, rows[..., None].to(tokens.dtype)], -1)

    def _on_query(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._query = output.detach()[:, :, :1].float()

    def _on_key(self, module: nn.Module, args: Any, output: Tensor) -> None:
        query, self._query = self._query, None
        assert query is not None  # the layer's own forward makes it first
        scores = (query * output.detach().float()).sum(-1) * output.shape[-1] ** -0.5
        rows = scores.softmax(-1).mean(1)
        self.rows = rows if self.rows is None else self.rows + rows
