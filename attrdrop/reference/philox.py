"""Philox4x32-10 (Salmon et al., 2011) and the Bernoulli words of the randomness contract, in plain integer tensors."""

from __future__ import annotations

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85


def _multiply_wide(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b; b in 16-bit halves, so that no product leaves int64."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (high & MASK32) + (low >> 16)
    return (high >> 32 << 16) + (middle >> 16), ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32_10(seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words for each counter; int64 tensors that hold unsigned 32-bit values, broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK32, seed >> 32 & MASK32
    for _ in range(10):
        high0, low0 = _multiply_wide(M0, c0)
        high1, low1 = _multiply_wide(M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + W0) & MASK32, (k1 + W1) & MASK32
    return c0, c1, c2, c3


def draw_words(seed: int, purpose: int, sample_ids: Tensor, call: Tensor) -> tuple[Tensor, ...]:
    """Four words for each call and sample, int64, broadcast together; ``purpose`` is counter 1."""
    zero = torch.zeros_like(call)
    return philox4x32_10(seed, (call, zero + purpose, zero, sample_ids & MASK32))


def uniform(word: Tensor) -> Tensor:
    """A number in [0, 1) from a word."""
    return word.double() * 2.0**-32


def below(word: Tensor, n: int | Tensor) -> Tensor:
    """A number below n from a word."""
    return word * n >> 32


def drop_threshold(rate: float) -> int:
    """A column is dropped where its 16-bit number lies below this."""
    return int(rate * 65536.0 + 0.5)


def bernoulli(
    seed: int, layer: int, sample_ids: Tensor, heads: int, n_q: int, n_k: int, rate: float, first_head: int = 0
) -> Tensor:
    """Bool (B, heads, n_q, n_k): True where a column is dropped, each with probability ``rate`` to 1/65536.

    Heads are numbered from ``first_head`` on.
    The 16 words of a 32-column block are the bit planes of one 16-bit number per column, least significant first.
    """
    device = sample_ids.device
    words = (n_k + 31) // 32
    word = torch.arange(words, device=device).view(1, 1, 1, -1)
    row = torch.arange(n_q, device=device).view(1, 1, -1, 1)
    head = (torch.arange(heads, device=device) + first_head + 65536 * layer).view(1, -1, 1, 1)
    sample = (sample_ids & MASK32).view(-1, 1, 1, 1)
    shape = (sample_ids.numel(), heads, n_q, words)
    column = torch.arange(32, device=device)
    number = torch.zeros(*shape, 32, dtype=torch.int64, device=device)
    for call in range(4):
        outputs = philox4x32_10(seed, (4 * word + call, row, head, sample))
        for i, plane in enumerate(outputs):
            bit = plane.expand(shape).unsqueeze(-1) >> column & 1
            number |= bit << (4 * call + i)
    return (number < drop_threshold(rate)).flatten(-2)[..., :n_k]
