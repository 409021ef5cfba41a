"""Which kernel really runs: the longest of a call, by torch's profiler."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

LENGTH = 56


def shorten(name: str) -> str:
    """A kernel's own name: no return type, namespace, template or parameters."""
    while (inner := re.sub(r"<[^<>]*>|\(anonymous namespace\)::", "", name)) != name:
        name = inner
    return name.split("(")[0].split()[-1].split("::")[-1][:LENGTH]


def longest(events: Iterable[FunctionEvent]) -> str:
    """The kernel of `events` with the most time in all; nothing where none ran on a GPU."""
    spent: defaultdict[str, float] = defaultdict(float)
    for event in events:
        copies = event.name.startswith(("Memcpy", "Memset"))
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation and not copies:
            spent[event.name] += event.time_range.elapsed_us()
    return shorten(max(spent, key=spent.__getitem__)) if spent else ""


def ran(call: Callable[[], object]) -> str:
    """The longest CUDA kernel of one call."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return longest(profile.events())
