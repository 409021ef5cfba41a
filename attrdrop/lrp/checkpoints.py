"""Activation checkpointing, switched off: a block that runs again in the backward would run outside the propagation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils import checkpoint


class _Called:
    """In place of CheckpointFunction: the function is called, and autograd keeps what it needs."""

    @staticmethod
    def apply(function: Callable[..., Any], preserves_rng: bool, *args: Any) -> Any:
        return function(*args)


def _nothing_around(*_: Any, **__: Any) -> Iterator[None]:
    """In place of what surrounds a function that is checkpointed without reentrance."""
    yield


# What checkpoint() looks up when it is called: models hold that function itself under names of their own.
_REPLACED = {"CheckpointFunction": _Called, "_checkpoint_without_reentrant_generator": _nothing_around}
_originals: dict[str, Any] = {}
_lock = threading.Lock()
_users = 0


@contextlib.contextmanager
def without_checkpoints() -> Iterator[None]:
    """torch.utils.checkpoint calls its functions directly, for all threads until the last one leaves."""
    global _users
    with _lock:
        if _users == 0:
            for name, replacement in _REPLACED.items():
                _originals[name] = getattr(checkpoint, name)
                setattr(checkpoint, name, replacement)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for name, original in _originals.items():
                    setattr(checkpoint, name, original)
