"""The random words of the randomness contract (docs/determinism.md) in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Philox4x32-10 of uint32 counters under an int64 seed.

    Both halves of a 64-bit product take one instruction; tl.philox takes two.
    """
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        b_product_0, b_product_1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1 = (b_product_1 >> 32).to(tl.uint32) ^ c1 ^ k0, b_product_1.to(tl.uint32)
        c2, c3 = (b_product_0 >> 32).to(tl.uint32) ^ c3 ^ k1, b_product_0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


def drop_threshold(rate: float) -> int:
    """A position is dropped where its 16-bit number lies below this."""
    return int(rate * 65536.0 + 0.5)


@triton.jit
def bernoulli_words(seed, word, row, head, sample, threshold):
    """32 draws for each place; a set bit has probability threshold / 65536. Places broadcast against each other.

    The 16 words of 4 Philox calls are the bit planes, least significant first, of one 16-bit number per column, which
    is compared with the threshold.
    """
    b_less = tl.zeros_like(word + row)
    c1, c2, c3 = row.to(tl.uint32), head.to(tl.uint32), sample.to(tl.uint32)
    for call in tl.static_range(4):
        b_planes = philox(seed, (4 * word + call).to(tl.uint32), c1, c2, c3)
        for i in tl.static_range(4):
            b_plane = b_planes[i].to(tl.int32, bitcast=True)
            b_bit = -((threshold >> (4 * call + i)) & 1)  # all ones where the threshold has that bit
            b_less = (~b_plane & b_bit) | (b_less & ~(b_plane ^ b_bit))
    return tl.where(threshold > 65535, -1, b_less)
