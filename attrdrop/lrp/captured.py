"""Relevance recorded once for an example, and run again for other inputs like it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attrdrop._core.sharded import is_sharded
from attrdrop.lrp.nests import tensors
from attrdrop.lrp.recorder import Diverged, Recorder
from attrdrop.lrp.relevance import relevance

Inputs = Tensor | Mapping[str, Any]


def capture(
    model: nn.Module, inputs: Inputs, target: Tensor | str, **options: Any
) -> Callable[[Inputs, Tensor | str], Tensor]:
    """Relevance for many batches of one shape: its operators are recorded for an example, and run again for each batch.

    A run executes the operators of the forward and the backward alone, without the model's Python code, autograd and
    our look at each function. It returns what :func:`relevance` returns, up to rounding. Parameters and buffers that
    change in place count, as optimizers and load_state_dict change them. Capture again if you replace them (another
    type or device, ``load_state_dict(assign=True)``), change the model's code or structure, or want another autocast.

    Costs relevance twice, once. A run keeps what :func:`relevance` keeps; what is returned holds the model.

    Args:
        model, inputs, target: as for :func:`relevance`, an example. In a batch of keywords, tensors may differ later.
        options: further arguments of :func:`relevance`, except create_graph. Tensors in them are held, not copied.

    Returns:
        A function of inputs and target. Its errors are those of :func:`relevance`, and a ValueError if shape, dtype,
        device or entries are not the example's. If the model branches on values, on whether a mask has padding for
        instance, and a batch takes another branch than the example, that batch runs as :func:`relevance`.

    Raises:
        TypeError, ValueError: as :func:`relevance`; or create_graph, parameters in pieces on several processes (FSDP,
            ZeRO), or a model that takes values out of tensors by numpy, tolist or DLPack.
    """
    if options.get("create_graph"):
        raise ValueError("create_graph must be False in a capture, got True: what is recorded has no gradient")
    relevance(model, inputs, target, **options)  # refuses what is wrong, and lets a model make what it makes once
    if is_sharded(model):
        raise ValueError("model must not have its parameters in pieces on several processes (FSDP, ZeRO) in a capture")
    entries = _entries(inputs, target)
    example = {name: _kind(name, value) for name, value in entries.items()}
    strides = {name: torch.empty_like(x).stride() for name, x in entries.items() if isinstance(x, Tensor)}
    own = {name: _laid(entries[name], stride).detach() for name, stride in strides.items()}
    recorder = Recorder(list(own.values()))
    if isinstance(inputs, Mapping):
        inputs = {key: own.get(_name(key), value) for key, value in inputs.items()}
    else:
        inputs = own["inputs"]
    with recorder:
        found = relevance(model, inputs, own.get("target", target), **options)
    return _Captured(model, options, example, strides, recorder.finished(found), recorder.has_draws)


@dataclass(frozen=True)
class _Captured:
    """What :func:`capture` returns."""

    model: nn.Module
    options: dict[str, Any]
    example: dict[str, Any]
    strides: dict[str, tuple[int, ...]]
    run: Callable[..., Tensor]
    has_draws: bool

    def __call__(self, inputs: Inputs, target: Tensor | str) -> Tensor:
        entries = _entries(inputs, target)
        if entries.keys() != self.example.keys():
            wanted, got = (", ".join(name for name in names if name != "target") for names in (self.example, entries))
            raise ValueError(f"inputs must be what they were in the example, {wanted}, got {got}")
        for name, wanted in self.example.items():
            got = _kind(name, entries[name])
            if got != wanted:
                raise ValueError(f"{name} must be {wanted} as in the example, got {got}; capture once for each kind")
        given = [_laid(entries[name], stride) for name, stride in self.strides.items()]
        device = given[0].device
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if torch.is_autocast_enabled(device.type):
                stack.enter_context(torch.autocast(device.type, enabled=False))
            if self.has_draws:
                stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            with contextlib.suppress(Diverged):
                return self.run(*given)
        return relevance(self.model, inputs, target, **self.options)


class _Kind(NamedTuple):
    """What is the same in all tensors that take the place of one."""

    dtype: torch.dtype
    shape: torch.Size
    device: torch.device

    def __str__(self) -> str:
        return f"{self.dtype} of shape {tuple(self.shape)} on {self.device}"


def _kind(name: str, value: Any) -> Any:
    """Of a tensor its kind, else the value."""
    if isinstance(value, Tensor):
        return _Kind(value.dtype, value.shape, value.device)
    if tensors(value):
        raise ValueError(
            f"{name} must be a tensor, or hold none, in a capture, got a {type(value).__name__} of tensors"
        )
    return value


def _laid(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The tensor in memory as the operators were recorded for."""
    return x if x.stride() == stride else torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device).copy_(x)


def _name(key: str) -> str:
    return f"inputs[{key!r}]"


def _entries(inputs: Inputs, target: Tensor | str) -> dict[str, Any]:
    """What a batch consists of, by the names that messages have for it; labels are left out."""
    if not isinstance(inputs, Mapping):
        return {"inputs": inputs, "target": target}
    return {**{_name(key): value for key, value in inputs.items() if key != "labels"}, "target": target}
