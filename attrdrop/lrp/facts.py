"""What the propagation remembers of the activations that are alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attrdrop.lrp.gates import Pending


@dataclass(slots=True)
class Fact:
    """What is known about an activation.

    pending: a linear layer's output that has met no consumer yet. replacement: what later uses of the tensor mean.
    carrier: moved along with raw input, see LinearCall. is_raw: no layer stands between the input and it.
    is_gate: it only says how much of another activation passes. is_constant: it has a graph, and yet is no activation.
    spoiler: what its memory got through another tensor. node: the grad_fn that the fact is about. source: of a view
    made without gradients, the activation that it shows.
    """

    tensor: Callable[[], Tensor | None]
    pending: Pending | None = None
    replacement: Tensor | None = None
    carrier: Tensor | None = None
    is_raw: bool = False
    is_nonnegative: bool = False
    is_gate: bool = False
    is_constant: bool = False
    spoiler: Tensor | None = None
    node: Any = None
    source: Tensor | None = None


class Facts:
    """Facts by tensor; a tensor that the model drops is forgotten with all that its fact holds."""

    def __init__(self) -> None:
        self.by_id: dict[int, Fact] = {}
        self.is_compiling = torch.compiler.is_compiling()

    def note(self, x: Tensor, **known: Any) -> Fact:
        key = id(x)
        if self.is_compiling:
            fact = Fact(lambda: x, **known)
        else:  # a partial takes no frame of Python when the tensor goes
            fact = Fact(weakref.ref(x, partial(self.by_id.pop, key)), node=x.grad_fn, **known)
        self.by_id[key] = fact
        return fact

    def clear(self) -> None:
        """Forgets all; else facts and their callbacks would keep each other until the next garbage collection."""
        self.by_id.clear()

    def get(self, x: Tensor) -> Fact | None:
        """None too where other code has given x a backward that the fact does not know."""
        fact = self.by_id.get(id(x))
        if fact is None or self.is_compiling or x.grad_fn is fact.node:
            return fact
        if fact.source is None or not self._is_passed_on(x.grad_fn, fact.source):
            return None
        fact.node, fact.source = x.grad_fn, None
        return fact

    def _is_passed_on(self, node: Any, source: Tensor) -> bool:
        """Whether a backward leads to the source and otherwise at most to leaves and activations with their gates."""
        if node is None:
            return False
        gated = {fact.node for fact in self.by_id.values() if fact.pending is None and fact.replacement is None}
        after = [other for other, _ in node.next_functions if other is not None and not hasattr(other, "variable")]
        return all(other is source.grad_fn or other in gated for other in after)

    def current(self, x: Tensor) -> Tensor:
        """What x was changed to."""
        fact = self.get(x)
        while fact is not None and fact.replacement is not None:
            x = fact.replacement
            fact = self.get(x)
        return x

    def spoil(self, x: Tensor, result: Tensor) -> None:
        """Marks the tensors that show what x becomes in place: x turns into the result, they do not."""
        own = self.get(x)
        if self.is_compiling or (own is not None and own.pending is not None):
            return  # a linear layer's output has no views before it is used
        if own is None and x._base is not None:
            self.note(x._base, spoiler=result)
        memory = x.untyped_storage()._cdata
        for fact in list(self.by_id.values()):
            other = fact.tensor()
            if other is None or fact.pending is not None or other.untyped_storage()._cdata != memory:
                continue
            if self.current(other) is not x and overlap(x, other):
                fact.spoiler = result

    def unspoil(self, x: Tensor, written: Tensor) -> None:
        """x[i] += y writes what x[i] became into x again."""
        fact = self.get(self.current(x))
        if fact is not None and fact.spoiler is written:
            fact.spoiler = None


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have an element in common."""
    end = 1 + max(
        x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) for x in (a, b)
    )
    if a.numel() == 0 or b.numel() == 0:
        return False
    taken = torch.zeros(end, dtype=torch.bool)
    taken.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(taken.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def comes_from(x: Tensor, roots: list[Tensor]) -> bool:
    """Whether the autograd graph of x reaches one of the roots. What a model kept from before, say, does not."""
    if torch.compiler.is_compiling():
        return True
    pending, seen = [x.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if any(getattr(node, "variable", None) is root or node is root.grad_fn for root in roots):
            return True
        pending += [source for source, _ in node.next_functions]
    return any(x is root for root in roots)
