"""keep_scores: which units of each row of given scores survive a step of AD-DROP, as packed bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.library import operators, register_fake
from attrdrop.ops.keep_mask import REGIONS
from attrdrop.reference import keep_scores as reference


class KeptScores(NamedTuple):
    """Packed units to keep.

    Attributes:
        rows: int32 (B, n, ceil(m / 32)); bit j % 32 of word j // 32 is column j, set = keep.
        counts: int64 (4,): valid columns, candidates (Eq. 6), dropped ones (Eq. 7), rescued rows.
    """

    rows: Tensor
    counts: Tensor


def keep_scores(
    scores: Tensor,
    *,
    p: float,
    q: float,
    seed: int,
    layer: int = 0,
    sample_ids: Tensor | None = None,
    region: str = "high",
    valid: Tensor | None = None,
    backend: str | None = None,
) -> KeptScores:
    """Keeps the columns of each row below its threshold, and those of the others that a random draw spares.

    This is the rule of :func:`attrdrop.keep_mask` (Eq. 6 and 7) for given rows of scores, such as the units of a
    feed-forward layer by token, or the heads of a layer by sample. With n valid columns the threshold is the score at
    0-based rank int(n (1 - p)), the product taken in float32; columns strictly below it are kept, every other valid one
    is dropped with probability q. A row that would lose all its valid columns keeps them all. Ties are candidates, -0
    equals +0, NaN ranks last. Scores are ranked as they are, without rounding. Draws depend only on (seed, layer,
    sample id, row, column), and differ from those of keep_mask with the same numbers: see docs/determinism.md.

    Args:
        scores: (B, n, m), float32, bfloat16, float16 (float64: reference only), any strides.
        p: share of a row's valid columns in the candidate region, in [0, 1].
        q: probability that a candidate is dropped, in [0, 1], with a resolution of 1/65536.
        seed: 64-bit seed of the step.
        layer: index of the layer in [0, 65536), part of the random position.
        sample_ids: int64 (B,), the samples' global indices in the step; default 0 to B - 1.
        region: "high", or "low" to mirror the ranking (threshold at rank int(n p), columns at or above it kept).
        valid: packed bits (B|1, n|1, ceil(m / 32)) of the valid columns; None: all. The bits of invalid columns are
            cleared.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Raises:
        TypeError, ValueError: an argument is not as said above; the message names it.
        RuntimeError: the backend asked for cannot serve the call.
    """
    scores = checks.check_floats("scores", scores).detach()
    if scores.dim() != 3:
        raise ValueError(f"scores must have shape (batch, rows, columns), got {tuple(scores.shape)}")
    batch, n, m = scores.shape
    checks.check_choice("region", region, REGIONS)
    arguments = (
        scores,
        checks.check_probability("p", p),
        checks.check_probability("q", q),
        checks.check_seed(seed),
        checks.check_layer(layer),
        _check_valid(valid, (batch, n, checks.word_count(m)), scores.device),
        region == "low",
        checks.check_sample_ids(sample_ids, batch, scores.device),
    )
    chosen = _resolve(scores, backend)
    if chosen == "reference":
        return KeptScores(*reference.keep_scores(*arguments))
    return KeptScores(*operators(chosen).keep_scores(*arguments))


def _check_valid(valid: object, shape: tuple[int, int, int], device: torch.device) -> Tensor | None:
    if valid is None:
        return None
    valid = checks.check_tensor("valid", valid)
    if valid.dim() != 3:
        raise ValueError(f"valid must broadcast to (B, n, words) = {shape}, got {tuple(valid.shape)}")
    batch, n, words = shape
    return checks.check_rows("valid", valid.unsqueeze(1), (batch, 1, n, words), device).squeeze(1)


def _resolve(scores: Tensor, backend: str | None) -> str:
    double = "float64 scores are ranked by the reference only" if scores.dtype == torch.float64 else None
    longest, m = 65535 if scores.dtype == torch.bfloat16 else 32768, scores.shape[2]
    cuda, triton = double or backends.CUDA_MISSING, double or backends.TRITON_MISSING
    if cuda is None and m > longest:  # see csrc/cuda/keep_mask_launch.cuh
        cuda = f"it ranks rows of up to {longest} columns, got {m}"
    if triton is None and m > 32768:  # see triton_kernels/keep_mask.py
        triton = f"it ranks rows of up to 32768 columns, got {m}"
    missing = {"cuda": cuda, "triton": triton, "cpp": double or backends.COMPILED_MISSING}
    return backends.resolve("keep_scores", scores, backend, missing)


@register_fake("keep_scores")
def _(scores, *_rule):
    batch, n, m = scores.shape
    rows = scores.new_empty((batch, n, checks.word_count(m)), dtype=torch.int32)
    return rows, scores.new_empty(4, dtype=torch.int64)
