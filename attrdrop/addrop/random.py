"""RD: AD-DROP ranks nothing, so pass 1 runs nothing, and pass 2 draws the bits of a layer when it gets there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from attrdrop.addrop.passes import AttentionCall, Draws, Pass2, Site
from attrdrop.addrop.statistics import DropCounter
from attrdrop.addrop.survey import SurveyingStrategy
from attrdrop.ops import KeepMask, KeptScores, random_keep_mask


class RandomDropping(SurveyingStrategy):
    """Pass 2 alone."""

    def attribute(self, model: nn.Module, batch: Mapping[str, Any], draws: Draws) -> list[Site]:
        return self.survey(model, batch)

    def mask(self, sites: list[Site], draws: Draws) -> Pass2:
        return RandomPass2(sites, draws, self.counter)


class RandomPass2(Pass2):
    """Drops each position of the masked layers with probability p q; counts once, also where the model runs again."""

    def __init__(self, sites: list[Site], draws: Draws, counter: DropCounter):
        super().__init__(sites, draws)
        self._counter = counter

    def _bits(self, site: Site, call: AttentionCall) -> KeepMask | None:
        if site.is_masked and site.keep is None and "attention" in self.draws.units:
            draws, (batch, heads, n_q, _) = self.draws, call.query.shape
            site.keep = random_keep_mask(
                batch, heads, n_q, call.key.shape[2], p=draws.p, q=draws.q, seed=draws.seed, layer=site.index,
                valid=self._valid_bits.rows(call), is_causal=call.is_causal,
                sample_ids=draws.samples(batch), device=call.query.device,
            )  # fmt: skip
            self._counter.add(site.keep.counts)
        return site.keep

    def _unit_bits(self, site: Site, unit: int, a: Tensor) -> KeptScores | None:
        if unit not in site.units:
            site.units[unit] = self.draws.random_units(site, unit, a)
            self._counter.add_units(unit, site.units[unit].counts)
        return site.units[unit]
