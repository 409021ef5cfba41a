"""How much two predictions of a batch differ, which R-Drop and HiddenCut have in their loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attrdrop.addrop.targets import is_regression
from attrdrop.lab.text.methods.rivals import check_number

Divergence = Callable[[Tensor, Tensor], Tensor]


def symmetric_divergence(a: Tensor, b: Tensor) -> Tensor:
    """(KL(a || b) + KL(b || a)) / 2 of log-probabilities (N, C), the mean over N."""
    return (_kl(a, b) + _kl(b, a)) / 2


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """(KL(a || m) + KL(b || m)) / 2 of log-probabilities (N, C), the mean over N; m is the mean of both."""
    middle = torch.logaddexp(a, b) - math.log(2)
    return (_kl(a, middle) + _kl(b, middle)) / 2


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return functional.kl_div(b, a, reduction="batchmean", log_target=True)


def difference(model: Any, first: Tensor, second: Tensor, labels: Tensor, divergence: Divergence) -> Tensor:
    """How much two predictions of a batch differ; logits (B, C) or (B, n, C), in float32 at least."""
    a, b = (_active(model, logits, labels) for logits in (first, second))
    a, b = (logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (a, b))
    if is_regression(a, model):
        return functional.mse_loss(a, b)
    if model.config.problem_type == "multi_label_classification":
        raise ValueError("multi-label models have no single distribution over classes to keep consistent")
    return divergence(a.log_softmax(-1), b.log_softmax(-1))


def _active(model: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """(N, C): the logits that the loss looks at, of every sample or of every token with a label."""
    if logits.dim() == 2:
        return logits
    if model.can_generate() and not model.config.is_encoder_decoder:  # a language model predicts the next token
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != -100]


def check_consistency(value: float) -> float:
    value = check_number("consistency", value, "from 0 on")
    if not 0 <= value < math.inf:
        raise ValueError(f"consistency must be a finite number of at least 0, got {value}")
    return value
