"""AA: pass 1 of AD-DROP ranks by the scores, and so by the attention before dropout, without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop.addrop.passes import AttentionCall, Draws, Pass1, Site, SiteOrder
from attrdrop.addrop.survey import SurveyingStrategy


class AttentionAttribution(SurveyingStrategy):
    """Pass 1 is a forward as far as the highest masked layer."""

    def attribute(self, model: nn.Module, batch: Mapping[str, Any], draws: Draws) -> list[Site]:
        sites = self.survey(model, batch)
        with torch.no_grad(), self.pass1_mode(model, draws.sample_ids.device), contextlib.suppress(_Reached):
            model(**batch, attrdrop=AttentionPass1(sites, draws))
        return sites


class _Reached(Exception):
    """The highest masked layer has its bits; nothing above it is needed."""


class AttentionPass1(Pass1):
    """Ranks the scores of the masked layers, in their order, and goes no further than the highest."""

    def __init__(self, sites: list[Site], draws: Draws):
        super().__init__(draws)
        self._order = SiteOrder(sites)
        self._last = max((site.index for site in sites if site.is_masked), default=-1)

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        site = self._order.find(call.module)
        if site is None:
            return plain()
        if site.index > self._last:  # which LayerDrop skipped
            raise _Reached
        if site.is_masked:
            self._note_mask(site, call)
            bias = call.bias()
            scale = 1.0 if bias is None else call.score_scale()  # which alone changes no ranking
            site.keep = self.draws.keep_mask(site, call.query, call.key, bias=bias, scale=scale)
        if site.index == self._last:
            raise _Reached
        return self._attend_plainly(call, site, plain)
