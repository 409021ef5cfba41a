"""Models whose parameters lie in pieces on several processes: FSDP1, FSDP2 and ZeRO-3 of DeepSpeed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attrdrop._core.modules import FORWARD_HOOKS, every_module

ENGINES = ("torch.distributed.fsdp.", "deepspeed.")
"""Where the hooks come from that gather parameters for a module's forward."""


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward of the model needs all processes at once."""
    wrappers = _of_fsdp(model, "FullyShardedDataParallel") or _of_fsdp(model, "FSDPModule")
    return bool(wrappers or _of_deepspeed(model))


@contextlib.contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """The model as one process has it: whole parameters in their own types, and no engine that gathers them meanwhile.

    All processes enter together. What happens to parameters in here is lost.
    """
    with contextlib.ExitStack() as stack:
        if "deepspeed" in sys.modules:
            stack.enter_context(_torch_linear())
        if not is_sharded(model):
            yield
            return
        for wrapper in _of_fsdp(model, "FullyShardedDataParallel"):
            stack.enter_context(_seen_through(wrapper))
        stack.enter_context(_gathered_by_deepspeed(model))
        stack.enter_context(_full_tensors(model))
        stack.enter_context(_without_engines(model))
        yield


def _of_fsdp(model: nn.Module, kind: str) -> list[Any]:
    """What FSDP1 wraps (FullyShardedDataParallel) or FSDP2 has taken over (FSDPModule), the outer ones first."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else [module for module in every_module(model) if isinstance(module, getattr(fsdp, kind))]


def _of_deepspeed(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that ZeRO-3 has taken apart."""
    if "deepspeed" not in sys.modules:
        return []
    return [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]


@contextlib.contextmanager
def _seen_through(wrapper: Any) -> Iterator[None]:
    """A wrapper of FSDP1 that hands on what it is given."""
    with type(wrapper).summon_full_params(wrapper, recurse=False, writeback=False):
        vars(wrapper)["forward"] = wrapper.module.__call__
        try:
            yield
        finally:
            del vars(wrapper)["forward"]


def _gathered_by_deepspeed(model: nn.Module) -> contextlib.AbstractContextManager:
    pieces = _of_deepspeed(model)
    return sys.modules["deepspeed"].zero.GatheredParameters(pieces) if pieces else contextlib.nullcontext()


@contextlib.contextmanager
def _torch_linear() -> Iterator[None]:
    """torch's own linear function, for which ZeRO-3 puts another, once and for all models of the process."""
    linear, functional.linear = functional.linear, torch._C._nn.linear
    try:
        yield
    finally:
        functional.linear = linear


@contextlib.contextmanager
def _full_tensors(model: nn.Module) -> Iterator[None]:
    """FSDP2's parameters, each gathered once."""
    for module in _of_fsdp(model, "FSDPModule"):
        module.reshard()  # a forward may have left whole ones, in the type that it computes in
    kept = [(module._parameters, dict(module._parameters)) for module in model.modules() if module._parameters]
    whole: dict[Tensor, nn.Parameter] = {}
    try:
        for parameters, own in kept:
            for name, parameter in own.items():
                if parameter is None or not hasattr(parameter, "full_tensor"):
                    continue
                if parameter not in whole:
                    with torch.no_grad():
                        whole[parameter] = nn.Parameter(parameter.full_tensor(), requires_grad=False)
                parameters[name] = whole[parameter]
        yield
    finally:
        for parameters, own in kept:
            parameters.update(own)


@contextlib.contextmanager
def _without_engines(model: nn.Module) -> Iterator[None]:
    """No hooks of the engines; those of the model's own run."""
    every = [getattr(module, name) for module in model.modules() for name in FORWARD_HOOKS]
    kept = [(hooks, dict(hooks)) for hooks in every if hooks]
    for hooks, own in kept:
        for key, hook in own.items():
            if _of_engine(hook):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, own in kept:
            hooks.clear()
            hooks.update(own)


def _of_engine(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or type(hook).__module__).startswith(ENGINES)
