"""Why a pass of AD-DROP is not told of attention."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop._core.modules import evaluation_mode, uncompiled
from attrdrop.addrop.adapters import Carrier
from attrdrop.addrop.passes import AttentionCall
from attrdrop.addrop.scope import Part, unreachable


class _NoPass:
    """Attention as the model has it."""

    def attend(self, call: AttentionCall, plain: Callable[[], Tensor]) -> Tensor:
        return plain()


def why_unreached(
    model: nn.Module, batch: Mapping[str, Any], name: str, part: Part, untold: Collection[nn.Module]
) -> str | None:
    """A sentence about a part of whose attention no pass was told; None where it does not run on this batch."""
    ran, told = set(), set()

    def watch(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ran.add(module)
        if "attrdrop" in kwargs or any(isinstance(value, Carrier) for value in (*args, *kwargs.values())):
            told.add(module)

    handles = [m.register_forward_pre_hook(watch, with_kwargs=True, prepend=True) for m in model.modules()]
    try:
        with evaluation_mode(model), uncompiled(), torch.no_grad():
            model(**batch, attrdrop=_NoPass())
    finally:
        for handle in handles:
            handle.remove()
    if not ran & part.modules:
        return None
    lost = next((module for module in untold if module in part.modules), None)
    if lost is None:
        return unreachable(part.model)
    path = next(path for path, module in model.named_modules() if module is lost).split(".")
    places = [".".join(path[:depth]) for depth in range(len(path) + 1)]  # down to the module itself
    forwarded = [place for place in places if model.get_submodule(place) in ran]
    last = max((index for index, place in enumerate(forwarded) if model.get_submodule(place) in told), default=0)
    culprit, child = forwarded[last], forwarded[min(last + 1, len(forwarded) - 1)]
    above = type(model.get_submodule(culprit))
    is_theirs = above.__module__.startswith("transformers.")
    cure = f"mask another part than attention={name!r}" if is_theirs else "pass **kwargs on"
    return (
        f"{above.__name__}.forward does not pass the keyword attrdrop on to {child} "
        f"({type(model.get_submodule(child)).__name__}), so AD-DROP does not reach the attention there; {cure}"
    )
