"""Rows to rank, and the oracle of what a row's candidates are."""

import hashlib
import math

import numpy as np
import torch
from hypothesis import strategies as st

from attrdrop import keep_mask


def oracle_row(row: list[float], p: float, low: bool) -> list[bool]:
    """Candidates of one row of valid values, by Python's own sort. NaN ranks last."""
    n = len(row)
    share = np.float32(p if low else 1.0 - p)
    rank = int(np.float32(n) * share)
    ordered = sorted(v for v in row if not math.isnan(v)) + [math.nan] * sum(map(math.isnan, row))
    if low:
        if rank == 0 or rank >= n:
            return [rank >= n] * n
        return [not value >= ordered[rank] for value in row]
    if rank >= n:
        return [False] * n
    return [not value < ordered[rank] for value in row]


def as_problem(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x, y whose product is exactly the given rows: one query of value 1, head dimension 1."""
    return torch.ones(rows.shape[0], 1, 1, 1), rows.view(rows.shape[0], 1, -1, 1)


SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3e38, -3e38, 0.5, 0.50000006]


values = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.integers(-3, 3).map(float))


def small_problem(heads=4, kv_heads=2, n_q=40, n_k=63, d=5, dtype=torch.float32):
    """Small integers make every product exact, so bits must agree whatever the order of the sums."""
    x = torch.randint(-3, 4, (2, heads, n_q, d)).to(dtype)
    return x, torch.randint(-3, 4, (2, kv_heads, n_k, d)).to(dtype)


def digest() -> str:
    """Bits of a fixed problem on non-integer inputs, which rounding would change."""
    torch.manual_seed(5)
    x, y, q, k = (torch.randn(2, 3, 77, 24) for _ in range(4))
    lse = torch.logsumexp(q @ k.transpose(-1, -2), -1)
    hasher = hashlib.sha256()
    for options in ({}, {"keys": "bf16"}, {"region": "low", "is_causal": True}, {"weight": (q, k, lse, 1.0)}):
        keep = keep_mask(x, y, p=0.37, q=0.41, seed=77, backend="cpp", **options)
        hasher.update(keep.rows.numpy().tobytes() + keep.cols.numpy().tobytes() + keep.counts.numpy().tobytes())
    return hasher.hexdigest()
