"""A computation recorded as the operators that it comes down to, to be run again without what led to them."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from attrdrop.lrp.nests import each

_here = threading.local()


def is_recording() -> bool:
    """Whether a recorder sees what this thread computes: what is looked up is then looked up once for all runs."""
    return getattr(_here, "is_recording", False)


class Diverged(Exception):
    """A run has met another value than that which the recorded computation branched on."""


class Recorder(TorchDispatchMode):
    """Records the operators that run inside it, beneath autograd, so those of backwards too.

    Tensors that were there before are held, not copied: a run sees what has become of them. Values that the computation
    takes out of tensors, and shapes that depend on values, must be the same in a run, else it is :class:`Diverged`.

    Args:
        inputs: tensors in the place of which a run has others.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.has_draws = False
        self._graph = fx.Graph()
        self._constants: dict[str, Tensor] = {}
        self._nodes = WeakTensorKeyDictionary()
        self._unseen = _Unseen(self._is_made)
        for place, x in enumerate(inputs):
            self._nodes[x] = self._graph.placeholder(f"input_{place}")

    def __enter__(self) -> Recorder:
        _here.is_recording = True
        self._unseen.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._unseen.__exit__(*error)
        _here.is_recording = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        node = self._graph.call_function(func, each(tuple(args), self._node), each(kwargs, self._node))
        result = func(*args, **kwargs)
        self.has_draws = self.has_draws or torch.Tag.nondeterministic_seeded in func.tags
        self._note(func, node, result)
        return result

    def finished(self, result: Tensor) -> Callable[..., Tensor]:
        """Makes the result again, of other inputs."""
        self._graph.output(self._node(result))
        self._graph.eliminate_dead_code(_has_effect)
        _reuse_memory(self._graph)
        return fx.GraphModule(self._constants, self._graph).forward

    def _note(self, func: Any, node: fx.Node, result: Any) -> None:
        if isinstance(result, Tensor):
            self._nodes[result] = node
            node.meta["kind"] = result.dtype, result.shape, result.stride()
            returns = func._schema.returns
            node.meta["is_own"] = node.target is func and all(made.alias_info is None for made in returns)
            if torch.Tag.dynamic_output_shape in func.tags:
                self._graph.call_function(_check_shape, (node, tuple(result.shape)))
        elif isinstance(result, (tuple, list)):
            for place, x in enumerate(result):
                self._note(func, self._graph.call_function(operator.getitem, (node, place)), x)
        elif isinstance(result, (bool, int, float, complex)) and func not in CHOICES:
            self._graph.call_function(_check_value, (node, result))

    def _node(self, x: Tensor) -> fx.Node:
        """What stands for a tensor in the graph; one that nothing here has made is a constant."""
        if x not in self._nodes:
            name = f"constant_{len(self._constants)}"
            self._constants[name] = x
            self._nodes[x] = self._graph.get_attr(name)
        return self._nodes[x]

    def _is_made(self, x: Tensor) -> bool:
        """Whether it is an input, or has come about in here."""
        return x in self._nodes and self._nodes[x].op != "get_attr"


class _Unseen(TorchFunctionMode):
    """Refuses functions that take values out of tensors without an operator."""

    def __init__(self, is_made: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.is_made = is_made

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in UNSEEN and self.is_made(args[0]):
            raise ValueError(
                f"a capture cannot follow a model that takes values out by {func.__name__}, unseen by torch"
            )
        return func(*args, **({} if kwargs is None else kwargs))


UNSEEN = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
CHOICES = {torch.ops.aten._fused_sdp_choice.default}
"""Operators whose numbers say how to compute, not what."""


def _check_value(value: Any, recorded: Any) -> None:
    if value != recorded:
        raise Diverged


def _check_shape(x: Tensor, recorded: tuple[int, ...]) -> None:
    if x.shape != recorded:
        raise Diverged


IN_PLACE = {
    torch.ops.aten.add.Tensor: torch.ops.aten.add_.Tensor,
    torch.ops.aten.mul.Tensor: torch.ops.aten.mul_.Tensor,
}


def _reuse_memory(graph: fx.Graph) -> None:
    """Sums and products take the place of an operand that nothing else needs, as autograd adds gradients up."""
    for node in graph.nodes:
        if node.target not in IN_PLACE or node.kwargs:
            continue
        spare = [x for x in node.args if _is_spare(x) and x.meta["kind"] == node.meta["kind"]]
        if spare:
            other = next((x for x in node.args if x is not spare[0]), spare[0])
            node.target, node.args = IN_PLACE[node.target], (spare[0], other)


def _is_spare(node: Any) -> bool:
    """Whether it is memory of its own that has one use."""
    return isinstance(node, fx.Node) and len(node.users) == 1 and node.meta.get("is_own", False)


def _has_effect(node: fx.Node) -> bool:
    """Whether a node matters beyond what it returns."""
    if node.op in ("placeholder", "output") or node.target in (_check_value, _check_shape):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
