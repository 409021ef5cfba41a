"""What AD-DROP attributes: the scalar F of a model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.capture import is_capturing

TARGETS = ("pseudo", "gold")
IGNORED = -100  # the label of positions that no loss reads
Target = str | Callable[[Any, Mapping[str, Any]], Tensor]


def attribution_target(
    outputs: Any,
    batch: Mapping[str, Any],
    target: Target,
    model: nn.Module,
    predicted: Tensor | None = None,
    repeats: int = 1,
) -> Tensor:
    """The scalar F whose gradient ranks the attention positions (Eq. 4 and the paper's Appendix A).

    predicted: the pseudo labels, int64 of the shape of the logits but for the classes; default, those of the outputs.
    repeats: how many copies of a batch the outputs are of; F is then the sum over the copies, also where it is a mean.
    """
    if callable(target):
        return _checked(target(outputs, batch))
    given, outputs = outputs, _by_name(outputs)
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        names = ", ".join(given.keys()) if hasattr(given, "keys") else type(given).__name__
        raise ValueError(
            f"target {target!r} needs a model whose output has logits, {type(model).__name__} gives {names}; give a "
            "callable"
        )
    config = getattr(model, "config", None)
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise ValueError("multi-label models have no single predicted class; pass a callable as target")
    if is_regression(logits, model):
        if getattr(outputs, "loss", None) is None:
            raise ValueError("a regression model is attributed through its loss: the batch needs labels")
        return -outputs.loss.float() * repeats
    if predicted is None:
        predicted = logits.argmax(-1)
    if logits.dim() == 2:
        chosen = predicted if target == "pseudo" else _gold_classes(batch.get("labels"), logits)
        found = logits.gather(-1, chosen.clamp(min=0).unsqueeze(-1)).squeeze(-1).float()
        return found.masked_fill(chosen.eq(IGNORED), 0).sum()
    return -_token_loss(outputs, batch, target, predicted, repeats)


def _gold_classes(labels: Any, logits: Tensor) -> Tensor:
    """The labels (B,) of logits (B, C), -100 where the loss reads none."""
    if labels is None:
        raise ValueError("target 'gold' needs labels in the batch")
    count, classes = logits.shape
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.numel() != count:
        raise ValueError(f"target 'gold' needs labels as an int64 tensor of shape ({count},), got {_described(labels)}")
    if labels.device.type == "cpu" and count:
        low, high = map(int, labels.masked_fill(labels.eq(IGNORED), 0).aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"target 'gold' needs labels in [0, {classes}), or {IGNORED} for a sample to be ignored, "
                f"got {low if low < 0 else high}"
            )
    return labels.flatten().long()


def _described(labels: Any) -> str:
    if isinstance(labels, Tensor):
        return f"{labels.dtype} of shape {tuple(labels.shape)}"
    return "none" if labels is None else type(labels).__name__


def _by_name(outputs: Any) -> Any:
    """A model of the user's own may return a plain dict."""
    return SimpleNamespace(**outputs) if type(outputs) is dict else outputs


def _checked(value: Any) -> Tensor:
    """What a callable gave, where it can be attributed."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"target must give one number as a tensor, such as out.logits.sum(), got {found}")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(
            "target must give a tensor that depends on the model's outputs by gradients, got one without a graph; "
            "leave out detach, item and torch.no_grad"
        )
    return value


def is_regression(logits: Tensor, model: nn.Module) -> bool:
    """Whether logits (..., C) are numbers to be met instead of scores of classes."""
    problem_type = getattr(getattr(model, "config", None), "problem_type", None)
    return problem_type == "regression" or logits.shape[-1] == 1


def predictions(outputs: Any) -> Tensor | None:
    """The predicted classes, where the outputs have logits."""
    logits = getattr(_by_name(outputs), "logits", None)
    return logits.argmax(-1) if isinstance(logits, Tensor) else None


def _token_loss(outputs: Any, batch: Mapping[str, Any], target: str, predicted: Tensor, repeats: int) -> Tensor:
    """Cross-entropy of (B, n, C) logits over the tokens that the model's loss reads, to the labels or to the predicted
    classes; a mean, or a sum over num_items_in_batch where the model's loss is."""
    logits = outputs.logits
    shape = logits.shape[:-1]
    log_p = logits.flatten(0, -2).float().log_softmax(-1)
    attention_mask = batch.get("attention_mask")
    read, count = _labels_read(outputs, log_p.detach(), batch)
    if read is not None:
        chosen = read if target == "gold" else predicted.masked_fill(read.eq(IGNORED), IGNORED)
    elif target == "gold":
        found = _described(batch.get("labels"))
        raise ValueError(f"target 'gold' needs labels of shape {tuple(shape)} for these logits, got {found}")
    elif attention_mask is not None and attention_mask.shape == shape:
        chosen = predicted.masked_fill(attention_mask == 0, IGNORED)
    else:
        chosen = predicted
    if count is None:
        return nn.functional.nll_loss(log_p, chosen.flatten(), ignore_index=IGNORED) * repeats
    return _summed(log_p, chosen) / count


def _labels_read(outputs: Any, log_p: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor | None, Any]:
    """For each position the label that the model's loss compares it with, and what it divides by if not their number.

    log_p: (tokens, C). The loss of a causal model compares position i with label i + 1, that of others with label i,
    and some ignore num_items_in_batch. Neither name nor configuration of a model says which: its loss does, and where
    further terms hide that, the positions whose logits it depends on.
    """
    shape, loss, count = outputs.logits.shape[:-1], getattr(outputs, "loss", None), batch.get("num_items_in_batch")
    given, labels = batch.get("shift_labels"), batch.get("labels")
    if isinstance(given, Tensor) and given.shape == shape:
        return given, count
    if not isinstance(labels, Tensor) or labels.shape != shape:
        return None, None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return labels, count
    if is_capturing():
        raise ValueError(
            "target must be a callable where a CUDA graph of a model with one label per token is captured: to find out "
            "which labels the model's loss reads waits for the device"
        )
    shifted = nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORED)
    is_read = [labels.ne(IGNORED), shifted.ne(IGNORED)]
    totals = [(_summed(log_p, x), mask.sum()) for x, mask in zip((labels, shifted), is_read, strict=True)]
    values = torch.stack([total / (number if n is None else n) for total, number in totals for n in (count, None)])
    found = loss.detach().float()
    *errors, size = torch.cat([values - found, found.view(1)]).abs().tolist()  # waits for the device once
    choices = [(x, n) for x in (labels, shifted) for n in (count, None)]
    error, (read, divisor) = min(zip(errors, choices, strict=True), key=lambda entry: entry[0])
    if error <= 1e-4 * size or not (loss.requires_grad and outputs.logits.requires_grad):
        return read, divisor
    (gradient,) = torch.autograd.grad(loss, outputs.logits, retain_graph=True, allow_unused=True)
    if gradient is None:
        return read, divisor
    wrong = [int((gradient.ne(0).any(-1) != mask).sum()) for mask in is_read]
    return (shifted if wrong[1] < wrong[0] else labels), count


def _summed(log_p: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.nll_loss(log_p, labels.flatten(), ignore_index=IGNORED, reduction="sum")
