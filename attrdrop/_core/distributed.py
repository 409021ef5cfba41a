"""The process's place among those that train together."""

from __future__ import annotations

import torch


def process_rank() -> int:
    """0 in a process that trains alone."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def process_count() -> int:
    """1 for a process that trains alone."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
