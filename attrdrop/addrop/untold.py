"""Which modules attend without having been handed a pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import nn

_untold: ContextVar[list[nn.Module] | None] = ContextVar("untold", default=None)


def attends_untold(module: nn.Module) -> None:
    """Tells that a module attends and was handed no pass."""
    if not torch.compiler.is_compiling() and (found := _untold.get()) is not None:
        found.append(module)


@contextlib.contextmanager
def noting_untold() -> Iterator[list[nn.Module]]:
    """The modules that attend in here without a pass."""
    found: list[nn.Module] = []
    token = _untold.set(found)
    try:
        yield found
    finally:
        _untold.reset(token)
