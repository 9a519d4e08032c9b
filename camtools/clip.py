"""CLIP models as classifiers of any classes that have words: class weights are the embeddings of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from camtools.classes.names import checked_names
from camtools.errors import InputError, ModelError
from camtools.images.preprocess import Preprocess
from camtools.model.guard import untouched

Tokenizer = Callable[..., Any]
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images


class ZeroShot(nn.Module):
    """The image side of a CLIP model, followed by the texts' embeddings: logits are scaled cosines, (B, K).

    Args:
        clip: The CLIP model.
        weight: The texts' embeddings of unit length times the model's scale, (K, D).
        class_names: The texts.
        preprocess: Of images; None asks the model.
        bias: What SigLIP adds to every logit, (K,), whose scores are sigmoids then; None for softmax.
    """

    def __init__(
        self,
        clip: nn.Module,
        weight: Tensor,
        class_names: Sequence[str],
        preprocess: Any = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.clip, self.class_names = clip, list(class_names)
        self.weight: Tensor
        self.register_buffer("weight", weight)
        self.bias: Tensor | None
        self.register_buffer("bias", bias)
        self.preprocess = preprocess
        self.score_activation = "softmax" if bias is None else "sigmoid"

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (B, 3, H, W), which a softmax (SigLIP: a sigmoid) makes probabilities of."""
        encode: Any = getattr(self.clip, "get_image_features", None) or self.clip.encode_image
        return linear(normalize(_vectors(encode(images)), dim=1), self.weight, self.bias)


def zero_shot(clip: nn.Module, class_texts: Sequence[str], *, tokenizer: Tokenizer | None = None) -> ZeroShot:
    """Return a classifier of the classes that texts describe, which `camtools.explain` takes like any other.

    Its class weights are the embeddings of the texts, its class names the texts, and its scores those of the CLIP model
    itself. CLIP normalises image embeddings, and its transformers pool them by a class token, so that maps are
    linearised.

    Args:
        clip: A CLIP model of transformers, or one of open_clip; left as it is, and part of the result.
        class_texts: One text per class, such as "a photo of a cat"; at least two.
        tokenizer: From a list of texts to what the model's text side takes: a tokenizer of transformers, or what
            `open_clip.get_tokenizer` returns. None takes that beside the model's own files (transformers).

    Raises:
        ModelError: The model has no text side, or its tokenizer is not on this machine.
        InputError: `class_texts` are not two or more different texts.

    Example:
        >>> classifier = camtools.zero_shot(clip, ["a photo of a cat", "a photo of a dog"])
        >>> camtools.explain(classifier, "photo.jpg").name
        'a photo of a cat'
    """
    texts = list(checked_names(class_texts))
    if len(set(texts)) < 2 or len(set(texts)) < len(texts):
        raise InputError(f"class_texts={class_texts!r}: expected two or more different texts, one per class")
    if not isinstance(clip, nn.Module) or not any(hasattr(clip, n) for n in ("get_text_features", "encode_text")):
        raise ModelError(
            f"{type(clip).__name__} has no text side: expected a CLIPModel of transformers, or a model of open_clip"
        )
    tokens = _tokens(clip, texts, tokenizer)
    encode: Any = getattr(clip, "get_text_features", None) or clip.encode_text
    device = next(clip.parameters()).device
    with untouched(clip), torch.no_grad():
        if isinstance(tokens, Mapping):
            encoded = encode(**{name: value.to(device) for name, value in tokens.items()})
        else:
            encoded = encode(tokens.to(device))
        scale: Any = getattr(clip, "logit_scale", torch.zeros(()))
        weight = normalize(_vectors(encoded), dim=1) * scale.exp()
    shift = getattr(clip, "logit_bias", None)
    bias = None if shift is None else shift.detach().reshape(-1).expand(len(texts)).clone()
    return ZeroShot(clip, weight.detach(), texts, _preprocess(clip), bias).train(clip.training)


def _tokens(clip: Any, texts: list[str], tokenizer: Tokenizer | None) -> Any:
    """Return what the text side takes: a tensor, or a mapping of them."""
    if tokenizer is None and hasattr(clip, "config"):
        from transformers import AutoTokenizer

        place = str(getattr(clip.config, "_name_or_path", "") or "")
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelError(
                f"the tokenizer of {type(clip).__name__} is not beside its files ({place!r}): pass tokenizer="
            ) from error
    if tokenizer is None:
        raise ModelError(f"{type(clip).__name__} does not say how texts become tokens: pass tokenizer=")
    if hasattr(tokenizer, "pad"):  # one of transformers
        return tokenizer(texts, padding=True, return_tensors="pt")
    return tokenizer(texts)


def _preprocess(clip: Any) -> Preprocess | None:
    """Return what a model of open_clip says of images; None for others, whose adapters know."""
    visual = getattr(clip, "visual", None)
    mean, std, size = (getattr(visual, name, None) for name in ("image_mean", "image_std", "image_size"))
    if size is None:
        return None
    side = size if isinstance(size, int) else size[0]
    pair = (size, size) if isinstance(size, int) else tuple(size)
    assumed = "" if mean and std else "open_clip's defaults"  # of models that were not built by its factory
    mean, std = tuple(mean or _MEAN), tuple(std or _STD)
    return Preprocess(pair, side, interpolation="bicubic", mean=mean, std=std, assumed=assumed)


def _vectors(found: Any) -> Tensor:
    """Return embeddings (B, D) of what a model's side returned."""
    vectors: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return vectors
