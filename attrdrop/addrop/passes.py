"""What the passes of AD-DROP share, objects that travel through the model in a keyword argument.

A pass is told of each attention call in turn: pass 1 ranks positions and gives each masked layer its bits, pass 2
attends under those bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attrdrop._core.backends import COMPILED_MISSING
from attrdrop._core.seeds import derive_seed
from attrdrop.addrop.part import Part
from attrdrop.addrop.units import HEADS, NextInputs, Units, Zeroed, by_sample, without_heads
from attrdrop.ops import (
    AttentionWeight,
    KeepMask,
    KeptScores,
    keep_mask,
    keep_scores,
    masked_attention,
    pack_mask,
)
from attrdrop.ops.ranked_attention import KeepRule


class Pass(Protocol):
    """What a model may be handed as ``attrdrop=...``."""

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        """The head outputs (B, n, H, d) of a call, which are those of ``plain`` where the pass changes nothing."""


class AttentionCall(NamedTuple):
    """One attention call: query (B, H, n_q, d), key and value (B, H_kv, n_k, d), and its mask.

    mask is None, bool or integer (attend where it is not 0) or floating point (added to the scores), broadcastable to
    (B, H, n_q, n_k); position_bias is added likewise. is_causal counts where there is no mask. sinks are those of
    :func:`attrdrop.masked_attention`.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    position_bias: Tensor | None
    scale: float | None
    dropout_p: float
    is_causal: bool
    sinks: Tensor | None = None

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

    def detached(self) -> AttentionCall:
        """The same call without its graph."""
        tensors = ("query", "key", "value", "mask", "position_bias", "sinks")
        return self._replace(**{name: x.detach() for name in tensors if (x := getattr(self, name)) is not None})

    def score_scale(self) -> float:
        """What q kᵀ is multiplied by."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else float(self.scale)


IMAGES_AT_MOST = 4096
"""Per sample, lest images of one call have the ids of another's."""


class Draws(NamedTuple):
    """What the random bits of a step depend on besides their place, and how candidates are chosen.

    p, q: the paper's. count_dead: whether queries without a gradient are noted, to be counted apart. units: what is
    dropped. part: the samples that are attributed, where it is not all of them.
    """

    p: float
    q: float
    seed: int
    sample_ids: Tensor
    keys: str = "auto"
    region: str = "high"
    count_dead: bool = False
    units: Units = Units()
    part: Part | None = None

    def of_part(self) -> Draws:
        """Those of the attributed samples alone."""
        assert self.part is not None
        return self._replace(sample_ids=self.sample_ids[self.part.index], part=None)

    def samples(self, batch: int) -> Tensor:
        """The ids of a call's batch, (B,): a model that attends in windows has several entries per sample, in order;
        images that are not equally many per sample are numbered from the first sample on."""
        count = len(self.sample_ids)
        if count in (0, batch):
            return self.sample_ids
        if batch % count:
            return self.sample_ids[:1] * IMAGES_AT_MOST + torch.arange(batch, device=self.sample_ids.device)
        windows = batch // count
        return (self.sample_ids[:, None] * windows + torch.arange(windows, device=self.sample_ids.device)).flatten()

    def keep_mask(
        self,
        site: Site,
        x: Tensor,
        y: Tensor,
        *,
        bias: Tensor | None = None,
        scale: float = 1.0,
        weight: AttentionWeight | None = None,
    ) -> KeepMask:
        """The bits of a site whose attribution is scale x yᵀ + bias, or x yᵀ weighed."""
        return keep_mask(
            x, y, valid=site.valid, is_causal=site.is_causal, bias=bias, scale=scale, weight=weight,
            sample_ids=self.samples(x.shape[0]), **self.rule(site)._asdict(),
        )  # fmt: skip

    def rule(self, site: Site) -> KeepRule:
        return KeepRule(self.p, self.q, self.seed, site.index, self.region, self.keys)

    def keep_scores(self, site: Site, unit: int, scores: Tensor) -> KeptScores:
        """The bits of a site's units of a kind, by number, from their scores (B, n, m)."""
        return self._keep(site, unit, scores, self.p, self.q)

    def random_units(self, site: Site, unit: int, a: Tensor) -> KeptScores:
        """The same for RD, of units a (B, n, m): all tie, so that all are candidates."""
        return self._keep(site, unit, torch.zeros((), device=a.device).expand(a.shape), 1.0, self.p * self.q)

    def _keep(self, site: Site, unit: int, scores: Tensor, p: float, q: float) -> KeptScores:
        return keep_scores(
            scores, p=p, q=q, seed=derive_seed(self.seed, 3, unit), layer=site.index, region=self.region,
            sample_ids=self.samples(scores.shape[0]),
        )  # fmt: skip


