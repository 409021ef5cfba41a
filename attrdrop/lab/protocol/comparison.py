"""Comparison of two arms by paired runs: intervals, a permutation test, and the detectable difference."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from attrdrop.lab.runs.results import paired

LEVEL, POWER = 0.05, 0.8
RESAMPLES = 2**16  # of the permutation test, which is exact up to 16 pairs
BOOTSTRAPS = 9999


def compare(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Of two arms at the same seeds, the first minus the second.

    Returns:
        difference, std and n; student and bootstrap (BCa), the 95 % intervals of the mean; p of the two-sided
        permutation test, which flips the signs of differences; detectable, the difference that so many pairs show with
        a probability of 80 % at a level of 5 %. None where there are too few pairs.
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    found = paired(differences)
    result = {"difference": found["mean"], "std": found["std"], "n": found["n"], "student": found["interval_95"]}
    if found["interval_95"] is None:
        return result | dict.fromkeys(("bootstrap", "p", "detectable"))
    return result | {
        "bootstrap": _bootstrap(differences),
        "p": _permuted(tuple(differences)),
        "detectable": detectable(found["std"], found["n"]),
    }


def detectable(deviation: float, pairs: int) -> float:
    """The mean difference that a t-test of so many pairs finds with POWER, by the usual sum of two quantiles."""
    quantiles = stats.t.ppf(1 - LEVEL / 2, pairs - 1) + stats.t.ppf(POWER, pairs - 1)
    return float(quantiles * deviation / pairs**0.5)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple comparisons by Holm's step-down rule."""
    p = np.asarray(values, dtype=float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]).clip(max=1)
    return corrected.tolist()


def _bootstrap(differences: np.ndarray) -> list[float]:
    if np.ptp(differences) == 0:  # every resample is the same
        return [float(differences[0])] * 2
    interval = stats.bootstrap((differences,), np.mean, n_resamples=BOOTSTRAPS, rng=0).confidence_interval
    return [float(interval.low), float(interval.high)]


@cache  # seconds each, and a report is written anew after every arm
def _permuted(differences: tuple[float, ...]) -> float:
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True, batch=4096, rng=0
    )
    return float(test.pvalue)
