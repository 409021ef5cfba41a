"""Explains a transformers model's attention on a batch of any length, without n x n matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.checks import check_choice, check_probability, check_tensor, is_int
from attrdrop._core.modules import evaluation_mode, gradients_left_alone, uncompiled, unwrap
from attrdrop.addrop.passes import AttentionCall, ValidBits
from attrdrop.addrop.reach import why_unreached
from attrdrop.addrop.scope import Scope, attention_scope
from attrdrop.addrop.targets import TARGETS, Target, attribution_target
from attrdrop.addrop.untold import noting_untold
from attrdrop.ops import AttentionWeight, TopEntries, attention_attribution, masked_attention

NO_TARGET = "quantity {!r} needs a gradient: pass a target to explain_attention, such as target='pseudo'"


@dataclass(frozen=True)
class AttentionLayer:
    """One attention call, stored as the factors of its n x n matrices.

    name: of the module. weight: queries, keys, log-sum-exp, scale and bias. value: (B, H_kv, n_k, d). valid: packed
    bits (B|1, H|1, n_q|1, words) of the valid positions, or None. grad_out: (B, H, n_q, d), the gradient of the target
    with respect to the head outputs, if there is a target.
    """

    name: str
    weight: AttentionWeight
    value: Tensor
    valid: Tensor | None = None
    grad_out: Tensor | None = None

    def attribution(
        self, quantity: str = "probability", *, rows: Tensor | None = None, topk: int | None = None
    ) -> Tensor | TopEntries:
        """:func:`attrdrop.attention_attribution` of this call: sums over queries for each key, rows or top entries."""
        return self._ask(quantity, self.weight, self.grad_out, rows=rows, topk=topk)

    def sums(self, quantity: str = "probability", queries: Tensor | None = None) -> Tensor:
        """(B, H, n_k): for each key the sum over queries, weighted by queries (B, n_q) if given.

        Weights are non-negative numbers, such as a batch's attention_mask, which leaves out padding.
        """
        if queries is None:
            found = self._ask(quantity, self.weight, self.grad_out)
        else:
            batch, _, n_q, _ = self.weight.q.shape
            queries = _check_weights("queries", queries, (batch, n_q), self.weight.lse)
            if quantity == "probability":  # w exp(s - lse) = exp(s - (lse - log w))
                weight, grad_out = self.weight._replace(lse=self.weight.lse - queries[:, None].log()), None
            else:
                grad_out = self.grad_out if self.grad_out is None else self.grad_out * queries[:, None, :, None]
                weight, grad_out = self.weight, None if grad_out is None else grad_out.to(self.value.dtype)
            found = self._ask(quantity, weight, grad_out)
        assert isinstance(found, Tensor)
        return found

    def _ask(self, quantity: str, weight: AttentionWeight, grad_out: Tensor | None, **options: Any):
        if quantity == "probability":
            return attention_attribution(quantity=quantity, weight=weight, valid=self.valid, **options)
        if grad_out is None:
            raise ValueError(NO_TARGET.format(quantity))
        given = weight if quantity == "relevance" else None
        return attention_attribution(
            grad_out, self.value, quantity=quantity, weight=given, valid=self.valid, **options
        )  # fmt: skip


class ExplainedAttention(Sequence[AttentionLayer]):
    """A model's attention calls on a batch, in order."""

    def __init__(self, layers: Sequence[AttentionLayer]):
        self._layers = tuple(layers)

    def __getitem__(self, index):
        found = self._layers[index]
        return ExplainedAttention(found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self._layers)

    def sums(self, quantity: str = "probability", queries: Tensor | None = None) -> list[Tensor]:
        """By layer, :meth:`AttentionLayer.sums`."""
        return [layer.sums(quantity, queries) for layer in self]

    def rows(self, rows: Tensor, quantity: str = "probability") -> list[Tensor]:
        """By layer, these rows (B, H, r, n_k), of queries int64 (r,)."""
        return [layer.attribution(quantity, rows=rows) for layer in self]  # type: ignore[misc]

    def top(self, k: int, quantity: str = "probability") -> list[TopEntries]:
        """By layer, the k largest entries of each head."""
        return [layer.attribution(quantity, topk=k) for layer in self]  # type: ignore[misc]

    def rollout(self, start: int | Tensor = 0, *, residual: float = 0.5) -> Tensor:
        """(B, n), :func:`attention_rollout` through these layers."""
        return attention_rollout(self, start, residual=residual)


