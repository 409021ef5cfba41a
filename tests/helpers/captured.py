"""CUDA graphs of whole functions; on the CPU a stand-in, which keeps what makes them hard: numbers and memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = ("_local_scalar_dense", "nonzero", "equal", "lift_fresh")
"""Operators that wait for the device, or take numbers from the host's memory: a capture refuses them."""


class Recorder(TorchDispatchMode):
    """Notes the operators that run. :meth:`replay` runs them again: with the numbers of then, on the memory of then."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in READING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # a view is there already
                    old.copy_(new)


@contextmanager
def capturing():
    """What asks whether a CUDA graph is captured hears that one is."""
    with (
        patch.object(torch.cuda, "is_initialized", lambda: True),
        patch.object(torch.cuda, "is_current_stream_capturing", lambda: True),
    ):
        yield


@contextmanager
def beside(device: torch.device | str):
    """A stream of its own, on which torch wants what runs before a capture to run."""
    if torch.device(device).type == "cpu":
        yield
        return
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def run_and_capture(function: Callable[[], object], device: torch.device | str) -> tuple[object, Callable[[], None]]:
    """Runs a function once; its result, and what runs it again into the same result."""
    if torch.device(device).type == "cpu":
        recorder = Recorder()
        with capturing(), recorder:
            result = function()
        return result, recorder.replay
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    graph.replay()
    return result, graph.replay
