"""Models of timm, "timm/NAME" or "timm/NAME.TAG"."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from camtools.errors import ModelError, WeightsError
from camtools.names import timm_names
from camtools.preprocess import Preprocess
from camtools.sources.base import Built, Source, no_such_name, reachable, way_out


class TimmSource(Source):
    """A model of timm's registry, or of the Hugging Face hub ("timm/hf-hub:OWNER/NAME")."""

    def __init__(self, spec: str, name: str, args: dict[str, Any], size: tuple[int, int] | None = None) -> None:
        """Look the name up.

        Args:
            spec: The full name.
            name: The name within timm, with or without a tag for its published weights.
            args: Keyword arguments for `timm.create_model`.
            size: The input's (height, width); models built for one fixed size are told.

        Raises:
            ModelError: timm knows no such model, or no such tag.
        """
        import timm

        super().__init__(spec, args)
        self.name = name
        self.hub = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
        if self.hub:
            self.cfg = None
            return
        stem, _, tag = name.partition(".")
        if not timm.is_model(stem):
            raise no_such_name(spec, stem, self.known(), "timm.list_models()")
        tags = [n.partition(".")[2] for n in timm.list_models(f"{stem}.*", pretrained=True)]
        if tag and tag not in tags:
            raise ModelError(f"timm/{stem} has no weights tagged {tag!r}, but {', '.join(tags) or 'none at all'}.")
        self.cfg = timm.models.get_pretrained_cfg(name)
        if size is not None and self.cfg is not None and self.cfg.fixed_input_size:
            self.args.setdefault("img_size", size)

    @staticmethod
    def known() -> list[str]:
        """Return the names of all of timm's models."""
        import timm

        return list(timm.list_models())

    def empty(self, num_classes: int | None = None) -> Built:
        """Build it with random weights."""
        import timm

        return self._built(self._construct(timm.create_model, self.name, num_classes=num_classes, **self.args))

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Build it with the weights of its tag, or of timm's default tag, from the Hugging Face hub."""
        import timm

        if self.cfg is not None:
            self._check_published(num_classes)
        try:
            model = timm.create_model(self.name, pretrained=True, **self.args)
        except TypeError as error:
            raise ModelError(f"{self.spec} cannot be built: {error}") from error
        except Exception as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise WeightsError(
                f"The weights of {self.spec} cannot be had: {type(error).__name__}: {reason}. {way_out(self.spec)}"
            ) from error
        return self._built(model)

    def convert(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor] | None:
        """Translate a checkpoint in the keys of a model's original authors, where timm has a filter for it."""
        translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if translate is None:
            return None
        try:
            return dict(translate(dict(state), model))
        except Exception:  # the filter expects another edition still; the plain misfit says more than its KeyError
            return None

    def _check_published(self, num_classes: int | None) -> None:
        """Refuse at once what cannot come to good: no weights at all, another class count, no network."""
        cfg = self.cfg
        assert cfg is not None
        if not cfg.has_weights:
            raise WeightsError(f"timm publishes no weights for {self.spec}. {way_out(self.spec)}")
        if num_classes not in (None, cfg.num_classes):
            raise WeightsError(
                f"The published weights of {self.spec} are for {cfg.num_classes} classes; with "
                f"num_classes={num_classes} its classifier would stay random. {way_out(self.spec)}"
            )
        url = os.environ.get("HF_ENDPOINT", "https://huggingface.co") if cfg.hf_hub_id else cfg.url
        if isinstance(url, str) and not self._cached() and not reachable(url):
            raise WeightsError(
                f"The weights of {self.spec} cannot be downloaded: {url} is out of reach. {way_out(self.spec)}"
            )

    def _cached(self) -> bool:
        """Tell whether the Hugging Face hub's own cache holds the weights."""
        cfg = self.cfg
        if cfg is None or not cfg.hf_hub_id:
            return True  # another kind of source: let timm find out
        from huggingface_hub import try_to_load_from_cache

        files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        repo, _, revision = cfg.hf_hub_id.partition("@")
        return any(isinstance(try_to_load_from_cache(repo, f, revision=revision or None), str) for f in files)

    @staticmethod
    def _built(model: nn.Module) -> Built:
        from timm.data import resolve_model_data_config

        return Built(model, Preprocess.from_timm(resolve_model_data_config(model)), timm_names(model))
