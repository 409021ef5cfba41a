"""Interleaved timing and peak memory, on the CPU and on CUDA."""

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
MB = 1 << 20
FLUSHES = 8  # writes of the cache before a CUDA sample: about half a millisecond, in which the host launches the call
SHORTEST_MS = 2.0  # CPU samples shorter than this are repeated: the clock and the scheduler are too coarse


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median and the 20 % and 80 % quantiles of `samples`."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def low(self) -> float:
        return float(np.quantile(self.samples, 0.2))

    @property
    def high(self) -> float:
        return float(np.quantile(self.samples, 0.8))

    def ratio(self, base: "Timing") -> float:
        """Median over the rounds of this time to `base` in the same round."""
        return float(np.median(np.divide(self.samples, base.samples)))


@cache
def _cold(device: torch.device) -> torch.Tensor:
    """Four times the L2 cache: writing it evicts everything else."""
    size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device=device)


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def clock(device: str, threads: int | None) -> str:
    """processor, of one thread of a CPU: what other programs take does not count; else the wall's."""
    return "processor" if device == "cpu" and threads == 1 else "wall"


def sample(call: Callable[[], object], device: torch.device, repeats: int = 1, clock: str = "wall") -> float:
    """Milliseconds of one call; on CUDA with a flushed L2 cache, and without the time the host takes to launch it."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            _cold(device).zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    now = CLOCKS[clock]
    begin = now()
    for _ in range(repeats):
        call()
    return (now() - begin) * 1e3 / repeats


def interleave(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    budget: float = 10.0,
    rounds: tuple[int, int] = (5, 100),
    clock: str = "wall",
) -> dict[str, Timing]:
    """Time `calls` in turn, round by round, each round starting one further; about `budget` seconds in all.

    clock: of :data:`CLOCKS`, on a CPU.
    """
    names = list(calls)
    for call in calls.values():
        call()  # compiles, allocates, fills caches
    first = {name: sample(call, device, clock=clock) for name, call in calls.items()}
    repeats = {name: max(1, round(SHORTEST_MS / max(ms, 1e-4))) for name, ms in first.items()}
    per_round = sum(max(ms, SHORTEST_MS) for ms in first.values()) / 1e3
    count = int(np.clip(budget / per_round, *rounds))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(count):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            samples[name].append(sample(calls[name], device, repeats[name], clock))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def fastest(forms: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    """The form with the best of three interleaved calls; forms that cannot run here are passed over."""
    able = {}
    for name, form in forms.items():
        try:
            form()
        except Exception as error:  # compilers may raise anything
            reason = f"{type(error).__name__}: {error}"  # the error itself would keep its frames and their tensors
        else:
            able[name] = form
    if not able:
        raise RuntimeError(f"none of {', '.join(forms)} runs on {device}: {reason}")
    if len(able) == 1:
        return next(iter(able))
    times = interleave(able, device, budget=0, rounds=(3, 3))
    return min(times, key=lambda name: min(times[name].samples))


def cuda_peak(call: Callable[[], object], device: torch.device) -> float:
    """MiB that one call allocates at its peak, above what was allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MB


def cuda_held(call: Callable[[], object], device: torch.device) -> float | None:
    """MiB that the result of one call holds, with all that autograd saved for its backward; None where it cannot."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    try:
        result = call()
    except torch.OutOfMemoryError:
        return None
    torch.cuda.synchronize(device)
    held = (torch.cuda.memory_allocated(device) - before) / MB
    del result
    return held


def resident_peak(call: Callable[[], object]) -> float:
    """MiB by which `call` raises the resident memory of this process at its peak; for a fresh process.

    Linux's VmHWM belongs to this program alone, where ru_maxrss also remembers the parent it was forked from.
    """
    status = Path("/proc/self/status")

    def read(key: str) -> float:
        if status.exists():
            return int(re.search(rf"{key}:\s*(\d+)", status.read_text())[1]) / 1024
        unit = MB if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    before = read("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    call()
    return read("VmHWM") - before


def in_fresh_process(module: str, arguments: Sequence[str]) -> dict:
    """Run `python -m module arguments` and parse the last line it prints as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
