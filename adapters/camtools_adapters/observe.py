"""Finding F in a model nobody described, by watching one forward and the gradients that come back through it.

F is the last tensor with image positions through which everything the classifier knows about the image passes,
and whose positions all reach the logits. Both are read off autograd: a tensor lets everything through if the
image's gradient by way of it alone equals the image's gradient, and a position reaches the logits if its own
gradient is not zero. Class tokens after the last attention fail the second test, side branches the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from camtools.errors import ModelError
from camtools.model.adapter import FeatureSpec
from camtools.model.call import AsClassifier, Call
from camtools.model.capture import Capture, Passage
from camtools.model.decomposition import linear_head
from camtools.model.guard import call_eagerly, untouched
from camtools.model.layout import Layout, is_grid, to_nchw, token_grid
from camtools_adapters.recorder import Recorder, Seen

MAX_PREFIX_TOKENS = 16
# Share of positions whose gradient must not be zero; dead ReLUs leave some out. Fewer will do where the head turns
# out to be max pooling + linear, which leaves out most.
REACHING = 0.25
# Relative error at which the gradient by way of one tensor counts as the whole gradient.
SAME = 1e-3
# How far, as a share of the image, corner cells must look to the wrong side to count as turned.
APART = 0.05
# How many tensors, counted from the logits, to keep the gradients of: F is among the last, and large models have many.
LAST = 256
# How many tensors to try before giving up; each costs one backward pass.
TRIES = 40


def observe(model: nn.Module, example: Tensor) -> FeatureSpec:
    """Find F by one forward and a few backward passes over a single image.

    Args:
        model: Any classifier; left as it was.
        example: One input, (1, C, H, W), C > 0, on the model's device.

    Returns:
        Where F lives, and the linear classifier after it if there is one.

    Raises:
        ModelError: The model returns no class scores, or no tensor in it has positions that reach them.
    """
    with torch.inference_mode(False), torch.enable_grad(), untouched(model), AsClassifier(model, Call()):
        image = example.detach().clone().requires_grad_()
        given = image.clone()  # a model may normalise its input in place
        with Recorder(model) as recorder:
            logits = call_eagerly(model, given)
        seen = [s for s in recorder.tensors() if s.tensor.requires_grad and s.tensor.shape[0] == image.shape[0]]
        seen = [s for s in seen if s.tensor is not given][-LAST:]
        if not logits.requires_grad:
            raise ModelError(
                f"the scores of {type(model).__name__} do not depend on the image through autograd (its forward runs "
                "under torch.no_grad() or is not made of torch operations), so its features cannot be found by "
                "observing it. Pass wrap(model, spec=FeatureSpec(layer=...)) or register an adapter for it"
            )
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(
                f"{type(model).__name__} returned NaN or infinite class scores, so its features cannot be found by "
                "observing it. Check its weights; in float16 try bfloat16 or float32"
            )
        gradients = (_note_gradients(score, seen, image) for score in _scores(logits, recorder))
        number, whole = next(((n, g) for n, g in enumerate(gradients) if g is not None), (0, None))
        if whole is None:
            raise ModelError(
                f"the scores of {type(model).__name__} do not change with the image: the gradient is zero "
                "everywhere. Load trained weights, or pass wrap(model, spec=FeatureSpec(layer=...))"
            )
        spec = _last_cut(model, recorder, seen, image, whole, number)
        if spec is None:
            raise ModelError(
                f"{type(model).__name__} has no tensor with image positions that all reach the class scores: "
                f"{_why_none(model, recorder)}. Pass "
                "wrap(model, spec=FeatureSpec(layer=...)) to choose a layer, or register an adapter for it"
            )
        return spec


def _why_none(model: nn.Module, recorder: Recorder) -> str:
    """Say what keeps a model from having a last tensor with positions."""
    scripts = (name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule))
    if (script := next(scripts, None)) is not None:
        return f"its part {script!r} is TorchScript, which shows nothing of what its layers compute"
    often = max((note.call for note in recorder.notes), default=1)
    if often > 1:
        return f"its layers run up to {often} times per forward, and none of the runs has it all (explain what it runs)"
    return "it mixes or drops positions before any layer camtools can see"


def _note_gradients(score: Tensor, seen: list[Seen], image: Tensor) -> Tensor | None:
    """Fill in the gradient of the score at each tensor and return the one at the image, None where that is zero.

    By hooks that copy: asking torch.autograd.grad for all of them at once gave wrong gradients where a sum hands one
    gradient to two branches (EfficientFormer, torch 2.15). The hooks hold no tensor of the graph and come off again,
    since a cycle through the graph would never be freed.
    """
    gradients: dict[int, Tensor] = {}

    def note(number: int) -> Any:
        return lambda gradient: gradients.__setitem__(number, gradient.clone())

    handles = [s.tensor.register_hook(note(number)) for number, s in enumerate(seen)]
    (whole,) = torch.autograd.grad(score, image, retain_graph=True, allow_unused=True)
    for handle in handles:
        handle.remove()
    for number, gradient in gradients.items():
        seen[number].gradient = gradient
    return whole if whole is not None and bool(whole.abs().sum() > 0) else None


def _scores(logits: Tensor, recorder: Recorder) -> Iterator[Tensor]:
    """Yield what to follow back to the image: the highest score, then stand-ins where it passes no gradient."""
    yield logits[0, logits[0].argmax()]
    yield from recorder.vector_scores()


def _last_cut(
    model: nn.Module, recorder: Recorder, seen: list[Seen], image: Tensor, whole: Tensor, score: int
) -> FeatureSpec | None:
    """Return the last tensor with positions that everything passes through, and the classifier after it."""
    size = (image.shape[2], image.shape[3])
    ran = {note.layer for note in recorder.notes}
    tries = 0
    for number, s in reversed(list(enumerate(seen))):
        if s.gradient is None:
            continue
        for layout, prefix in _layouts(s.tensor.shape, size):
            if prefix and _is_transposed(s, seen[:number], prefix, size):
                continue
            reaching = float((to_nchw(s.gradient, layout, size, prefix).abs().sum(1) > 0).float().mean())
            if reaching == 0:
                continue
            tries += 1
            if tries > TRIES:
                return None
            (through,) = torch.autograd.grad(s.tensor, image, s.gradient, retain_graph=True)
            if _differs(through, whole) or _is_turned(s.tensor, layout, prefix, image):
                continue
            if prefix:
                s = _attention_input(seen[number + 1 :], s, prefix)
            places = [FeatureSpec(one.layer, one.side, layout, prefix, one.index) for one in recorder.borders(s)]
            found = places[0]
            if s.changed or len(places) > 1 or recorder.returned_more(s):
                # A module may have pooled what it returns, so that what follows does not see it replaced there.
                through_all = (one for one in places if _passes(model, one, image, s, whole, score))
                candidate = next(through_all, None)
                if candidate is None:
                    continue
                found = candidate
            spec = _with_classifier(model, found, ran, image)
            if reaching >= REACHING or spec.classifier is not None:
                return spec
    return None


def _passes(model: nn.Module, spec: FeatureSpec, image: Tensor, s: Seen, whole: Tensor, number: int) -> bool:
    """Whether all that passes through a tensor still does where it is replaced at a border, as capturing does.

    It does not where an in-place operation changed it since, or where the module whose border that is had used it
    before it returned it.
    """
    with Recorder(model) as recorder, Passage(model, spec) as capture:
        logits = call_eagerly(model, image.clone())
    score = next(islice(_scores(logits, recorder), number, None))
    (gradient,) = torch.autograd.grad(score, capture.features, retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    if spec.prefix_tokens and s.gradient is not None:  # of an attention's input only the positions' part counts
        return not _differs(gradient[:, spec.prefix_tokens :], s.gradient[:, spec.prefix_tokens :])
    return not _differs(torch.autograd.grad(capture.features, image, gradient)[0], whole)


def _attention_input(later: list[Seen], block: Seen, prefix: int) -> Seen:
    """Return the last tensor of the block's shape by which its positions reach the logits.

    The residual stream lets everything through, but the positions' share of it flows through the normalised tensor
    that enters the attention, which is better conditioned than the stream itself.
    """
    assert block.gradient is not None
    positions = block.gradient[:, prefix:]
    for s in reversed(later):
        if s.gradient is None or s.tensor.shape != block.tensor.shape:
            continue
        of_positions = torch.cat([torch.zeros_like(s.gradient[:, :prefix]), s.gradient[:, prefix:]], dim=1)
        if not bool(of_positions.abs().sum() > 0):
            continue
        (through,) = torch.autograd.grad(s.tensor, block.tensor, of_positions, retain_graph=True, allow_unused=True)
        if through is not None and not _differs(through[:, prefix:], positions):
            return s
    return block


def _layouts(shape: torch.Size, size: tuple[int, int]) -> Iterator[tuple[Layout, int]]:
    """Yield the layouts a tensor of this shape can have over an image of `size`, likeliest first."""
    if len(shape) == 4:
        if is_grid(shape[2], shape[3], size):
            yield Layout.NCHW, 0
        if is_grid(shape[1], shape[2], size):
            yield Layout.NHWC, 0
        return
    if shape[2] == 1:
        return  # channels whose positions were pooled, not tokens of one channel
    for prefix in range(min(MAX_PREFIX_TOKENS, shape[1] - 4) + 1):
        if token_grid(shape[1] - prefix, size) is not None:
            yield Layout.NLC, prefix
            return


def _is_transposed(s: Seen, earlier: list[Seen], prefix: int, size: tuple[int, int]) -> bool:
    """Whether a tensor is an earlier one transposed, (B, channels, tokens), whose tokens need fewer before them."""
    shape = s.tensor.shape
    if len(shape) != 3 or not any(e.tensor.shape == (shape[0], shape[2], shape[1]) for e in earlier):
        return False
    return any(token_grid(shape[2] - fewer, size) is not None for fewer in range(prefix))


def _is_turned(tensor: Tensor, layout: Layout, prefix: int, image: Tensor) -> bool:
    """Return whether corner cells look at each other's corner of the image: rows taken for columns.

    Compares where the gradients of the top right and the bottom left cell have their centre in the image. Only a
    clear contradiction counts; untrained global attention sees the whole image from everywhere.
    """
    height, width = image.shape[2], image.shape[3]
    cells = to_nchw(tensor, layout, (height, width), prefix)[0]
    direction = torch.randn(cells.shape[0], generator=torch.Generator().manual_seed(0)).to(cells)
    centres = []
    for row, column in ((0, -1), (-1, 0)):
        (gradient,) = torch.autograd.grad((cells[:, row, column] * direction).sum(), image, retain_graph=True)
        energy = gradient[0].double().square().sum(0)
        energy = energy / energy.sum().clamp_min(1e-300)
        y = float((energy.sum(1) * torch.arange(height).to(energy)).sum())
        x = float((energy.sum(0) * torch.arange(width).to(energy)).sum())
        centres.append((y, x))
    (top, right), (bottom, left) = centres
    return left - right > APART * width and top - bottom > APART * height


def _with_classifier(model: nn.Module, spec: FeatureSpec, ran: set[str], image: Tensor) -> FeatureSpec:
    """Add the linear classifier and the function before the pooling, where they reproduce the logits.

    Args:
        model: The model.
        spec: Where F lives.
        ran: Names of the modules that ran in the forward.
        image: (1, C, H, W).
    """
    with torch.no_grad(), Capture(model, spec, cut=False) as capture:
        logits = call_eagerly(model, image.clone())
    features = to_nchw(capture.features, spec.layout, (image.shape[2], image.shape[3]), spec.prefix_tokens)
    names = [name for name, m in model.named_modules() if _is_linear(m)]
    claims = [replace(spec, classifier=name) for name in reversed(names) if name in ran]
    claims += [replace(claim, activation=torch.relu) for claim in claims]
    if features.shape[1] == logits.shape[1]:
        claims.insert(0, replace(spec, pool="identity"))
    for claim in claims:
        f = features if claim.activation is None else claim.activation(features)
        head = linear_head(model, claim, f, logits)
        if head is not None and head.is_exact(features.dtype, logits.dtype):
            return claim
    return spec


def _is_linear(module: nn.Module) -> bool:
    """Whether a module has the weight of a linear layer or a convolution; exported ones have classes of their own."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() in (2, 4)


def _differs(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).float().norm() > SAME * b.float().norm())
