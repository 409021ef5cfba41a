"""What a model says about the targets, for the measures that follow it while its inputs are changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.checks import check_choice, check_tensor
from attrdrop._core.modules import evaluation_mode

SCORES = ("logit", "probability", "accuracy")


class Scores:
    """Scores of the target of each input: the logit, its probability after softmax, or 1 where it is the arg-max."""

    def __init__(self, model: object, score: str, output: Callable[[Any], Tensor] | None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        check_choice("score", score, SCORES)
        self.model, self.score, self.output = model, score, output
        self.targets: Tensor | None = None

    @contextlib.contextmanager
    def following(self, inputs: Tensor, targets: Tensor) -> Iterator[None]:
        """The model in eval mode and without gradients; flags and the global random state come back."""
        self.targets = targets
        devices = [inputs.device] if inputs.is_cuda else []  # a model may draw in eval mode too
        with torch.random.fork_rng(devices), torch.no_grad(), evaluation_mode(self.model):
            yield

    def __call__(self, inputs: Tensor, wanted: Tensor) -> Tensor:
        """float32 (float64 for float64 logits) (n,) for some of the inputs and their targets."""
        out = self.model(inputs)
        logits = _check_logits(out if self.output is None else self.output(out), len(inputs))
        if self.targets is not None:  # all of them at the first call
            _check_range(self.targets, logits.shape[1])
            self.targets = None
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wanted = wanted.to(logits.device)
        if self.score == "accuracy":
            return (logits.argmax(1) == wanted).to(logits.dtype)
        values = logits.softmax(1) if self.score == "probability" else logits
        return values.gather(1, wanted[:, None]).squeeze(1)


def check_target(target: object, inputs: Tensor) -> Tensor:
    """int64 (N,) on the device of the inputs."""
    tensor = check_tensor("target", target)
    if tensor.dtype != torch.int64 or tuple(tensor.shape) != (len(inputs),):
        raise ValueError(
            f"target must be int64 of shape ({len(inputs)},), got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor.to(inputs.device)


def _check_logits(logits: object, batch: int) -> Tensor:
    if not isinstance(logits, Tensor):
        raise TypeError(f"output must turn what the model returns into a tensor of logits, got {type(logits).__name__}")
    if logits.dim() != 2 or len(logits) != batch:
        raise ValueError(f"output must give logits ({batch}, classes), got shape {tuple(logits.shape)}")
    return logits


def _check_range(target: Tensor, classes: int) -> None:
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        raise ValueError(f"target must lie in [0, {classes}), the classes of the model, got {low if low < 0 else high}")
