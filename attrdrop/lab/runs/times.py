"""Times of training steps as reports show them: medians and quartiles over every step, ratios of steps on one batch."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

MOST_SPREAD = 0.5  # between the quartiles of a ratio, as a part of it
UNSTEADY = (
    " Ratios of times whose quartiles are further apart than half their median are shown as -: the machine was busy."
)

Epochs = Iterable[dict[str, Any]]


def step_ms(epochs: Epochs) -> np.ndarray:
    """Milliseconds of every step."""
    return 1e3 * np.concatenate([np.empty(0), *(epoch["step_seconds"] for epoch in epochs)])


def step_ratios(epochs: Epochs, plain: Epochs) -> np.ndarray:
    """The time of every step over that of another run on the same batch."""
    others = {epoch["number"]: epoch["step_seconds"] for epoch in plain}
    found = (np.divide(epoch["step_seconds"], others[epoch["number"]]) for epoch in epochs if epoch["number"] in others)
    return np.concatenate([np.empty(0), *found])


def median(samples: np.ndarray) -> float | None:
    """None if there are no values."""
    return float(np.median(samples)) if len(samples) else None


def quartiles(samples: np.ndarray) -> dict[str, Any]:
    """Median, quartiles and number; None if there are no values."""
    if not len(samples):
        return {"median": None, "quartiles": None, "n": 0}
    low, middle, high = map(float, np.quantile(samples, (0.25, 0.5, 0.75)))
    return {"median": middle, "quartiles": [low, high], "n": len(samples)}


def is_steady(low: float, middle: float, high: float) -> bool:
    """Whether a ratio means something: its quartiles lie within half of its median."""
    return high - low <= MOST_SPREAD * middle


def is_unsteady(measure: dict[str, Any]) -> bool:
    """Whether it is a ratio, by what `quartiles` says of it, that means nothing."""
    return measure["n"] > 0 and not is_steady(measure["quartiles"][0], measure["median"], measure["quartiles"][1])


def time_cell(measure: dict[str, Any], show: Callable[[float], str], mark: str = "") -> str:
    """Median and quartiles for a table, each on a line of its own."""
    if measure["median"] is None:
        return "-"
    middle, low, high = map(show, (measure["median"], *measure["quartiles"]))
    return f"{middle}{mark}" if low == middle == high else f"{middle}{mark}\n{low} to {high}"
