"""What AD-DROP attributes: the scalar F of a model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

TARGETS = ("pseudo", "gold")
Target = str | Callable[[Any, Mapping[str, Any]], Tensor]


def attribution_target(
    outputs: Any, batch: Mapping[str, Any], target: Target, model: nn.Module, predicted: Tensor | None = None
) -> Tensor:
    """The scalar F whose gradient ranks the attention positions (Eq. 4 and the paper's Appendix A).

    predicted: the pseudo labels, int64 of the shape of the logits but for the classes; default, those of the outputs.
    """
    if callable(target):
        return target(outputs, batch)
    logits = getattr(outputs, "logits", None)
    labels: Any = batch.get("labels")
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"target {target!r} needs a model whose output has logits, {type(model).__name__} gives "
            f"{', '.join(outputs.keys()) if hasattr(outputs, 'keys') else type(outputs).__name__}; give a callable"
        )
    config = getattr(model, "config", None)
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise ValueError("multi-label models have no single predicted class; give target as a callable")
    if is_regression(logits, model):
        if getattr(outputs, "loss", None) is None:
            raise ValueError("a regression model is attributed through its loss: the batch needs labels")
        return -outputs.loss.float()
    if predicted is None:
        predicted = logits.argmax(-1)
    if logits.dim() == 2:
        if target == "gold" and labels is None:
            raise ValueError("target 'gold' needs labels in the batch")
        chosen = predicted if target == "pseudo" else labels.view(-1)
        return logits.gather(-1, chosen.unsqueeze(-1)).float().sum()
    return -_token_loss(logits, batch, labels, target, predicted)


def is_regression(logits: Tensor, model: nn.Module) -> bool:
    """Whether logits (..., C) are numbers to be met instead of scores of classes."""
    problem_type = getattr(getattr(model, "config", None), "problem_type", None)
    return problem_type == "regression" or logits.shape[-1] == 1


def is_mean(outputs: Any, target: Target, model: nn.Module) -> bool:
    """Whether F is a mean over the batch, as a loss is, and no sum over it."""
    return not callable(target) and (is_regression(outputs.logits, model) or outputs.logits.dim() > 2)


def predictions(outputs: Any) -> Tensor | None:
    """The predicted classes, where the outputs have logits."""
    logits = getattr(outputs, "logits", None)
    return logits.argmax(-1) if isinstance(logits, Tensor) else None


def _token_loss(
    logits: Tensor, batch: Mapping[str, Any], labels: Tensor | None, target: str, predicted: Tensor
) -> Tensor:
    """Cross-entropy of (B, n, C) logits over the active tokens, to the labels or to the predicted classes."""
    shape = logits.shape[:-1]
    attention_mask = batch.get("attention_mask")
    chosen = predicted
    if labels is not None and labels.shape == shape:
        chosen = labels if target == "gold" else chosen.masked_fill(labels.eq(-100), -100)
    elif target == "gold":
        found = None if labels is None else tuple(labels.shape)
        raise ValueError(f"target 'gold' needs labels of shape {tuple(shape)} for these logits, got {found}")
    elif attention_mask is not None and attention_mask.shape == shape:
        chosen = chosen.masked_fill(attention_mask == 0, -100)
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), chosen.flatten(), ignore_index=-100)
