"""Calls of linear layers, which rules repeat with other weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from attrdrop.lrp.carriers import Relevance


@dataclass
class LinearCall:
    """func(input, weight, bias, *rest): conv, transposed conv or linear; weight and bias can be folded with an affine.

    carrier: what receives relevance as its gradient where the input is the model's, moved but not computed with.
    """

    func: Callable
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    rest: tuple
    options: dict[str, Any]
    is_conv: bool
    is_transposed: bool
    is_nonnegative: bool
    carrier: Tensor | None = None

    @property
    def positive_input(self) -> Tensor:
        return self.input if self.is_nonnegative else self.input.clamp_min(0)

    @property
    def channel_axis(self) -> int:
        return self.input.dim() - self.weight.dim() + 1 if self.is_conv else -1

    @property
    def groups(self) -> int:
        if not self.is_conv:
            return 1
        # after the bias: stride, padding, then dilation (of transposed ones: output_padding), groups
        return self.options.get("groups", self.rest[3] if len(self.rest) > 3 else 1)

    @property
    def shares(self) -> Tensor:
        """Zeros in the place of the input, whose gradient is the relevance that each element gets."""
        return self.carrier if self.carrier is not None else Relevance.apply(self.input)

    def run(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with another input or other parameters."""
        return self.func(input, weight, bias, *self.rest, **self.options)

    def folded(self, scale: Tensor | None, shift: Tensor | None) -> LinearCall:
        """The layer with the affine map after it folded into its parameters."""
        weight, bias = self.weight, self.bias
        if scale is not None:
            by_output = [1] * weight.dim()
            if self.is_transposed:  # (in, out / groups, ...)
                by_output[:2] = self.groups, weight.shape[1]
                repeats = weight.shape[0] // self.groups
                factors = scale.view(by_output).repeat_interleave(repeats, 0)
            else:
                by_output[0] = -1
                factors = scale.view(by_output)
            weight = (weight * factors).to(weight.dtype)
            bias = None if bias is None else bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        bias = None if bias is None else bias.to(weight.dtype)
        return replace(self, weight=weight, bias=bias)
