"""A survey of a model's attention layers, where they must be known before the first pass."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.modules import evaluation_mode, uncompiled
from attrdrop.addrop.passes import AttentionCall, Site
from attrdrop.addrop.strategy import Strategy
from attrdrop.addrop.untold import noting_untold


class SurveyingStrategy(Strategy):
    """Finds the attention layers by one plain forward at its first step."""

    _is_stale = True
    _modules: Sequence[nn.Module] = ()
    _untold: Sequence[nn.Module] = ()
    _skips: bool | None = None

    def known_sites(self, model: nn.Module, batch: Mapping[str, Any]) -> list[Site]:
        """All layers, where a training step may skip some; else none, and pass 1 finds them."""
        if self._skips is None:  # a model's configuration is slow to read
            self._skips = skips_layers(model)
        return self.survey(model, batch) if self._skips else []

    def survey(self, model: nn.Module, batch: Mapping[str, Any]) -> list[Site]:
        """The attention layers, none with bits; those to be masked know it."""
        if self._is_stale:
            survey = Survey(self.scope)
            with evaluation_mode(model), uncompiled(), torch.no_grad(), noting_untold() as self._untold:
                model(**batch, attrdrop=survey)
            self._modules = survey.modules
        sites = [Site(index, module) for index, module in enumerate(self._modules)]
        idle = [name for name, part in self.scope.parts.items() if part.modules.isdisjoint(self._modules)]
        self._is_stale = bool(idle) or self.attends_by_image(sites)
        self.select(model, batch, sites, self._untold)
        return sites


class Survey:
    """Plain attention; notes which modules of a scope attend, in order, one entry a layer."""

    def __init__(self, scope: Container[nn.Module]):
        self.scope = scope
        self.modules: list[nn.Module] = []

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        if call.module in self.scope:
            self.modules.append(call.module)
        return plain()


def skips_layers(model: nn.Module) -> bool:
    """Whether training leaves out layers by chance (LayerDrop), so that a training step does not show all of them."""
    config: Any = getattr(model, "config", None)
    settings = [config.to_dict()] if hasattr(config, "to_dict") else []
    for found in settings:  # grows by what is nested
        settings.extend(value for value in found.values() if isinstance(value, dict))
    return any(
        "layerdrop" in str(name) and isinstance(value, float | int) and value > 0
        for found in settings
        for name, value in found.items()
    )
