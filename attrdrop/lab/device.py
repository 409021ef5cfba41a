"""The device of an experiment, whether other programs keep it busy, and the peak memory of a piece of code."""

import contextlib
import ctypes
import gc
import os
import re
from pathlib import Path

import torch

from attrdrop.lab.errors import InputError


def resolve_device(name: str) -> torch.device:
    """'auto' takes the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device: {name!r} is not one of auto, cpu, cuda.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device: {name} is not available; PyTorch {torch.__version__} sees no GPU here.")
    return torch.device(name)


def busy() -> str:
    """A warning if other programs keep the processors busy, else an empty text."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores: timings will be unreliable" if load > 0.5 * cores else ""


class PeakMemory:
    """Bytes needed above those in use at the start: allocated on a GPU, resident on a CPU.

    On Linux the kernel keeps the resident peak and resets it on request; elsewhere `bytes()` is None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.start: int | None = torch.cuda.memory_allocated(device)
            return
        _return_free_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.start = _status("VmRSS")
        except OSError:
            self.start = None

    def bytes(self) -> int | None:
        if self.start is None:
            return None
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")
        return peak - self.start


def _return_free_memory() -> None:
    """Without this, glibc's free lists hide part of what the next run needs."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
