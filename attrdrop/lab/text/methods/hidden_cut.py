"""HiddenCut: spans of hidden states are cut, and the prediction should stay the same."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attrdrop.addrop.passes import AttentionCall
from attrdrop.addrop.scope import attention_scope, unreachable
from attrdrop.lab.text.methods.divergence import check_consistency, difference, jensen_shannon
from attrdrop.lab.text.methods.rivals import RandomRival, check_choice
from attrdrop.lab.text.settings import SPANS, Settings

if TYPE_CHECKING:
    from typing_extensions import Self

SALIENT = 0.4  # share of the tokens, those that are paid most attention, at which a span may begin


class HiddenCut(RandomRival):
    """HiddenCut (Chen et al., 2021): a span of tokens cut from the output of each transformer block.

    The loss is CE(whole) + CE(cut) + consistency JS(whole, cut), of two forwards. In the second, each block's output is
    set to 0 for a span of each sample: round(rate length) successive tokens, at least one, among those of the
    attention_mask (B, n), without which all count. By "attention" a span begins at one of the round(0.4 length) tokens,
    at least one, that are paid most attention in the block, drawn alike, and ends with the text at the latest; by
    "random" it lies anywhere. JS is averaged like the KL of :class:`RDrop`. Of an encoder-decoder model the encoder's
    blocks. The statistics count tokens, in each block.

    Raises:
        TypeError, ValueError: rate is no number in [0, 1], consistency no finite number from 0 on, spans none of the
            two, or the model has no list of blocks with attention; by attention, as :class:`attrdrop.ADDrop`; in a
            step, the model is a multi-label one, gradient checkpointing is on, or attention is not over whole texts.
    """

    step_work = 6

    @classmethod
    def make(cls, model: Any, settings: Settings, seed: int) -> Self:
        return cls(model, rate=settings.rate, consistency=settings.consistency, spans=settings.spans, seed=seed)

    @classmethod
    def model_options(cls, settings: Settings, config: Any) -> dict[str, Any]:
        return {"attn_implementation": "attrdrop" if settings.spans == "attention" else None}

    def __init__(self, model: Any, *, rate: float, consistency: float, spans: str = "attention", seed: int = 0) -> None:
        check_choice("spans", spans, SPANS)
        self._scope = attention_scope(model, ("encoder",)) if spans == "attention" else None
        super().__init__(model, rate, seed)
        self.consistency = check_consistency(consistency)
        self._blocks = encoder_blocks(model)
        self._call: AttentionCall | None = None

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        """The heads' outputs (B, n, H, d), called by the model; notes the call for the block that it is in."""
        if self._scope is not None and call.module in self._scope:
            self._call = call.detached()
        return plain()

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        whole = self.model(**batch)
        hook = functools.partial(self._cut, batch.get("attention_mask"))
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(block.register_forward_hook(hook))
            cut = self.model(**batch, **({} if self._scope is None else {"attrdrop": self}))
        divergence = difference(self.model, whole.logits, cut.logits, batch["labels"], jensen_shannon)
        return whole.loss + cut.loss + self.consistency * divergence

    def _cut(self, mask: Tensor | None, block: nn.Module, arguments: Any, output: Any) -> Any:
        """Forward hook: hidden states (B, n, D), alone or first in a tuple."""
        hidden = output[0] if isinstance(output, tuple) else output
        valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask.bool()
        span = self._span(valid, None if self._scope is None else self._paid(valid))
        self._count(valid.sum(), span.sum())
        hidden = hidden.masked_fill(span.unsqueeze(-1), 0)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _paid(self, valid: Tensor) -> Tensor:
        """(B, n): the attention that is paid to each token in the block whose output is at hand."""
        call, self._call = self._call, None
        if call is None:
            raise ValueError(unreachable(self.model))
        if (call.query.shape[0], call.query.shape[2]) != tuple(valid.shape):
            raise ValueError(
                f"spans must be 'random' for {type(self.model).__name__}, which does not attend to all tokens at once"
            )
        return attention_paid(call, valid)

    def _span(self, valid: Tensor, paid: Tensor | None = None) -> Tensor:
        """Bool (B, n): the tokens to cut, successive among the valid ones; paid: float (B, n), places them."""
        length = valid.sum(-1)
        size = _share_of(length, self.rate)
        place = valid.cumsum(-1) - 1
        drawn = self._uniform(len(valid))
        if paid is None:
            start = (drawn * (length - size + 1)).long()
        else:
            salient = paid.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
            chosen = (drawn * _share_of(length, SALIENT)).long()
            start = place.gather(1, salient.gather(1, chosen[:, None]))[:, 0]
        return valid & (place >= start[:, None]) & (place < (start + size)[:, None])


def attention_paid(call: AttentionCall, queries: Tensor) -> Tensor:
    """(B, n_k): the attention that these queries, bool (B, n_q), pay to each key, the mean over queries and heads.

    It is that before dropout; attention sinks are left out.
    """
    scores = call.query @ call.key.repeat_interleave(call.query.shape[1] // call.key.shape[1], 1).transpose(-1, -2)
    scores = call.score_scale() * scores.to(torch.promote_types(scores.dtype, torch.float32))
    if (bias := call.bias()) is not None:
        scores = scores + bias
    if (valid := call.valid()) is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
    elif call.is_causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
    weights = scores.softmax(-1).mean(1).nan_to_num()  # a query without keys pays none
    return (weights * queries[..., None]).sum(1) / queries.sum(1, keepdim=True)


def encoder_blocks(model: Any) -> list[nn.Module]:
    """The transformer blocks of a model, of its encoder where it has a decoder too: what lists of modules with
    attention hold, lists within them aside.

    Raises:
        ValueError: there are none.
    """
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    blocks: list[nn.Module] = []
    seen: set[nn.Module] = set()
    for modules in encoder.modules():  # outer ones come first
        if isinstance(modules, nn.ModuleList) and modules not in seen:
            members = [member for member in modules if _holds_attention(member)]
            if members:
                blocks += members
                seen.update(modules.modules())
    if not blocks:
        raise ValueError(
            f"model must have a list of transformer blocks with attention, {type(model).__name__} has none"
        )
    return blocks


def _share_of(length: Tensor, share: float) -> Tensor:
    """How many of so many tokens, at least one where there are any."""
    return (share * length.double()).round().long().clamp(min=1).minimum(length)


def _holds_attention(module: nn.Module) -> bool:
    return any("Attention" in type(part).__name__ for part in module.modules())
