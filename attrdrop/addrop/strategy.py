"""What the attributions of AD-DROP have in common: each is a strategy, chosen once, with one verb for each pass."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from attrdrop._core.modules import evaluation_mode, uncompiled
from attrdrop.addrop.config import ADDropConfig
from attrdrop.addrop.passes import Draws, Pass2, Site
from attrdrop.addrop.scope import masked_layers
from attrdrop.addrop.statistics import DropCounter


class Strategy(ABC):
    """How positions are ranked.

    scope: the modules whose attention may be masked. counter: is told what was dropped.
    """

    def __init__(self, config: ADDropConfig, scope: Collection[nn.Module], counter: DropCounter):
        self.config, self.scope, self.counter = config, scope, counter

    @abstractmethod
    def attribute(self, model: nn.Module, batch: Mapping[str, Any], draws: Draws) -> list[Site]:
        """Pass 1: the model's attention layers, where those to be masked have their bits."""

    def mask(self, sites: list[Site], draws: Draws) -> Pass2:
        """Pass 2, for the model to run under."""
        counts = [site.keep.counts for site in sites if site.keep is not None]
        if counts:  # none where LayerDrop skipped every masked layer
            self.counter.add(torch.stack(counts).sum(0))
        return Pass2(sites, draws)

    def select(self, model: nn.Module, sites: list[Site]) -> None:
        """Tells the sites of all attention layers which of them are to be masked."""
        for index in masked_layers(model, self.config.layers, len(sites)):
            sites[index].is_masked = True

    @contextlib.contextmanager
    def pass1_mode(self, model: nn.Module) -> Iterator[None]:
        """The model as pass 1 runs it: not compiled, and without its dropout where the configuration says so."""
        is_evaluation = self.config.pass1 == "eval"
        with uncompiled(), evaluation_mode(model) if is_evaluation else contextlib.nullcontext():
            yield
