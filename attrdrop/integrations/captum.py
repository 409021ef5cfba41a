"""Relevance in the shape of captum's attributions: for code that calls ``attribute`` and knows no other library.

captum need not be there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.checks import is_int
from attrdrop._core.modules import evaluation_mode
from attrdrop.lrp import Epsilon, Rule, relevance


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """captum's NoiseTunnel calls what is behind the decorator of its own attributions."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


class LRP:
    """Called as ``captum.attr.LRP``, and accepted where captum takes an attribution, such as in its NoiseTunnel.

    ::

        LRP(model).attribute(images, target=labels)

    The model stays unmodified. captum's limits do not apply here: functions instead of modules, modules that are used
    twice and residual sums all work.

    Args:
        model: returns (N, classes), more dimensions or one number per sample, also as ``logits`` of an output.
        rule: a rule or composite of :mod:`attrdrop.lrp`; default ``Epsilon(1e-9)``, as in captum.
        options: further arguments of :func:`attrdrop.lrp.relevance`, such as ``attention``.
    """

    multiplies_by_inputs = True

    def __init__(self, model: nn.Module, rule: Rule | None = None, **options: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.forward_func = self.model = model
        self.rule = Epsilon(1e-9) if rule is None else rule
        self.options = options

    @_decorated
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Relevance of the inputs for the target's output.

        Args:
            inputs: one tensor, or a tuple of one; others go to additional_forward_args and get no relevance.
            target: for outputs (N, classes) an index, or one per sample as a tensor or list; for more dimensions a
                tuple of indices, or a list with one per sample; None for one output per sample.
            additional_forward_args: the model's further arguments, in order: a tuple, or a single one.
            return_convergence_delta: whether to also return (N,), the output minus the sum of relevance.

        Returns:
            Relevance, shaped and packed like inputs; sums to the output except for what biases and eps take.
        """
        alone = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        if not isinstance(alone, Tensor):
            got = f"a tuple of {len(inputs)}" if isinstance(inputs, tuple) else type(inputs).__name__
            raise TypeError(f"inputs must be one tensor, the others additional_forward_args, got {got}")
        arguments = self._named(additional_forward_args)
        pick = _picker(target, len(alone))
        place = torch.zeros(len(alone), dtype=torch.int64, device=alone.device)
        found = relevance(
            self.model, alone.detach(), place, rule=self.rule, output=pick, arguments=arguments, **self.options
        )
        result = (found,) if isinstance(inputs, tuple) else found
        if not return_convergence_delta:
            return result
        with torch.no_grad(), evaluation_mode(self.model):
            output = pick(self.model(alone, **arguments))[:, 0]
        return result, output - found.flatten(1).sum(1)

    def has_convergence_delta(self) -> bool:
        return True

    def _named(self, others: Any) -> dict[str, Any]:
        """Arguments after the first, by name."""
        if others is None:
            return {}
        others = others if isinstance(others, tuple) else (others,)
        names = list(inspect.signature(self.model.forward).parameters)[1:]
        if len(others) > len(names):
            raise ValueError(
                f"additional_forward_args must be at most those that {type(self.model).__name__} takes after its "
                f"first, {len(names)}, got {len(others)}"
            )
        return dict(zip(names, others, strict=False))


def _picker(target: Any, count: int) -> Callable[[Any], Tensor]:
    """Takes the target's outputs (N, 1) from what a model gives."""
    rows = _rows(target, count)

    def pick(outputs: Any) -> Tensor:
        outputs = getattr(outputs, "logits", outputs)
        outputs = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        if rows is None:
            if outputs.numel() != count:
                raise ValueError(
                    f"target must be given for outputs with more than one number per sample, {tuple(outputs.shape)}"
                )
            return outputs.reshape(count, 1)
        if rows.shape[1] != outputs.dim() - 1:
            raise ValueError(
                f"target must have {outputs.dim() - 1} indices per sample for outputs of shape {tuple(outputs.shape)}, "
                f"got {rows.shape[1]}"
            )
        for size, column in zip(outputs.shape[1:], rows.T, strict=True):
            if column.min() < -size or column.max() >= size:
                raise ValueError(
                    f"target must lie in [{-size}, {size}), got {int(column.min())} to {int(column.max())}"
                )
        samples = torch.arange(count, device=outputs.device)
        return outputs[(samples, *rows.to(outputs.device).T)][:, None]

    return pick


def _rows(target: Any, count: int) -> Tensor | None:
    """Indices of each sample's output (N, dimensions of one sample's outputs)."""
    if target is None:
        return None
    if is_int(target) or isinstance(target, tuple):
        target = [target] * count
    try:
        rows = torch.as_tensor(target)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"target must be an index, a tuple of indices or one of these per sample, got {target!r}"
        ) from error
    rows = rows.expand(count) if rows.numel() == 1 and rows.dim() < 2 else rows
    rows = rows[:, None] if rows.dim() == 1 else rows
    if rows.dim() != 2 or len(rows) != count or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ValueError(
            f"target must be an index, or one per sample, {count}, got {rows.dtype} of shape {tuple(rows.shape)}"
        )
    return rows