def explain_attention(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    target: Target | None = None,
    attention: str | Sequence[str] | None = None,
) -> ExplainedAttention:
    """Runs a model on a batch and keeps the factors of its attention matrices, to answer questions about them.

    Takes one forward in evaluation mode, and with a target one backward to the head outputs. Parameters, gradients,
    training flags and generators are unchanged. Queries, keys, values and gradients of all calls are kept, n d numbers
    each.

    Args:
        model: a transformers model with ``attn_implementation="attrdrop"``, or one that ADDrop adapts.
        batch: keywords of the model, such as a tokenizer returns.
        target: what "gradient" and "relevance" refer to: "pseudo", the logit of the predicted class, "gold", that of
            the labels, or a callable from (outputs, batch) to a scalar; None: only probabilities are available.
        attention: whose attention: "encoder", "decoder", "cross", "vision" or several, as in
            :class:`attrdrop.ADDropConfig`; None: every call's.

    Raises:
        TypeError, ValueError: an argument is not as said above, or the model's attention cannot be reached.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch must be a mapping of the model's keywords, got {type(batch).__name__}")
    if target is not None and not callable(target):
        check_choice("target", target, TARGETS, quoted=True, more=", a callable or None")
    names = ("encoder",) if attention is None else (attention,) if isinstance(attention, str) else tuple(attention)
    scope = attention_scope(model, names)
    recorder = _Recorder(None if attention is None else scope)
    graph = torch.no_grad() if target is None else torch.enable_grad()
    with evaluation_mode(model), uncompiled(), gradients_left_alone(model), noting_untold() as untold, graph:
        outputs = model(**batch, attrdrop=recorder)
        reached = {call.module for call in recorder.calls}
        for name, part in scope.parts.items():
            reason = None if reached & part.modules else why_unreached(model, batch, name, part, untold)
            if reason is not None:
                raise ValueError(reason)
        grads: Sequence[Tensor | None] = [None] * len(recorder.outs)
        if target is not None:
            value = attribution_target(outputs, batch, target, unwrap(model))
            grads = torch.autograd.grad(value, recorder.outs, allow_unused=True, materialize_grads=True)
    paths = {module: name for name, module in unwrap(model).named_modules()}
    return ExplainedAttention(recorder.layers(paths, grads))


def attention_rollout(
    layers: Sequence[AttentionLayer], start: int | Tensor = 0, *, residual: float = 0.5
) -> Tensor:  # fmt: skip
    """Attention rollout (Abnar and Zuidema, 2020, arXiv:2005.00928): where a position of the last layer gets its
    information from, (B, n).

    This is a position's row of the product of all matrices r I + (1 - r) A, where A is the mean over heads. It is
    computed as a vector from the last layer to the first, with one sum over queries per layer, n numbers each.

    Args:
        layers: self-attention, the first layer first: those of :func:`explain_attention`, or your own.
        start: the position, or non-negative weights (B, n) of several.
        residual: r, the share of the skip connection.

    Raises:
        TypeError, ValueError: there is no layer, layers have different lengths, or another argument is not as said.
    """
    residual = check_probability("residual", residual)
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    shapes = {(layer.weight.q.shape[0], n) for layer in layers for n in (layer.weight.q.shape[2], layer.value.shape[2])}
    if len(shapes) > 1:
        said = ", ".join(f"{n} in a batch of {batch}" for batch, n in sorted(shapes))
        raise ValueError(
            f"layers must be self-attention of one length, got {said}; choose them with attention='encoder' or a slice"
        )
    ((batch, n),) = shapes
    last = layers[-1].weight.lse
    if is_int(start):
        if not -n <= start < n:
            raise ValueError(f"start must lie in [{-n}, {n}), the text has {n} positions, got {start}")
        weights = last.new_zeros(batch, n)
        weights[:, start] = 1
    else:
        weights = _check_weights("start", start, (batch, n), last)
    for layer in reversed(layers):
        weights = residual * weights + (1 - residual) * layer.sums(queries=weights).mean(1)
    return weights


def _check_weights(name: str, weights: object, shape: tuple[int, int], like: Tensor) -> Tensor:
    """In the type and on the device of ``like``."""
    weights = check_tensor(name, weights)
    if tuple(weights.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(weights.shape)}")
    if weights.device.type == "cpu" and bool((weights < 0).any()):
        raise ValueError(f"{name} must not be negative, got {weights.min()}")
    return weights.to(like.device, like.dtype, non_blocking=True)


class _Recorder:
    """A pass that changes nothing and keeps the calls of a scope, or all."""

    def __init__(self, scope: Scope | None):
        self.scope = scope
        self.calls: list[AttentionCall] = []
        self.outs: list[Tensor] = []  # (B, n_q, H, d)
        self._found: list[tuple[Tensor, Tensor]] = []  # log-sum-exp and bits
        self._valid_bits = ValidBits()

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        if self.scope is not None and call.module not in self.scope:
            return plain()
        keep = self._valid_bits(call)
        out, lse = masked_attention(
            call.query, call.key, call.value, keep, bias=call.bias(), sinks=call.sinks, scale=call.scale,
            return_lse=True,
        )  # fmt: skip
        if torch.is_grad_enabled() and not out.requires_grad:  # nothing below has a gradient
            out.requires_grad_()
        self.calls.append(call.detached())
        self.outs.append(out)
        self._found.append((lse, keep.rows))
        return out

    def layers(self, paths: Mapping[nn.Module, str], grads: Sequence[Tensor | None]) -> list[AttentionLayer]:
        found = zip(self.calls, self._found, grads, strict=True)
        return [
            AttentionLayer(
                paths.get(call.module, type(call.module).__name__),
                AttentionWeight(call.query, call.key, lse, call.score_scale(), call.bias()),
                call.value,
                valid,
                None if grad is None else grad.transpose(1, 2).to(call.value.dtype),
            )
            for call, (lse, valid), grad in found
        ]