@dataclass(eq=False)
class Site:
    """One attention layer in the forward pass: whether it is to be masked, and the bits it is given.

    live: bool (B, H, n_q), the queries on which the target depends, where that is known. units: the bits of other
    units, by number.
    """

    index: int
    module: nn.Module
    is_masked: bool = False
    valid: Tensor | None = None
    is_causal: bool = False
    keep: KeepMask | None = None
    live: Tensor | None = None
    units: dict[int, KeptScores] = field(default_factory=dict)


class SiteOrder:
    """Tells which site a call is; a module that serves several layers is told apart by the order of its calls."""

    def __init__(self, sites: list[Site]):
        self._sites: dict[int, list[Site]] = {}
        for site in sites:  # alive in the list, so that each id stays its own
            self._sites.setdefault(id(site.module), []).append(site)
        self._calls = dict.fromkeys(self._sites, 0)

    def find(self, module: nn.Module) -> Site | None:
        key = id(module)
        sites = self._sites.get(key)
        if sites is None:
            return None
        index = 0
        if len(sites) > 1:
            index = self._calls[key]
            if index == len(sites):
                raise ValueError(SHARED_AND_CHECKPOINTED.format(type(module).__name__))
            self._calls[key] = index + 1
        return sites[index]


class _Packed:
    """The mask of an attention call as bits; by key too, once that is asked for."""

    def __init__(self, call: AttentionCall):
        self.mask, self.is_causal = call.mask, call.is_causal
        n_q, self._n_k = call.query.shape[2], call.key.shape[2]
        valid = call.valid()
        if valid is None:
            valid = torch.ones(n_q if call.is_causal else 1, self._n_k, dtype=torch.bool, device=call.query.device)
            valid = valid.tril() if call.is_causal else valid
        self.rows = pack_mask(valid.reshape((1,) * (4 - valid.dim()) + tuple(valid.shape)))

    @functools.cached_property
    def keep(self) -> KeepMask:
        return KeepMask.from_rows(self.rows, self._n_k)


class ValidBits:
    """The masks of attention calls as bits, packed once per forward: the layers of a model share theirs."""

    def __init__(self) -> None:
        self._packed: list[_Packed] = []

    def __call__(self, call: AttentionCall) -> KeepMask:
        return self._of(call).keep

    def rows(self, call: AttentionCall) -> Tensor | None:
        """By query alone; None where the call has no mask, which may be causal still."""
        return None if call.mask is None else self._of(call).rows

    def _of(self, call: AttentionCall) -> _Packed:
        for packed in self._packed:
            if packed.mask is call.mask and packed.is_causal == call.is_causal:
                return packed
        self._packed.append(_Packed(call))
        return self._packed[-1]


class Pass1:
    """What every pass 1 does: attention as the model has it, with its own dropout."""

    def __init__(self, draws: Draws):
        self.draws = draws
        self._valid_bits = ValidBits()

    def _note_mask(self, site: Site, call: AttentionCall) -> None:
        site.valid = self._valid_bits.rows(call)
        site.is_causal = call.is_causal

    def _attend_plainly(self, call: AttentionCall, site: Site, plain: Callable[[], Tensor]) -> Tensor:
        if not _is_slow_in_torch(call):
            return plain()
        return self._attend_ourselves(call, site)

    def _attend_ourselves(self, call: AttentionCall, site: Site) -> Tensor:
        return _attend(call, self._valid_bits(call), self._dropout_seed(site), self.draws)

    def _dropout_seed(self, site: Site) -> int:
        return derive_seed(self.draws.seed, 1, site.index)


