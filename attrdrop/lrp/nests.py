"""Nests of tuples, lists and dictionaries with tensors in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nest of tuples, lists and dictionaries with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        changed = [each(entry, change) for entry in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    if isinstance(value, dict):
        return {key: each(entry, change) for key, entry in value.items()}
    return value


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a nest."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [x for entry in value for x in tensors(entry)]
    return []
