"""The masks of rows of given scores, by keep_mask's rule and draws."""

from __future__ import annotations

from torch import Tensor

from attrdrop.reference.keep_mask import candidates, drop, valid_columns
from attrdrop.reference.pack_mask import pack_mask

SCORES_HEAD = 65535
"""The number of their head, which no model's attention has: it tells their draws from those of attention."""


def keep_scores(
    scores: Tensor, p: float, q: float, seed: int, layer: int, valid: Tensor | None, low: bool,
    sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(rows, counts) as :func:`attrdrop.keep_scores` documents them."""
    batch, n, m = scores.shape
    columns = valid_columns(None if valid is None else valid.unsqueeze(1), False, (batch, 1, n, m), scores.device)
    ranked = scores.unsqueeze(1) if scores.dtype.itemsize > 2 else scores.unsqueeze(1).float()
    region = candidates(ranked, columns, p, low) if m > 0 else columns
    keep, counts = drop(region, columns, q, seed, layer, sample_ids, SCORES_HEAD)
    return pack_mask(keep.squeeze(1)), counts
