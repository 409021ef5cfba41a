"""Nodes and weights of the integral of Eq. 3, over the share of the attention that is there, from none to all of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
    places, weights = np.polynomial.legendre.leggauss(count)
    return [Node(float(x + 1) / 2, float(w)) for x, w in zip(places, weights, strict=True)]
