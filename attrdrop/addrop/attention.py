"""Passes of AD-DROP without gradients: AA, which ranks by attention, and RD, which ranks nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from attrdrop.addrop.passes import AttentionCall, Draws, MaskedPass, Pass1, Site, SiteOrder, ValidBits
from attrdrop.ops import KeepMask, random_keep_mask


class Survey:
    """Plain attention; notes which eligible modules attend, in order, one entry a layer."""

    def __init__(self, is_eligible: Callable[[nn.Module], bool]):
        self.is_eligible = is_eligible
        self.modules: list[nn.Module] = []

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        if self.is_eligible(call.module):
            self.modules.append(call.module)
        return plain()


def new_sites(modules: Sequence[nn.Module]) -> list[Site]:
    """Sites without bits for the modules that a survey found."""
    return [Site(index, module) for index, module in enumerate(modules)]


class _Reached(Exception):
    """The highest masked layer has its bits; nothing above it is needed."""


class AttentionPass(Pass1):
    """Pass 1 of AA: ranks the scores of each of the layers, and goes no further than the highest.

    modules: those that attend, as a survey finds them.
    """

    def __init__(self, modules: Sequence[nn.Module], layers: Sequence[int], draws: Draws):
        super().__init__(draws)
        self.sites = new_sites(modules)
        self._order = SiteOrder(self.sites)
        self._selected = frozenset(layers)
        self._last = max(layers)

    def run(self, forward: Callable[[AttentionPass], Any]) -> list[Site]:
        """The sites with their bits, after a forward as far as needed."""
        with contextlib.suppress(_Reached):
            forward(self)
        return self.sites

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        site = self._order.find(call.module)
        if site is None:
            return plain()
        if site.index in self._selected:
            self._note_mask(site, call)
            x, y, _ = call.score_factors()
            site.keep = self.draws.keep_mask(site, x, y)
        if site.index == self._last:
            raise _Reached
        return self._attend_plainly(call, site, plain)


class RandomPass(MaskedPass):
    """RD: pass 2 alone, which draws the bits of a layer when it gets there. ``count`` is told what was dropped."""

    def __init__(
        self, modules: Sequence[nn.Module], layers: Sequence[int], draws: Draws, count: Callable[[Tensor], None]
    ):
        super().__init__(new_sites(modules), draws)
        self._selected = frozenset(layers)
        self._count = count
        self._valid_bits = ValidBits()

    def _bits(self, site: Site, call: AttentionCall) -> KeepMask | None:
        if site.index in self._selected and site.keep is None:
            draws, (batch, heads, n_q, _) = self.draws, call.q.shape
            site.keep = random_keep_mask(
                batch, heads, n_q, call.k.shape[2], p=draws.p, q=draws.q, seed=draws.seed, layer=site.index,
                valid=None if call.mask is None else self._valid_bits(call).rows, is_causal=call.is_causal,
                sample_ids=draws.samples(batch), device=call.q.device,
            )  # fmt: skip
            self._count(site.keep.counts)
        return site.keep
