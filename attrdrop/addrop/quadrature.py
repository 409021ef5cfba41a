"""Nodes and weights of the integral of Eq. 3, over the share of the attention that is there, from none to all of it."""

from __future__ import annotations

import math
from typing import NamedTuple

RULES = {"riemann": 20, "gauss": 5}
"""How many nodes each has by default."""


class Node(NamedTuple):
    """The integrand at a share in (0, 1] counts by a weight, over the sum of all weights."""

    share: float
    weight: float


def nodes(rule: str, count: int) -> list[Node]:
    """Those of a rule: k / m as Eq. 3 has it, or Gauss and Legendre's, exact for polynomials of degree 2 m - 1."""
    if rule == "riemann":
        return [Node(k / count, 1.0) for k in range(1, count + 1)]
    return [_gauss(k, count) for k in reversed(range(count))]


def _gauss(k: int, count: int) -> Node:
    """The k-th largest zero x of the Legendre polynomial P of that degree, by Newton's method; it weighs
    2 / ((1 - x²) P'(x)²)."""
    x = math.cos(math.pi * (k + 0.75) / (count + 0.5))
    for _ in range(6):  # two or three do
        before, value = 1.0, x
        for degree in range(2, count + 1):
            before, value = value, ((2 * degree - 1) * x * value - (degree - 1) * before) / degree
        slope = count * (before - x * value) / (1 - x * x)
        x -= value / slope
    return Node((x + 1) / 2, 2 / ((1 - x * x) * slope * slope))
