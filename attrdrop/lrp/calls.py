"""Calls of linear layers, which rules repeat with other weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attrdrop.lrp.carriers import Relevance

Change = Callable[[Tensor, Tensor | None], Tensor]
"""Makes another weight of one, in the memory of the second tensor where there is one."""


@dataclass(slots=True)
class LinearCall:
    """func(input, weight, bias, *rest): conv, transposed conv or linear, with the affine map after it once folded.

    carrier: what receives relevance as its gradient where the input is the model's, moved but not computed with.
    scale: of the affine map, one a channel; its shift is in the bias.
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
    scale: Tensor | None = None

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

    @property
    def folded_weight(self) -> Tensor:
        """The weight of the layer and the affine map after it."""
        return _folded(self.weight, self.scale, self.groups if self.is_transposed else None)

    def run(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with another input or other parameters."""
        return self.func(input, weight, bias, *self.rest, **self.options)

    def weighed(self, input: Tensor, change: Change, bias: Tensor | None) -> Tensor:
        """The layer with another input, bias and change of its weight.

        The backward changes the weight once more: kept by all layers, the changed ones would be a second model.
        """
        weight, scale, groups = self.weight, self.scale, self.groups if self.is_transposed else None

        def changed() -> Tensor:
            whole = _folded(weight, scale, groups)
            return change(whole, None if scale is None else whole)

        found = changed()
        if found.requires_grad or torch.compiler.is_compiling():  # a compiler itself sees what to keep
            return self.run(input, found, bias)
        address = found.data_ptr()

        def pack(x: Tensor) -> Any:
            return (x.shape, x.stride()) if address and x.data_ptr() == address else x

        def unpack(kept: Any) -> Tensor:
            return kept if isinstance(kept, Tensor) else changed().as_strided(*kept)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return self.run(input, found, bias)

    def folded(self, scale: Tensor | None, shift: Tensor | None) -> LinearCall:
        """The layer with the affine map after it as a part of it."""
        weight, bias = self.weight, self.bias
        if scale is not None and bias is not None:
            bias = bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        bias = None if bias is None else bias.to(weight.dtype)
        if scale is not None and (weight.requires_grad or scale.requires_grad):  # has a gradient that all uses add to
            weight, scale = _folded(weight, scale, self.groups if self.is_transposed else None), None
        return replace(self, weight=weight, bias=bias, scale=scale)


def _folded(weight: Tensor, scale: Tensor | None, groups: int | None) -> Tensor:
    """A weight times a scale of its outputs; groups: of a transposed convolution, of weight (in, out / groups, ...)."""
    if scale is None:
        return weight
    by_output = [1] * weight.dim()
    if groups is None:
        by_output[0] = -1
        factors = scale.view(by_output)
    else:
        by_output[:2] = groups, weight.shape[1]
        factors = scale.view(by_output).repeat_interleave(weight.shape[0] // groups, 0)
    return (weight * factors).to(weight.dtype)
