"""Child-Tuning: each step trains some of the parameters."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from attrdrop.lab.text.methods.rivals import RandomRival, check_scaled_rate


class ChildTuning(RandomRival):
    """Child-Tuning_F (Xu et al., 2021): gradients of which each step drops some entries.

    Each entry of each parameter's gradient is 0 with probability ``rate``, which is 1 - p_F, and else divided by
    1 - rate, before the optimizer sees it; its moments and weight decay go on everywhere. Masks are drawn with the
    loss, so a step is one loss and one walk back. The statistics count entries.

    Raises:
        TypeError, ValueError: rate is no number in [0, 1); in a step, gradient checkpointing is on.
    """

    def __init__(self, model: Any, *, rate: float, seed: int = 0) -> None:
        super().__init__(model, check_scaled_rate(rate), seed)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._masks: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            parameter.register_hook(functools.partial(self._masked, name))

    def __call__(self, **batch: Tensor) -> Tensor:
        self._masks = {}  # of an earlier step
        return super().__call__(**batch)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        for name, parameter in self._trained.items():
            mask = torch.empty_like(parameter, dtype=torch.bool).bernoulli_(1 - self.rate, generator=self._generator)
            self._masks[name] = mask
            self._count(mask.numel(), (~mask).sum())
        return super()._loss(batch)

    def _masked(self, name: str, gradient: Tensor) -> Tensor:
        """Hook of a parameter."""
        mask = self._masks.get(name)
        return gradient if mask is None else gradient * mask / (1 - self.rate)
