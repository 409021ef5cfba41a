"""What a pass beside training does to a model, undone in any case."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WRAPPED = ("_orig_mod", "_forward_module")  # names of the model inside torch.compile's and Fabric's


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel, DeepSpeed's engine, Lightning Fabric and torch.compile.

    FullyShardedDataParallel stays: it gathers the parameters that a pass needs.
    """
    while True:
        inner = next((part for name, part in getattr(model, "_modules", {}).items() if name in WRAPPED), None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel, *_engines())):
            inner = model.module
        if inner is None:
            return model
        model = inner


def every_module(model: nn.Module) -> list[nn.Module]:
    """model.modules(), which walks generators within generators, in a fraction of its time."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found)


def _engines() -> tuple[type[nn.Module], ...]:
    """DeepSpeed's, where somebody has imported it."""
    deepspeed = sys.modules.get("deepspeed")
    return () if deepspeed is None else (deepspeed.DeepSpeedEngine,)


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile runs a model or a part of it."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """model.eval() for a while; each module's own flag comes back, also after an error."""
    training = [module for module in every_module(model) if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


@contextlib.contextmanager
def without_hooks(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """None of these hooks of modules for a while; they come back as they were, also after an error."""
    kept = [
        (module, name, hooks) for module in every_module(model) for name in names if (hooks := getattr(module, name))
    ]
    for module, name, _ in kept:
        setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


@contextlib.contextmanager
def gradients_left_alone(model: nn.Module) -> Iterator[None]:
    """FullyShardedDataParallel ends each backward by taking the gradients for whole ones, also those that an earlier
    call of the step has left to be added to; not in here."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    roots = [] if fsdp is None else fsdp.FullyShardedDataParallel.fsdp_modules(model, root_only=True)
    with contextlib.ExitStack() as stack:
        for root in roots:
            stack.enter_context(root.no_sync())
        yield


def uncompiled() -> contextlib.AbstractContextManager:
    """Compiled parts of the model run eagerly: a compiled backward would take weight gradients along."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def outside_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function as it is where torch.compile traces its caller, by a break in the caller's graph."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch._dynamo.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run


class RandomState(NamedTuple):
    """States of torch's generators, of the CPU and of a device."""

    device: torch.device
    states: tuple[Tensor, ...]

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        states = (torch.get_rng_state(),)
        return cls(device, (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states)

    def restore(self) -> None:
        torch.set_rng_state(self.states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.states[1], self.device)
