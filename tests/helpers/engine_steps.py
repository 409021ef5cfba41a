"""AD-DROP under an engine: some steps on each process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from engines import Engine, gathered, place
from models import batch, build

from attrdrop import ADDrop

STEPS = 2
TOTAL = 8
UNITS = {"GA+units": ["attention", "feed-forward", "heads"], "RD+units": ["attention", "feed-forward", "heads"]}


def layers(model):
    return list(model.bert.encoder.layer)


def whole_batch(step: int, dtype: torch.dtype) -> dict[str, Any]:
    return batch("bert", size=TOTAL, dtype=dtype, seed=step + 1)


def run(
    make_engine: Callable[..., Engine], attribution: str, sizes: list[list[int]], dtype: torch.dtype
) -> list[dict[str, Any]]:
    """What each step gave: masks by layer, the loss and the gradients, of the whole batch."""
    trained = make_engine(build("bert", dtype), layers)
    settings = dict(attribution=attribution.split("+")[0], units=UNITS.get(attribution, ["attention"]), iga_steps=3)
    addrop = Noted(trained.model, p=0.4, q=0.5, cross_tuning=False, accumulation_steps=len(sizes), **settings)
    return [step(trained, addrop, whole_batch(number, dtype), sizes) for number in range(STEPS)]


class Noted(ADDrop):
    """Keeps the last pass 2, whose bits tests compare; calls ``between`` before it."""

    masks: Any = None

    def between(self) -> None:
        pass

    def attribute(self, **inputs: Any) -> Any:
        self.masks = super().attribute(**inputs)
        self.between()
        return self.masks


def step(trained: Engine, addrop: Noted, inputs: dict[str, Any], sizes: list[list[int]]) -> dict[str, Any]:
    rank, count = place()
    first, masks, losses = 0, [], []
    for call, held in enumerate(sizes):
        begin = first + sum(held[:rank])
        part = {name: value[begin : begin + held[rank]] for name, value in inputs.items()}
        first += sum(held)
        with trained.micro_step(is_last=call == len(sizes) - 1):
            loss = addrop(**part).loss * held[rank] / TOTAL
            trained.backward(loss * count)
        masks += gathered([] if addrop.masks is None else [_bits(site) for site in addrop.masks.sites])
        losses += gathered(loss.item())
    gradients = trained.gradients()
    trained.step()
    return {
        "masks": [torch.cat(layer) for layer in zip(*masks, strict=True)],
        "loss": sum(losses),
        "gradients": gradients,
    }


def _bits(site):
    """All that a layer of the samples was given, int64 (samples, bits)."""
    parts = [] if site.keep is None else [site.keep.rows]
    parts += [kept.rows for _, kept in sorted(site.units.items())]
    return torch.cat([part.flatten(1) for part in parts], 1)
