"""CUDA graphs, in whose replays everything that the host decided during the capture is the same again."""

from __future__ import annotations

import torch
from torch import Tensor


def is_capturing() -> bool:
    """Whether a CUDA graph is captured now."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class Tally:
    """Counts up from 0: in an int, or with ``on_device`` in a tensor, which each replay of a CUDA graph counts on."""

    def __init__(self, on_device: bool = False):
        self._on_device = on_device
        self._count: int | Tensor = 0

    def at(self, device: torch.device) -> int | Tensor:
        """The count, as an int or as an int64 tensor () on the device; later counts may change the tensor.

        Raises:
            RuntimeError: a CUDA graph is captured, and the tensor is not there yet: it would start anew in each replay.
        """
        if self._on_device and not isinstance(self._count, Tensor):
            if is_capturing():
                raise RuntimeError(
                    "run one such step before capturing it in a CUDA graph, whose replays continue the count"
                )
            self._count = torch.tensor(self._count, device=device)
        return self._count

    def add(self, number: int, device: torch.device) -> None:
        self._count = self.at(device)
        self._count += number  # a tensor in place, where a captured graph knows it

    def set(self, number: int) -> None:
        if isinstance(self._count, Tensor):
            self._count.fill_(number)
        else:
            self._count = number

    def __int__(self) -> int:
        """Waits for the device."""
        return int(self._count)
