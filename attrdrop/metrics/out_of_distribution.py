"""Accuracy, calibration and anomaly detection on shifted data, such as ImageNet-R, -A and -O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attrdrop._core.checks import check_choice, check_positive_int, check_tensor


def class_subset(logits: Tensor, classes: Sequence[int] | Tensor) -> Tensor:
    """The logits of some classes, for test sets that contain only these.

    Args:
        logits: floating point (N, K). classes: k distinct class indices in [0, K); their order is that of the columns
            returned, so labels of the subset are positions in ``classes``.

    Returns:
        (N, k), dtype and device of the logits.

    Raises:
        TypeError: logits is not a floating-point tensor, or classes does not hold integers. ValueError: logits has
            another shape or NaN, or classes is empty, repeats an index or has one out of range.
    """
    logits = _check_logits("logits", logits)
    indices = np.asarray(classes.cpu() if isinstance(classes, Tensor) else classes)
    if indices.ndim != 1 or len(indices) == 0:
        raise ValueError(f"classes must be a non-empty list or 1-D tensor of class indices, got {classes!r}")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"classes must hold integers, got {indices.dtype}")
    if indices.min() < 0 or indices.max() >= logits.shape[1]:
        raise ValueError(f"classes must lie in [0, {logits.shape[1]}), got {indices.min()} to {indices.max()}")
    if len(np.unique(indices)) < len(indices):
        raise ValueError(f"classes must be distinct, got {len(indices)} with {len(np.unique(indices))} distinct ones")
    return logits[:, torch.from_numpy(indices.astype(np.int64)).to(logits.device)]


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is that of the label.

    Args:
        logits: floating point (N, K), N > 0. labels: int64 (N,), in [0, K).

    Raises:
        TypeError: logits is not a floating-point tensor or labels not a tensor. ValueError: a shape does not fit,
        logits hold NaN or labels are out of range.
    """
    return float(_correct(_check_logits("logits", logits), labels).mean())


