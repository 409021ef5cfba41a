"""The training step that every experiment times."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from attrdrop.lab.errors import RunError


def timed_step(
    loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, device: torch.device, epoch: int
) -> tuple[float, float]:
    """Loss and seconds of a forward, a backward and an update.

    Raises RunError where the loss is no number.
    """
    started = _clock(device)
    loss = loss_of()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds, value = _clock(device) - started, loss.item()
    if not math.isfinite(value):
        raise RunError(f"the training loss became {value} in epoch {epoch}; try a smaller --lr.")
    return value, seconds


def _clock(device: torch.device) -> float:
    """The time in seconds, after the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
