"""Numbers that change with the training step, for p, q, alpha, beta: callables that take the step, counted from 0.

:class:`Balance` adjusts itself during training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attrdrop._core.checks import check_choice, check_positive_int, check_tensor, is_number
from attrdrop._core.distributed import summed_over_all

Schedule = float | Callable[[int], float]


def constant(value: float) -> Callable[[int], float]:
    """The same number at every step."""
    return lambda step: value


def linear(start: float, end: float, steps: int) -> Callable[[int], float]:
    """A straight line from start at step 0 to end at step ``steps``, and end from then on."""
    return _between(start, end, steps, lambda share: share)


def cosine(start: float, end: float, steps: int) -> Callable[[int], float]:
    """Half a cosine wave from start at step 0 to end at step ``steps``, and end from then on."""
    return _between(start, end, steps, lambda share: (1 - math.cos(math.pi * share)) / 2)


def _between(start: float, end: float, steps: int, shape: Callable[[float], float]) -> Callable[[int], float]:
    check_positive_int("steps", steps)
    return lambda step: start + (end - start) * shape(min(max(step / steps, 0.0), 1.0))


class Balance:
    """A schedule that adjusts itself: it keeps the gap between the loss with and without occlusion near a target.

    ::

        balance = attrdrop.schedules.Balance(0.5, gap=0.3)
        reldrop = attrdrop.RelDrop(model, alpha=balance)
        for images, labels in loader:
            losses = cross_entropy(model(reldrop(images, labels)), labels, reduction="none")
            balance.observe(losses, reldrop.occluded)
            losses.mean().backward(); optimizer.step(); optimizer.zero_grad()

    With p below 1 some samples of each batch stay whole, so both losses are available without another forward. After
    every few batches the number moves by at most ``rate``, in proportion to (found - gap) / gap: towards easier
    occlusion if the gap is above its target. It is the same on all processes. This is our idea, not from a paper.

    Args:
        start: the initial number.
        gap: target for the mean loss of occluded samples minus that of whole ones, in the unit of the loss, above 0.
        harder: "lower" if a lower number makes occlusion harder, as for alpha (less chance); "higher" for beta or p.
        rate: the largest single change, in (0, 1].
        every: observations between changes; synchronises with the device once per change.
        low, high: the number stays between them, in [0, 1].

    Attributes:
        found: the gap at the last change, None before.
    """

    def __init__(
        self,
        start: float = 0.5,
        gap: float = 0.3,
        *,
        harder: str = "lower",
        rate: float = 0.05,
        every: int = 20,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        for name, value in (("start", start), ("rate", rate), ("low", low), ("high", high)):
            _check_share(name, value)
        if not low <= start <= high:
            raise ValueError(f"start must lie between low and high, [{low}, {high}], got {start}")
        if rate == 0:
            raise ValueError("rate must be above 0, got 0")
        if not is_number(gap) or not 0 < gap < math.inf:
            raise ValueError(f"gap must be a finite number above 0, got {gap!r}")
        check_choice("harder", harder, ("lower", "higher"), quoted=True)
        check_positive_int("every", every)
        self.value = float(start)
        self.found: float | None = None
        self._gap, self._rate, self._every, self._low, self._high = gap, rate, every, low, high
        self._sign = 1.0 if harder == "lower" else -1.0
        self._observed = 0
        self._sums: Tensor | None = None  # of losses and their number, whole and occluded; on their device

    def __call__(self, step: int) -> float:
        return self.value

    def observe(self, losses: Tensor, occluded: Tensor | None) -> None:
        """Takes a batch's losses (N,), and which samples were occluded, bool (N,); call it on every process.

        If all samples are occluded, call it twice, with the losses with and without occlusion and a mask for each. A
        mask of None, as before the first batch, is ignored.
        """
        if occluded is None:
            return
        losses, occluded = check_tensor("losses", losses), check_tensor("occluded", occluded)
        if losses.dim() != 1:
            raise ValueError(
                f"losses must have shape (N,), one per sample (reduction='none'), got {tuple(losses.shape)}"
            )
        if occluded.dtype != torch.bool or occluded.shape != losses.shape:
            raise ValueError(
                f"occluded must be bool of shape {tuple(losses.shape)}, got {occluded.dtype} of shape "
                f"{tuple(occluded.shape)}"
            )
        losses, occluded = losses.detach().double(), occluded.to(losses.device)
        kinds = torch.stack([~occluded, occluded])
        sums = torch.stack([torch.where(kinds, losses, 0).sum(1), kinds.double().sum(1)])
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums
        self._observed += 1
        if self._observed >= self._every:
            self._move()

    def state_dict(self) -> dict[str, Any]:
        """For resuming: the number, and what was observed since its last change."""
        sums = None if self._sums is None else self._sums.cpu()
        return {"value": self.value, "found": self.found, "observed": self._observed, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.found, self._observed = state["value"], state["found"], state["observed"]
        self._sums = None if state["sums"] is None else state["sums"].clone()

    def _move(self) -> None:
        """As far as both losses were seen and are finite; else the number stays and observation goes on."""
        assert self._sums is not None
        (whole, occluded), (some, others) = summed_over_all(self._sums.cpu()).tolist()
        self._observed = 0
        if not (some and others):
            return
        self._sums = None
        found = occluded / others - whole / some
        if not math.isfinite(found):
            return
        self.found = found
        change = max(-1.0, min((found - self._gap) / self._gap, 1.0))
        self.value = max(self._low, min(self.value + self._sign * self._rate * change, self._high))


def check_schedule(name: str, value: object) -> None:
    """Checks a schedule at once where it is a number.

    Raises:
        TypeError, ValueError: it is neither a number in [0, 1] nor a callable.
    """
    if not callable(value):
        _check_share(name, value)


def scheduled(name: str, value: Schedule, step: int) -> float:
    """The value of a schedule at a step, a number in [0, 1]."""
    return _check_share(name, value(step) if callable(value) else value)


def _check_share(name: str, value: object) -> float:
    if not is_number(value):
        raise TypeError(f"{name} must be a number in [0, 1] or a callable, got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return float(value)
