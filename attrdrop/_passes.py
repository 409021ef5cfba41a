"""The two forward passes of an AD-DROP step, as objects that travel through the model in a keyword argument.

A pass is told of each attention call in turn. :class:`AttributionPass` taps the head outputs, so that the backward
turns (dO, V) into bits at once; :class:`MaskedPass` attends under those bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attrdrop._backend import COMPILED_MISSING
from attrdrop.ops import KeepMask, keep_mask, masked_attention, pack_mask


class AttentionCall(NamedTuple):
    """One attention call: q (B, H, n_q, d), k and v (B, H_kv, n_k, d), and its mask.

    mask is None, bool or integer (attend where it is not 0) or floating point (added to the scores), broadcastable to
    (B, H, n_q, n_k); position_bias is added likewise. is_causal counts where there is no mask.
    """

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    position_bias: Tensor | None
    scale: float | None
    dropout_p: float
    is_causal: bool

    def valid(self) -> Tensor | None:
        """Bool columns that the mask allows; a floating-point mask forbids what it lowers to (nearly) its minimum."""
        if self.mask is None:
            return None
        if not self.mask.is_floating_point():
            return self.mask.bool()
        return self.mask > torch.finfo(self.mask.dtype).min / 2

    def bias(self) -> Tensor | None:
        """What is added to the scores beyond the bits."""
        parts = [self.position_bias]
        if self.mask is not None and self.mask.is_floating_point():
            parts.append(self.mask)
        present = [part for part in parts if part is not None]
        return sum(present[1:], present[0]) if present else None


class Draws(NamedTuple):
    """What the random bits of a step depend on besides their place, and how candidates are chosen."""

    p: float
    q: float
    seed: int
    sample_ids: Tensor
    keys: str = "auto"
    region: str = "high"


def derive_seed(*parts: int) -> int:
    """Mixes integers into a 63-bit seed (SplitMix64's finaliser over each)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ state >> 27) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


@dataclass(eq=False)
class Site:
    """One attention call of the forward pass: what its tap needs, and the bits it leaves."""

    index: int
    module: nn.Module
    marker: Tensor
    valid: Tensor | None
    is_causal: bool
    keep: KeepMask | None = None


class _Tap(torch.autograd.Function):
    """Identity on a head output (B, n, H, d) whose backward turns (dO, V) into bits (Eq. 5 to 7)."""

    @staticmethod
    def forward(ctx, out, v, marker, site, receive):
        ctx.save_for_backward(v)
        ctx.site, ctx.receive = site, receive
        return out.view_as(out)

    @staticmethod
    def backward(ctx, grad_out):
        (v,) = ctx.saved_tensors
        ctx.receive(ctx.site, grad_out, v)
        return grad_out, None, None, None, None


class AttributionPass:
    """Pass 1: plain attention, with a tap on the head outputs of each eligible module."""

    def __init__(self, draws: Draws, is_eligible: Callable[[nn.Module], bool]):
        self.draws = draws
        self.is_eligible = is_eligible
        self.sites: list[Site] = []
        self._selected: frozenset[int] = frozenset()
        self._is_recording = True  # a checkpointed layer runs again in the backward
        self._packed: dict[tuple[int, bool], tuple[Tensor | None, KeepMask]] = {}

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        if not self.is_eligible(call.module):
            return plain()
        if not torch.is_grad_enabled():
            raise ValueError(
                "AD-DROP needs gradients through every layer in its first pass, but this one runs without: gradient "
                "checkpointing with use_reentrant=True hides them; pass "
                'gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
        site = self._record(call) if self._is_recording else self._recall(call)
        out = self._attend_with_dropout(call, site) if _has_slow_dropout(call) else plain()
        return _Tap.apply(out, call.v, site.marker, site, self._receive)

    def attribute(self, target: Tensor, layers: list[int]) -> list[Site]:
        """Walks back from the target to the lowest of the layers; the sites with their bits."""
        self._is_recording = False
        self._selected = frozenset(layers)
        markers = [self.sites[index].marker for index in layers]
        torch.autograd.grad(target, markers, allow_unused=True)
        missing = [index for index in layers if self.sites[index].keep is None]
        if missing:
            raise RuntimeError(f"the attribution target does not depend on attention layers {missing}; leave them out")
        return self.sites

    def _record(self, call: AttentionCall) -> Site:
        marker = torch.zeros((), device=call.q.device, requires_grad=True)
        valid = None if call.mask is None else self._valid_bits(call).rows
        site = Site(len(self.sites), call.module, marker, valid, call.is_causal)
        self.sites.append(site)
        return site

    def _recall(self, call: AttentionCall) -> Site:
        sites = [site for site in self.sites if site.module is call.module]
        if len(sites) != 1:
            raise ValueError(SHARED_AND_CHECKPOINTED.format(type(call.module).__name__))
        return sites[0]

    def _receive(self, site: Site, grad_out: Tensor, v: Tensor) -> None:
        if site.index not in self._selected:
            return
        draws = self.draws
        site.keep = keep_mask(
            grad_out.transpose(1, 2).to(v.dtype), v, p=draws.p, q=draws.q, seed=draws.seed, layer=site.index,
            valid=site.valid, is_causal=site.is_causal, region=draws.region, keys=draws.keys,
            sample_ids=draws.sample_ids,
        )  # fmt: skip

    def _valid_bits(self, call: AttentionCall) -> KeepMask:
        """The mask as bits, packed once per forward: the layers of a model share it."""
        key = id(call.mask), call.is_causal
        if key not in self._packed:
            n_q, n_k = call.q.shape[2], call.k.shape[2]
            valid = call.valid()
            if valid is None:
                valid = torch.ones(n_q if call.is_causal else 1, n_k, dtype=torch.bool, device=call.q.device)
                valid = valid.tril() if call.is_causal else valid
            rows = pack_mask(valid.reshape((1,) * (4 - valid.dim()) + tuple(valid.shape)))
            self._packed[key] = call.mask, KeepMask.from_rows(rows, n_k)  # holding the mask keeps its id its own
        return self._packed[key][1]

    def _attend_with_dropout(self, call: AttentionCall, site: Site) -> Tensor:
        seed = derive_seed(self.draws.seed, 1, site.index)
        return _attend(call, self._valid_bits(call), seed, self.draws.sample_ids)


class MaskedPass:
    """Pass 2: attention under the bits of pass 1; modules without bits attend plainly."""

    def __init__(self, sites: list[Site], draws: Draws):
        self.sample_ids = draws.sample_ids
        self._masks: dict[int, list[tuple[KeepMask | None, int]]] = {}
        for site in sites:
            seed = derive_seed(draws.seed, 2, site.index)
            self._masks.setdefault(id(site.module), []).append((site.keep, seed))
        self._calls = dict.fromkeys(self._masks, 0)
        self._modules = [site.module for site in sites]  # alive, so that each id stays its own

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        key = id(call.module)
        masks = self._masks.get(key)
        if masks is None:
            return plain()
        index = 0
        if len(masks) > 1:  # one module serves several layers, in order
            index = self._calls[key]
            if index == len(masks):
                raise ValueError(SHARED_AND_CHECKPOINTED.format(type(call.module).__name__))
            self._calls[key] = index + 1
        keep, seed = masks[index]
        return plain() if keep is None else _attend(call, keep, seed, self.sample_ids)


SHARED_AND_CHECKPOINTED = (
    "{} serves several layers and gradient checkpointing runs it again out of order, so AD-DROP cannot tell its layers "
    "apart; turn gradient checkpointing off for this model"
)


def _has_slow_dropout(call: AttentionCall) -> bool:
    """Torch's CPU attention materialises everything where it drops out; ours does not."""
    is_half_or_single = call.q.dtype != torch.float64
    return call.dropout_p > 0 and call.q.device.type == "cpu" and is_half_or_single and COMPILED_MISSING is None


def _attend(call: AttentionCall, keep: KeepMask, seed: int, sample_ids: Tensor) -> Tensor:
    out = masked_attention(
        call.q, call.k, call.v, keep, bias=call.bias(), scale=call.scale, dropout_p=call.dropout_p, seed=seed,
        sample_ids=sample_ids,
    )  # fmt: skip
    assert isinstance(out, Tensor)  # a pair comes only with return_lse
    return out
