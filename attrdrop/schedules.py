"""Numbers that change with the training step, for p, q, alpha, beta: callables from the step, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable

from attrdrop._core.checks import check_positive_int, is_number

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
