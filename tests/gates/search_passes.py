"""How many passes over a row find_cut (csrc/cuda/keep_mask_select.cuh) and guessed_thresholds (triton_kernels/
keep_mask_select.py) need: the same steps in NumPy, bfloat16 keys.

python tests/gates/search_passes.py
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

GUESSES = 10  # of the kernels
BOTTOM, TOP = -0x7F81, 0x7F80  # the infinities as ordered keys


def ordered(values: np.ndarray) -> np.ndarray:
    """Keys cut to bfloat16, as integers in their order."""
    upper = values.astype(np.float32).view(np.int32) >> 16
    return upper ^ (upper >> 31 & 0x7FFF)


def value(keys: np.ndarray) -> np.ndarray:
    bits = (keys ^ (keys >> 31 & 0x7FFF)) & 0xFFFF
    return (bits.astype(np.uint32) << 16).view(np.float32)


def passes(rows: np.ndarray, share_below: float, sampled: int) -> np.ndarray:
    """For each row (n columns, numbers), from a sample of so many numbers."""
    keys = ordered(rows)
    n = keys.shape[1]
    rank = int(np.float32(n) * np.float32(share_below))
    sample = value(keys[:, :: n // sampled])
    sorted_keys = np.sort(keys, axis=1)
    guess = sample.mean(1) + norm.ppf(share_below) * sample.std(1)
    per_rank = sample.std(1) / norm.pdf(norm.ppf(share_below)) / n
    low, high = np.full(len(keys), BOTTOM), np.full(len(keys), TOP + 1)
    count_low, count_high = np.zeros(len(keys)), np.zeros(len(keys))
    used = np.zeros(len(keys), int)
    for step in range(GUESSES + 17):
        used += high - low != 1
        middle = np.clip(ordered(guess), low + 1, high - 1) if step < GUESSES else low + (high - low) // 2
        count = np.array([np.searchsorted(row, at, "left") for row, at in zip(sorted_keys, middle, strict=True)])
        is_low = count <= rank
        high = np.where(~is_low, middle, np.where(count == rank, middle + 1, high))
        low, count_low, count_high = (
            np.where(is_low, middle, low),
            np.where(is_low, count, count_low),
            np.where(is_low, count_high, count),
        )
        left, right = value(low), value(high)
        with np.errstate(all="ignore"):
            between = left + (right - left) * (rank + 0.5 - count_low) / (count_high - count_low)
        guess = np.where((low > BOTTOM) & (high <= TOP), between, value(middle) + (rank + 0.5 - count) * per_rank)
    assert (high - low == 1).all()
    return used


def main() -> None:
    generator = np.random.default_rng(0)
    # Rows whose passes are the same number: those of a warp in CUDA, those of a block of 8 warps in Triton.
    for name, rows, n, sampled, together in (
        ("CUDA, S1", 4096, 512, 64, 8),
        ("CUDA, S2", 1024, 4096, 512, 1),
        ("Triton, S2", 1024, 4096, 256, 8),
        ("Triton, n 1024", 4096, 1024, 128, 16),
        ("Triton, n 512 in registers", 4096, 512, 64, 64),
    ):
        grad = generator.normal(size=(rows // 64, 64, 64)) * np.exp(generator.normal(size=(rows // 64, 64, 1)))
        value_rows = generator.normal(size=(rows // 64, n, 64))
        used = passes((grad @ value_rows.transpose(0, 2, 1)).reshape(rows, n), 0.7, sampled)
        slowest = used.reshape(-1, together).max(1)
        print(f"{name}: {used.mean():.1f} passes for a row, {slowest.mean():.1f} for the slowest of {together}")


if __name__ == "__main__":
    main()