class Pass2:
    """Attention under the bits of pass 1; layers without bits attend plainly."""

    def __init__(self, sites: list[Site], draws: Draws):
        self.sites, self.draws = sites, draws
        self._order = SiteOrder(sites)
        self._seeds = [derive_seed(draws.seed, 2, site.index) for site in sites]
        self._inputs = NextInputs()
        self._valid_bits = ValidBits()
        if draws.part is not None:
            for site in sites:
                _spread(site, draws.part)

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        site = self._order.find(call.module)
        if site is None:
            return plain()
        keep = self._bits(site, call)
        out = plain() if keep is None else _attend(call, keep, self._seeds[site.index], self.draws)
        if not site.is_masked:
            return out
        for unit, projection in enumerate(self.draws.units.projections(site.module), HEADS + 1):
            self._inputs.change(projection, self._without_units, site, unit)
        kept = self._unit_bits(site, HEADS, out[:, :1, :, 0]) if "heads" in self.draws.units else None
        return out if kept is None else without_heads(out, kept.rows)

    def _without_units(self, site: Site, unit: int, a: Tensor) -> Tensor:
        kept = self._unit_bits(site, unit, by_sample(a))
        return a if kept is None else Zeroed.apply(a, kept.rows)

    def _bits(self, site: Site, call: AttentionCall) -> KeepMask | None:
        if site.keep is None or self.draws.part is None:
            return site.keep
        valid = self._valid_bits(call)
        return KeepMask.from_rows(site.keep.rows & valid.rows, site.keep.shape[3])

    def _unit_bits(self, site: Site, unit: int, a: Tensor) -> KeptScores | None:
        """Those of units a (B, n, m)."""
        return site.units.get(unit)


def _spread(site: Site, part: Part) -> None:
    """Gives samples without attribution bits that are all set, those beyond the valid positions too."""
    if site.keep is not None:
        keep = site.keep
        site.keep = KeepMask(part.spread(keep.rows), part.spread(keep.by_key), keep.counts)
    for unit, kept in site.units.items():
        site.units[unit] = KeptScores(part.spread(kept.rows), kept.counts)


SHARED_AND_CHECKPOINTED = (
    "{} serves several layers and gradient checkpointing runs it again out of order, so AD-DROP cannot tell its layers "
    "apart; turn gradient checkpointing off for this model"
)


def _is_slow_in_torch(call: AttentionCall) -> bool:
    """Torch's CPU attention materialises everything where it drops out, and expands a mask; ours does neither."""
    is_half_or_single = call.query.dtype != torch.float64
    is_ours = call.query.device.type == "cpu" and is_half_or_single and COMPILED_MISSING is None
    return is_ours and (call.dropout_p > 0 or call.mask is not None)


def attend_plainly(call: AttentionCall) -> Tensor:
    """The head outputs of a call outside any pass; its dropout is drawn from torch's generator."""
    return _masked(call, ValidBits()(call))


def _attend(call: AttentionCall, keep: KeepMask, seed: int, draws: Draws) -> Tensor:
    return _masked(call, keep, seed=seed, sample_ids=draws.samples(call.query.shape[0]))


def _masked(call: AttentionCall, keep: KeepMask, **draw: Any) -> Tensor:
    out = masked_attention(
        call.query, call.key, call.value, keep, bias=call.bias(), sinks=call.sinks, scale=call.scale,
        dropout_p=call.dropout_p, **draw,
    )  # fmt: skip
    assert isinstance(out, Tensor)  # a pair comes only with return_lse
    return out
