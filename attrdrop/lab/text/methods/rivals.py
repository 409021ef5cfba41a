"""What the regularisers that AD-DROP is compared with have in common.

In evaluation mode, and at rate 0, every one is the model's own loss. The model stands on its device already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attrdrop.lab.text.methods.base import Method
from attrdrop.lab.text.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self


class Rival(Method):
    """What changes plain training in every epoch, but not in evaluation mode."""

    is_active = True

    def __call__(self, **batch: Tensor) -> Tensor:
        return self._loss(batch) if self._applies() else self.model(**batch).loss

    def _applies(self) -> bool:
        return self.model.training

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss


class RandomRival(Rival):
    """Draws from a generator of its own, and counts what it drops."""

    @classmethod
    def make(cls, model: Any, settings: Settings, seed: int) -> Self:
        return cls(model, rate=settings.rate, seed=seed)

    def __init__(self, model: Any, rate: float, seed: int) -> None:
        super().__init__(model)
        self.rate = check_rate(rate)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int, got {type(seed).__name__}")
        self._generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self._counts: tuple[Tensor | int, Tensor] | None = None

    def start_epoch(self, number: int) -> None:
        self._counts = None

    def statistics(self) -> dict[str, Any] | None:
        """How many could be dropped, how many were, and their ratio. Waits for the device."""
        if self._counts is None:
            return None
        valid, dropped = map(int, self._counts)
        return {"valid": valid, "dropped": dropped, "fraction_dropped": dropped / valid}

    def _applies(self) -> bool:
        if not self.model.training or self.rate == 0:
            return False
        if any(getattr(part, "gradient_checkpointing", False) for part in self.model.modules()):
            raise ValueError(
                f"{type(self).__name__} would draw anew when gradient checkpointing runs a layer again; turn gradient "
                "checkpointing off"
            )
        return True

    def _uniform(self, *shape: int) -> Tensor:
        """Float64 in [0, 1)."""
        return torch.rand(shape, generator=self._generator, device=self._generator.device, dtype=torch.float64)

    def _count(self, valid: Tensor | int, dropped: Tensor) -> None:
        """Adds numbers, which stay on the device."""
        before = self._counts or (0, 0)
        self._counts = before[0] + valid, before[1] + dropped


def check_rate(value: float) -> float:
    """A number in [0, 1]."""
    value = check_number("rate", value, "in [0, 1]")
    if not 0 <= value <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {value}")
    return value


def check_scaled_rate(value: float) -> float:
    """A rate by which what stays is scaled up."""
    if check_rate(value) == 1:
        raise ValueError("rate must be below 1, because at 1 nothing is left to scale up, got 1")
    return float(value)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """One of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_number(name: str, value: float, wanted: str) -> float:
    """wanted: which numbers, for the error."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number {wanted}, got {type(value).__name__}")
    return float(value)
