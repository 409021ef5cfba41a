"""Transformer layers that give in later forwards what they gave in the first, and compute nothing.

A transformers model calls its layers from code of its own and hands hidden states on as each model likes, so the one
place where any of them can be skipped is the layer's ``forward``, which is swapped for as long as a replay lasts. The
random generators go on from where the layer had left them, or the layers above would draw other dropout.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES, _get_node_type

from attrdrop._core.modules import RandomState, unwrap


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with its leaves replaced; torch's own tree_map leaves cycles of references behind at each call."""
    node = SUPPORTED_NODES.get(_get_node_type(tree))
    if node is None:
        return function(tree)
    children, context = node.flatten_fn(tree)
    return node.unflatten_fn([mapped(function, child) for child in children], context)


class Repeat(NamedTuple):
    """Repeats what has the batch as its first dimension, wherever it is in a tree; once, it changes nothing."""

    size: int
    times: int

    def __call__(self, tree: Any) -> Any:
        if self.times == 1:
            return tree
        return mapped(lambda x: x.repeat(self.times, *[1] * (x.dim() - 1)) if self._is_batch(x) else x, tree)

    def _is_batch(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == self.size


class _Run(NamedTuple):
    """A module that ran: how many sites had attended by its end, the generators' state then, and what it returned."""

    end: int
    random: RandomState
    output: Any

    def again(self, repeat: Repeat, *_args: Any, **_kwargs: Any) -> Any:
        self.random.restore()
        return repeat(self.output)


class Replay:
    """Keeps what the members of a model's lists of modules return, its transformer layers above all.

    A module that runs more than once in a forward is left out. Where a model has no such lists, forwards run whole.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._runs: dict[nn.Module, _Run | None] = {}

    @contextlib.contextmanager
    def recorded(self, model: nn.Module, attended: Callable[[], int]) -> Iterator[None]:
        """Keeps what a forward in here returns; ``attended`` says how many sites have attended."""

        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            fixed = mapped(lambda x: x.detach() if isinstance(x, Tensor) else x, output)
            run = _Run(attended(), RandomState.now(self._device), fixed)
            self._runs[module] = None if module in self._runs else run

        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        members = {unwrap(member) for modules in lists for member in modules}
        handles = [member.register_forward_hook(hook) for member in members]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def below(self, index: int) -> dict[nn.Module, _Run]:
        """The modules that were through before the site of this index attended."""
        return {module: run for module, run in self._runs.items() if run is not None and run.end <= index}

    def forget_above(self, index: int) -> None:
        """Lets go of what no site up to this one can use."""
        self._runs = {**self.below(index)}

    @contextlib.contextmanager
    def replayed(self, index: int, repeat: Repeat) -> Iterator[None]:
        """The modules below the site give what they gave, repeated."""
        runs = self.below(index)
        own = {module: vars(module).get("forward") for module in runs}
        try:
            for module, run in runs.items():
                vars(module)["forward"] = functools.partial(run.again, repeat)
            yield
        finally:
            for module, forward in own.items():
                vars(module).pop("forward", None)
                if forward is not None:
                    vars(module)["forward"] = forward
