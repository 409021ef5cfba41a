"""Rival AD-DROP steps for transformers models, called as `step(**batch) -> output` like attrdrop.ADDrop.

LeanEager is what one would write today: one autograd.grad call on the head outputs, dO Vᵀ by bmm, a threshold per row,
SDPA with a boolean mask. PerLayerLoop is the historical form: eager attention, one autograd.grad call per layer on the
attention probabilities, full sorts, int64 masks that become -10000 in the scores. IntegratedLoop is the same for IGA:
a whole forward and gradient call per step of the integral and layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask

from bench.ops import peers


@dataclass
class Tape:
    """What one forward records (pass 1) or is told (pass 2), keyed by attention module."""

    values: dict[nn.Module, Tensor] = field(default_factory=dict)
    tapped: dict[nn.Module, Tensor] = field(default_factory=dict)
    masks: dict[nn.Module, Tensor] | None = None
    shares: dict[nn.Module, float] = field(default_factory=dict)
    labels: Tensor | None = None


def _lean_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, tape=None, **_):
    mask = attention_mask if tape.masks is None else tape.masks[module]
    out = scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scaling)
    if tape.masks is None:
        tape.tapped[module], tape.values[module] = out, value.detach()
    return out.transpose(1, 2).contiguous(), None


def _traced_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, tape=None, **_):
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    if tape.masks is not None and module in tape.masks:
        scores = scores + (1 - tape.masks[module]) * -10000.0
    weights = drop(scores.softmax(-1), dropout)
    if module in tape.shares:
        weights = weights * tape.shares[module]
    if tape.masks is None:
        tape.tapped[module] = weights
    return (weights @ value).transpose(1, 2).contiguous(), weights


for name, attention, mask in (
    ("bench_lean", _lean_attention, sdpa_mask),
    ("bench_loop", _traced_attention, eager_mask),
):
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)


def _lengths(attention_mask: Tensor) -> tuple[int, ...] | None:
    lengths = tuple(attention_mask.sum(1).tolist())
    return None if min(lengths) == attention_mask.shape[1] else lengths


def _pass1(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tape]:
    """F, the summed logits of the pseudo labels, and the record of the forward; options are fields of the Tape."""
    tape = Tape(**options)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs, tape=tape).logits
    if tape.labels is None:
        tape.labels = logits.argmax(-1)
    return logits.gather(-1, tape.labels[:, None]).sum(), tape


@dataclass
class LeanEager:
    """The fair baseline. `make` is one of peers.EAGER_MASKS."""

    model: nn.Module
    p: float
    q: float
    make: Callable[..., Tensor] = peers.eager_mask

    def masks(self, batch: dict[str, Tensor]) -> dict[nn.Module, Tensor]:
        """Pass 1: boolean masks (B,H,n,n) by module."""
        target, tape = _pass1(self.model, batch)
        grads = torch.autograd.grad(target, list(tape.tapped.values()))
        lengths = _lengths(batch["attention_mask"])
        return {
            module: self.make(grad, value, self.p, self.q, lengths)
            for (module, value), grad in zip(tape.values.items(), grads, strict=True)
        }

    def __call__(self, **batch: Tensor):
        return self.model(**batch, tape=Tape(masks=self.masks(batch)))


@dataclass
class PerLayerLoop:
    """The historical baseline."""

    model: nn.Module
    p: float
    q: float

    def masks(self, batch: dict[str, Tensor]) -> dict[nn.Module, Tensor]:
        """Pass 1: int64 masks (B,H,n,n) by module, views of one stack."""
        target, tape = _pass1(self.model, batch)
        lengths = _lengths(batch["attention_mask"])
        layers = [
            peers.sort_and_drop(torch.autograd.grad(target, weights, retain_graph=True)[0], self.p, self.q, lengths)
            for weights in tape.tapped.values()
        ]
        return dict(zip(tape.tapped, torch.stack(layers), strict=True))

    def __call__(self, **batch: Tensor):
        return self.model(**batch, tape=Tape(masks=self.masks(batch)))


@dataclass
class IntegratedLoop(PerLayerLoop):
    """The historical form of IGA, in the first layer or in all."""

    steps: int = 20
    layers: int | None = None

    def masks(self, batch: dict[str, Tensor]) -> dict[nn.Module, Tensor]:
        """Pass 1: int64 masks (B,H,n,n) by module, of so many layers from the first on."""
        _, whole = _pass1(self.model, batch)
        lengths = _lengths(batch["attention_mask"])
        return {
            module: peers.sort_and_drop(self._integral(batch, module, weights, whole.labels), self.p, self.q, lengths)
            for module, weights in list(whole.tapped.items())[: self.layers]
        }

    def _integral(self, batch: dict[str, Tensor], module: nn.Module, weights: Tensor, labels: Tensor | None) -> Tensor:
        total = torch.zeros_like(weights)
        for k in range(1, self.steps + 1):
            target, tape = _pass1(self.model, batch, shares={module: k / self.steps}, labels=labels)
            total += torch.autograd.grad(target, tape.tapped[module])[0]
        return weights.detach() * total / self.steps
