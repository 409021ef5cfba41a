"""Seeds of draws, derived from one seed of the user."""


def derive_seed(*parts: int) -> int:
    """Mixes integers into a 63-bit seed (SplitMix64's finaliser over each)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ state >> 27) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state >> 1
