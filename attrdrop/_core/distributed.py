"""The process's place among those that train together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

_host_groups: dict[Any, Any] = {}
"""By the group of all processes, the one in which they tell each other numbers."""


def process_rank() -> int:
    """0 in a process that trains alone."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def process_count() -> int:
    """1 for a process that trains alone."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def held_by_all(size: int, model: nn.Module) -> list[int]:
    """How many samples each process has in a call of all, of which this one has ``size``.

    The processes wait for one another, but not for their devices. Inside ``DistributedDataParallel.join`` those that
    have run out of data answer nothing, and all are taken to hold equally many.
    """
    count = process_count()
    if count == 1 or _is_joining(model):
        return [size] * count
    return told_by_all(size)


def told_by_all(number: int) -> list[int]:
    """The number that each process tells."""
    if process_count() == 1:
        return [number]
    numbers = torch.zeros(process_count(), dtype=torch.int64)
    numbers[process_rank()] = number
    torch.distributed.all_reduce(numbers, group=_host_group())
    return numbers.tolist()


def summed_over_all(numbers: Tensor) -> Tensor:
    """Numbers on the CPU, summed over all processes, which wait for one another."""
    if process_count() > 1:
        numbers = numbers.clone()
        torch.distributed.all_reduce(numbers, group=_host_group())
    return numbers


def rows_of_all(rows: Tensor, held: list[int], order: list[int]) -> Tensor:
    """This process's part of the rows of all processes in a new order, from where they are.

    held: how many rows each process has; order: a permutation of them all. The same on all processes.
    """
    first = [sum(held[:process]) for process in range(len(held) + 1)]
    asked = [order[begin:end] for begin, end in pairwise(first)]
    own, rank = asked[process_rank()], process_rank()

    def of(process: int, asker: list[int]) -> list[int]:
        return [row for row in asker if first[process] <= row < first[process + 1]]

    sent = [of(rank, asker) for asker in asked]
    received = [of(process, own) for process in range(len(held))]
    given = torch.tensor([row - first[rank] for part in sent for row in part], dtype=torch.int64).to(rows.device)
    found = rows.new_empty((len(own), *rows.shape[1:]))
    torch.distributed.all_to_all_single(
        found, rows[given], list(map(len, received)), list(map(len, sent)),
        group=_host_group() if rows.device.type == "cpu" else None,
    )  # fmt: skip
    place = {row: place for place, row in enumerate(row for part in received for row in part)}
    return found[torch.tensor([place[row] for row in own], dtype=torch.int64).to(rows.device)]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_joining(model: nn.Module) -> bool:
    return isinstance(model, nn.parallel.DistributedDataParallel) and model._join_config.enable


def _host_group() -> Any:
    """A group that talks through the processes' own memory; made at the first call, by all of them."""
    whole = torch.distributed.group.WORLD
    if torch.distributed.get_backend() == "gloo":
        return whole
    if whole not in _host_groups:
        _host_groups.clear()  # of groups that were destroyed
        _host_groups[whole] = torch.distributed.new_group(backend="gloo")
    return _host_groups[whole]