def calibration_error(
    logits: Tensor,
    labels: Tensor,
    bins: int = 15,
    norm: Literal["l1", "l2"] = "l1",
    *,
    probabilities: bool = False,
) -> float:
    """Gap between confidence (largest probability) and accuracy over bins of equal width, weighted by sample counts.

    Guo et al. (2017), "On calibration of modern neural networks". Bin b of B holds confidences in ((b - 1) / B, b / B].

    Args:
        logits: floating point (N, K), N > 0. labels: int64 (N,), in [0, K). bins: their number.
        norm: "l1", the expected calibration error, or "l2", the root mean square.
        probabilities: ``logits`` contains probabilities instead.

    Raises:
        As :func:`top1`. ValueError also: bins is not positive, norm is unknown, or logits should contain probabilities
            but do not.
    """
    check_positive_int("bins", bins)
    check_choice("norm", norm, ("l1", "l2"))
    logits = _check_logits("logits", logits)
    confidence = _largest(_check_probabilities(logits)) if probabilities else _confidence(logits)
    correct = _correct(logits, labels)
    index = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    gaps = np.bincount(index, correct - confidence, bins) / len(correct)  # weight times gap of each bin
    if norm == "l1":
        return float(np.abs(gaps).sum())
    weights = np.bincount(index, minlength=bins) / len(correct)
    return float(np.sqrt((gaps[weights > 0] ** 2 / weights[weights > 0]).sum()))


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean over samples of the squared distance between probabilities and the label's one-hot vector: from 0 to 2.

    Brier (1950), "Verification of forecasts expressed in terms of probability".

    Args:
        logits: floating point (N, K), N > 0. labels: int64 (N,), in [0, K).

    Raises:
        As :func:`top1`.
    """
    logits = _check_logits("logits", logits)
    _correct(logits, labels)  # checks them
    p = torch.softmax(logits, 1, dtype=torch.float64)
    of_label = p.gather(1, labels.to(p.device)[:, None])
    return float((p.square().sum(1, keepdim=True) - 2 * of_label + 1).mean())


def aurra(logits: Tensor, labels: Tensor) -> float:
    """Area under the curve of accuracy over response rate, where the model answers its most confident samples first.

    Hendrycks et al. (2021), "Natural adversarial examples". Samples of equal confidence share their mean accuracy, so
    the order of the samples has no influence.

    Args:
        logits: floating point (N, K), N > 0. labels: int64 (N,), in [0, K).

    Raises:
        As :func:`top1`.
    """
    logits = _check_logits("logits", logits)
    _, group, sizes = np.unique(-_confidence(logits), return_inverse=True, return_counts=True)
    rate = np.bincount(group, _correct(logits, labels)) / sizes
    answered = np.repeat(rate, sizes)  # most confident first
    return float((answered.cumsum() / np.arange(1, len(answered) + 1)).mean())


def anomaly_score(logits: Tensor) -> Tensor:
    """Minus the largest softmax probability: float64 (N,) from floating-point logits (N, K).

    Hendrycks and Gimpel (2017), "A baseline for detecting misclassified and out-of-distribution examples".

    Raises:
        TypeError: logits is not a floating-point tensor. ValueError: it has another shape or holds NaN.
    """
    return torch.from_numpy(-_confidence(_check_logits("logits", logits)))


def aupr(in_scores: Tensor, out_scores: Tensor) -> float:
    """Average precision of finding out-of-distribution samples, the positive class. Needs scikit-learn.

    Args:
        in_scores: floating point; anomaly scores (N,) of in-distribution data, higher for anomalies, or logits (N, K),
            whose :func:`anomaly_score` is taken. out_scores: the same for out-of-distribution data, (M,) or (M, K).

    Raises:
        ImportError: scikit-learn is not installed. TypeError: a score is not a floating-point tensor. ValueError: it
        has another shape, no sample, or NaN.
    """
    return _detection("average_precision_score", in_scores, out_scores)


def auroc(in_scores: Tensor, out_scores: Tensor) -> float:
    """Area under the ROC curve of finding out-of-distribution samples; arguments and errors as :func:`aupr`."""
    return _detection("roc_auc_score", in_scores, out_scores)


def evaluate(
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    out_logits: Tensor | None = None,
) -> dict[str, float]:
    """All of the above at once.

    Args:
        logits: floating point (N, K), N > 0. labels: int64 (N,), in [0, K), or positions in ``classes``.
        classes: class indices in the test set; both logits are reduced to these (:func:`class_subset`).
        out_logits: floating point (M, K), the logits of out-of-distribution data.

    Returns:
        top1, calibration_error, rms_calibration_error and aurra; with out_logits also auroc and aupr.

    Raises:
        As the functions above.
    """
    if classes is not None:
        logits = class_subset(logits, classes)
        out_logits = None if out_logits is None else class_subset(out_logits, classes)
    values = {
        "top1": top1(logits, labels),
        "calibration_error": calibration_error(logits, labels),
        "rms_calibration_error": calibration_error(logits, labels, norm="l2"),
        "aurra": aurra(logits, labels),
    }
    if out_logits is not None:
        in_scores, out_scores = anomaly_score(logits), anomaly_score(out_logits)
        values |= {"auroc": auroc(in_scores, out_scores), "aupr": aupr(in_scores, out_scores)}
    return values


def _detection(metric: str, in_scores: Tensor, out_scores: Tensor) -> float:
    inside, outside = _anomaly("in_scores", in_scores), _anomaly("out_scores", out_scores)
    is_out = np.repeat([0, 1], [len(inside), len(outside)])
    return float(_sklearn_metric(metric)(is_out, np.concatenate([inside, outside])))


def _sklearn_metric(name: str) -> Callable[..., Any]:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ImportError("aupr and auroc need scikit-learn: pip install 'attrdrop[lab]'") from error
    return getattr(metrics, name)


def _anomaly(name: str, scores: object) -> np.ndarray:
    tensor = check_tensor(name, scores)
    if tensor.dim() == 2:
        return -_confidence(_check_logits(name, tensor))
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.dim() != 1 or len(tensor) == 0:
        raise ValueError(f"{name} must be scores (N,) or logits (N, K) with N > 0, got shape {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return tensor.detach().double().cpu().numpy()


def _confidence(logits: Tensor) -> np.ndarray:
    """Largest softmax probability of each row; in float64, where confident rows still differ."""
    return _largest(torch.softmax(logits, 1, dtype=torch.float64))


def _largest(probabilities: Tensor) -> np.ndarray:
    return probabilities.amax(1).double().cpu().numpy()


def _correct(logits: Tensor, labels: object) -> np.ndarray:
    """1.0 where the arg-max is the label, else 0.0."""
    tensor = check_tensor("labels", labels)
    count, classes = logits.shape
    if tensor.dtype != torch.int64 or tuple(tensor.shape) != (count,):
        raise ValueError(f"labels must be int64 of shape ({count},), got {tensor.dtype} of shape {tuple(tensor.shape)}")
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), the columns of the logits, got {low} to {high}")
    return (logits.argmax(1) == tensor.to(logits.device)).double().cpu().numpy()


def _check_logits(name: str, logits: object) -> Tensor:
    tensor = check_tensor(name, logits).detach()
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.dim() != 2 or tensor.numel() == 0:
        raise ValueError(f"{name} must have shape (N, K), not empty, got {tuple(tensor.shape)}")
    if not tensor.amax(1).isfinite().all():  # -inf in some columns bars these classes
        raise ValueError(f"{name} must have a finite largest value in each row, got NaN or infinity")
    return tensor


def _check_probabilities(values: Tensor) -> Tensor:
    values = values.double()
    sums = values.sum(1)
    if bool((values < 0).any()) or bool(((sums - 1).abs() > 1e-2).any()):
        raise ValueError(
            "logits must hold probabilities, at least 0 and 1 in sum, where probabilities=True, "
            f"got a minimum of {values.min():.3g} and sums from {sums.min():.3g} to {sums.max():.3g}"
        )
    return values
