"""Units that AD-DROP drops besides positions of attention: those of feed-forward blocks, and whole heads.

The paper names them in its conclusion and says no more. Here both are ranked by |a dF/da|, to first order what the
target would change by if the unit were zero, from the walk back that ranks attention:

- feed-forward units by token: the inputs of a block's second layer, each token a row of them;
- heads by sample: the sum of O dO over a head's tokens and channels is dF/dg of a gate g on its whole output (Michel et
  al., 2019), so a sample is a row of H numbers. By token it would be a piece of a head, which attention drops already.

A dropped unit is zero in pass 2. The others are not scaled up as by dropout, which keeps the mean so: here those with
the largest share of it are dropped.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop.ops import unpack_mask

UNITS = ("attention", "feed-forward", "heads")
HEADS = 0
"""The number of a layer's heads among its kinds of units; feed-forward blocks have 1, 2 and so on."""

COMPILED = (
    "units must not name 'feed-forward' where torch.compile runs the model, which does not see what AD-DROP changes "
    "there; run it uncompiled, or use units=('attention', 'heads')"
)
IN_PIECES = (
    "a feed-forward block of the model has inputs of shape {}, which do not show which sample they belong to (as in a "
    "mixture of experts); leave 'feed-forward' out of units"
)
NO_FEED_FORWARD = (
    "units has 'feed-forward', but beside the attention of {} no block was found whose second layer maps a larger size "
    "back to that of the first; leave 'feed-forward' out"
)
CHUNKED = (
    "chunk_size_feed_forward of the model must be 0 if units has 'feed-forward', got {}: its blocks process a sample "
    "in chunks"
)
_ATTENTION_NAMES = ("attn", "attention", "encdec")


class Units:
    """Which kinds of units are dropped, and where the feed-forward blocks of a model are."""

    def __init__(self, kinds: Sequence[str] = ("attention",), model: nn.Module | None = None):
        self.kinds = tuple(kinds)
        chunk = getattr(getattr(model, "config", None), "chunk_size_feed_forward", 0)
        if chunk and "feed-forward" in self:
            raise ValueError(CHUNKED.format(chunk))
        self._model = model
        self._names: dict[nn.Module, str] = {}
        self._found: dict[nn.Module, tuple[nn.Module, ...]] = {}

    def __contains__(self, kind: str) -> bool:
        return kind in self.kinds

    def projections(self, attention: nn.Module) -> tuple[nn.Module, ...]:
        """The second projections of the feed-forward blocks that follow an attention module in its layer; none where
        their units are not dropped.

        A layer is a member of a list of modules. In it a block is told by its sizes: first h -> f, or 2 f where a gate
        is in the same matrix, then f -> h, with f > h.
        """
        if "feed-forward" not in self or self._model is None:
            return ()
        if attention not in self._found:
            layers = self._layers(attention)
            self._found[attention] = next((found for layer in layers if (found := _projections(layer, attention))), ())
        return self._found[attention]

    def _layers(self, module: nn.Module) -> Iterator[nn.Module]:
        """The members of lists of modules that a module is in, from the innermost."""
        model = self._model
        assert model is not None
        if not self._names:
            self._names = {found: name for name, found in model.named_modules()}
        parts = self._names[module].split(".")
        for depth in range(len(parts), 0, -1):
            if isinstance(model.get_submodule(".".join(parts[: depth - 1])), nn.ModuleList | nn.Sequential):
                yield model.get_submodule(".".join(parts[:depth]))


def _projections(layer: nn.Module, attention: nn.Module) -> tuple[nn.Module, ...]:
    order = list(layer.modules())
    following = set(order[order.index(attention) + 1 :])
    found: list[nn.Module] = []
    earlier: set[tuple[int, int]] = set()
    for module, n_in, n_out in _linears(layer):
        if module not in following:
            continue
        if n_in > n_out and not earlier.isdisjoint(((n_out, n_in), (n_out, 2 * n_in))):
            found.append(module)
        earlier.add((n_in, n_out))
    return tuple(found)


def _linears(module: nn.Module) -> Iterator[tuple[nn.Module, int, int]]:
    """Linear modules outside attention with their sizes, in and out; what stands in for one, as PEFT's do, is one."""
    for name, child in module.named_children():
        if any(mark in name.lower() for mark in _ATTENTION_NAMES):
            continue
        n_in, n_out = (
            getattr(child, a, getattr(child, b, None)) for a, b in (("in_features", "nx"), ("out_features", "nf"))
        )
        if isinstance(n_in, int) and isinstance(n_out, int):
            yield child, n_in, n_out
        else:
            yield from _linears(child)


class NextInput:
    """Changes the input of a module's next call in this thread, and of that alone.

    The change, a method of a pass, is held weakly: should the call never come, it is forgotten with the pass.
    """

    def __init__(self, module: nn.Module, change: Callable[..., Tensor], *arguments: Any):
        if torch.compiler.is_compiling():
            raise ValueError(COMPILED)
        self._thread = threading.get_ident()
        self._change, self._arguments = weakref.WeakMethod(change), arguments
        self._handle = module.register_forward_pre_hook(self)

    def __call__(self, _module: nn.Module, inputs: tuple) -> tuple | None:
        if threading.get_ident() != self._thread:
            return None
        self.forget()
        change = self._change()
        return None if change is None else (change(*self._arguments, inputs[0]), *inputs[1:])

    def forget(self) -> None:
        self._handle.remove()


class NextInputs:
    """Changes to come of several modules' inputs, at most one of each."""

    def __init__(self) -> None:
        self._awaited: dict[nn.Module, NextInput] = {}

    def change(self, module: nn.Module, change: Callable[..., Tensor], *arguments: Any) -> None:
        """See :class:`NextInput`; takes the place of one that did not come."""
        if module in self._awaited:
            self._awaited[module].forget()
        self._awaited[module] = NextInput(module, change, *arguments)

    def forget(self) -> None:
        for awaited in self._awaited.values():
            awaited.forget()
        self._awaited.clear()


def by_sample(a: Tensor) -> Tensor:
    """(B, ..., m) as (B, n, m)."""
    if a.dim() < 3:
        raise ValueError(IN_PIECES.format(tuple(a.shape)))
    return a.flatten(1, -2)


@torch.no_grad()
def contributions(a: Tensor, grad: Tensor) -> Tensor:
    """a dF/da, in float32 or wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return a.to(wide) * grad.to(wide)


def head_scores(out: Tensor, grad: Tensor) -> Tensor:
    """|sum of O dO| by head: (B, n, H, d) -> (B, 1, H)."""
    return contributions(out, grad).sum((1, 3)).abs_().unsqueeze(1)


class Zeroed(torch.autograd.Function):
    """x where bits are set, else 0: x (B, ..., m), bits those of (B, n, m); the backward reads the bits again."""

    @staticmethod
    def forward(ctx, x, bits):
        ctx.save_for_backward(bits)
        return _zeroed(x, bits)

    @staticmethod
    def backward(ctx, grad):
        (bits,) = ctx.saved_tensors
        return _zeroed(grad, bits), None


def _zeroed(x: Tensor, bits: Tensor) -> Tensor:
    return torch.where(unpack_mask(bits, x.shape[-1]).view(x.shape), x, 0)


def without_heads(out: Tensor, bits: Tensor) -> Tensor:
    """Head outputs (B, n, H, d), zero where a head's bit in (B, 1, words of H) is not set."""
    keep = unpack_mask(bits, out.shape[2])  # (B, 1, H)
    return torch.where(keep.unsqueeze(-1), out, 0)
