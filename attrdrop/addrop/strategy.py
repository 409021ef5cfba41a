"""What the attributions of AD-DROP have in common: each is a strategy, chosen once, with one verb for each pass."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from attrdrop._core.modules import evaluation_mode, gradients_left_alone, uncompiled
from attrdrop._core.warning import warn
from attrdrop.addrop.config import ADDropConfig
from attrdrop.addrop.passes import Draws, Pass2, Site
from attrdrop.addrop.reach import why_unreached
from attrdrop.addrop.scope import Scope, masked_layers
from attrdrop.addrop.statistics import DropCounter, dead_counts
from attrdrop.addrop.units import NO_FEED_FORWARD, Units

IDLE = "no module of attention={!r} ({}) runs on this batch, so nothing is dropped there"
PARTLY = (
    "the model does not pass the keyword attrdrop on to all of its attention: that of {} stays plain and is not a "
    "layer of AD-DROP"
)


class Strategy(ABC):
    """How positions are ranked.

    scope: whose attention may be masked. counter: is told what was dropped. units: what is dropped.
    """

    def __init__(self, config: ADDropConfig, scope: Scope, counter: DropCounter, units: Units):
        self.config, self.scope, self.counter, self.units = config, scope, counter, units
        self._said: set[str] = set()  # warnings

    @abstractmethod
    def attribute(self, model: nn.Module, batch: Mapping[str, Any], draws: Draws) -> list[Site]:
        """Pass 1: the model's attention layers, where those to be masked have their bits."""

    def mask(self, sites: list[Site], draws: Draws) -> Pass2:
        """Pass 2, for the model to run under."""
        for site in sites:
            if site.keep is not None:
                dead = None if site.live is None else dead_counts(site.live, site.keep, site.valid, site.is_causal)
                self.counter.add(site.keep.counts, dead)
            for unit, kept in site.units.items():
                self.counter.add_units(unit, kept.counts)
        return Pass2(sites, draws)

    def select(
        self, model: nn.Module, batch: Mapping[str, Any], sites: Sequence[Site], untold: Collection[nn.Module]
    ) -> None:
        """Tells the sites of all attention layers which of them are to be masked.

        untold: modules that attended in the same forward without a pass.
        """
        reached = {site.module for site in sites}
        for name, part in self.scope.parts.items():
            if reached & part.modules:
                continue
            reason = why_unreached(model, batch, name, part, untold)
            if reason is not None:
                raise ValueError(reason)
            self._say(IDLE.format(name, type(part.model).__name__))
        lost = {type(module).__name__ for module in untold if module in self.scope and module not in reached}
        if lost:
            self._say(PARTLY.format(", ".join(sorted(lost))))
        if self.config.layers != "all" and self.attends_by_image(sites):
            raise ValueError(
                f"layers must be 'all' where a vision tower attends to each image in a call of its own, as "
                f"{type(self.scope.parts['vision'].model).__name__} does, got {self.config.layers!r}"
            )
        for index in masked_layers(self.config.layers, len(sites)) if sites else ():
            sites[index].is_masked = True
        masked = [site.module for site in sites if site.is_masked]
        if "feed-forward" in self.units and masked and not any(map(self.units.projections, masked)):
            raise ValueError(NO_FEED_FORWARD.format(type(masked[0]).__name__))

    def attends_by_image(self, sites: Sequence[Site]) -> bool:
        """Whether a layer of a vision tower has several calls, so that how many there are depends on the batch."""
        part = self.scope.parts.get("vision")
        seen = [site.module for site in sites if part is not None and site.module in part.modules]
        return len(set(seen)) < len(seen)

    def _say(self, message: str) -> None:
        """Once."""
        if message not in self._said:
            self._said.add(message)
            warn(message)

    @contextlib.contextmanager
    def pass1_mode(self, model: nn.Module, device: torch.device) -> Iterator[None]:
        """The model as pass 1 runs it: not compiled, and without dropout or under autocast if the settings say so."""
        with contextlib.ExitStack() as modes:
            modes.enter_context(uncompiled())
            modes.enter_context(gradients_left_alone(model))
            if self.config.pass1 == "eval":
                modes.enter_context(evaluation_mode(model))
            if self.config.pass1_dtype is not None:
                dtype = getattr(torch, self.config.pass1_dtype)
                # no cache: it would hold on to weights cast by an outer autocast of another type
                modes.enter_context(torch.autocast(device.type, dtype, cache_enabled=False))
            yield
