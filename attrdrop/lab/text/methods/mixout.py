"""Mixout: random weights are reset to their values before training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from attrdrop.lab.text.methods.rivals import RandomRival, check_scaled_rate


class Mixout(RandomRival):
    """Mixout (Lee et al., 2020): a step uses weights of which some are those before training.

    Of each weight matrix w of the body's linear layers, u before training, it uses
    (m w + (1 - m) u - rate u) / (1 - rate), each entry of m being 0 with probability ``rate`` and else 1, so that the
    mean is w. Biases, norms, embeddings and the head, which is new, are as they are. It takes the place of dropout:
    the model's modules of it are turned off. The statistics count entries.

    Raises:
        TypeError, ValueError: rate is no number in [0, 1), or the body has no linear layers; in a step, gradient
            checkpointing is on.
    """

    def __init__(self, model: Any, *, rate: float, seed: int = 0) -> None:
        super().__init__(model, check_scaled_rate(rate), seed)
        names = linear_weights(model)
        if not names:
            raise ValueError(f"model must have linear layers below its head, {type(model).__name__} has none")
        self._before = {name: model.get_parameter(name).detach().clone() for name in names}
        if self.rate:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional_call(self.model, self._mixed(), kwargs=batch).loss

    def _mixed(self) -> dict[str, Tensor]:
        """The weights that a step uses, by name."""
        mixed = {}
        for name, before in self._before.items():
            stays = torch.empty_like(before, dtype=torch.bool).bernoulli_(1 - self.rate, generator=self._generator)
            self._count(stays.numel(), (~stays).sum())
            change = self.model.get_parameter(name) - before
            mixed[name] = before + change * stays / (1 - self.rate)
        return mixed


def linear_weights(model: Any) -> list[str]:
    """Names of the weight matrices of linear layers below the head."""
    body, head = set(model.base_model.modules()), model.get_output_embeddings()
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if module in body and isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
