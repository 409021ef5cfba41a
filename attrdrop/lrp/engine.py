"""The propagation: a torch function mode that turns a model's ordinary gradient into LRP coefficients.

It sees every torch function that the model calls, in the order in which data flow, and nothing is done to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attrdrop.lrp import decompositions, recurrent
from attrdrop.lrp import torch_functions as known
from attrdrop.lrp.activations import Activations, Active, Seen
from attrdrop.lrp.handlers import HANDLERS, Handler, batch_norm, dropout, relu, unfollowed, unknown, written
from attrdrop.lrp.nests import each

ATTENTIONS = ("attnlrp", "detach")


def in_parts(propagation: Propagation, seen: Seen, /, *args: Any, **kwargs: Any) -> Any:
    """A composed function as its parts, each of which meets its own rule."""
    with propagation:
        return decompositions.PARTS[seen.base](*args, **kwargs)


def in_steps(propagation: Propagation, seen: Seen, /, *args: Any, **kwargs: Any) -> Any:
    """The equations of a recurrent cell; all its layers and places have the rule of its module, as one layer."""
    args = each(args, propagation.unmoved)
    propagation.rule_in_force = propagation.choices.rule("linear", False, seen.base)
    try:
        with propagation:
            return recurrent.run(seen.base, propagation.still, *args, **kwargs)
    finally:
        propagation.rule_in_force = None


COMPOSED: dict[str, Handler] = {
    **dict.fromkeys(decompositions.PARTS, in_parts),
    **dict.fromkeys(recurrent.FUNCTIONS, in_steps),
}
"""Functions that the propagation sees the parts of, by name."""

WAITING = {batch_norm, relu, dropout, written, in_parts, in_steps}
"""Handlers that may be given a linear layer's output before its gate is in place; others get the gated one."""


class Meaning(NamedTuple):
    """What a torch function is to the propagation: its name, whether it changes a tensor in place, and its handler.

    handler None: it tells nothing of values. ready_for: the name, where the handler is given activations with their
    gates in place. hook: the function is left out, and this returned.
    """

    base: str = ""
    is_in_place: bool = False
    handler: Handler | None = None
    ready_for: str = ""
    hook: Callable[[], Any] | None = None


def _meaning(func: Any) -> Meaning:
    hook = known.HOOKS.get(func.__name__)
    base, is_in_place = known.identify(func)
    if hook is not None or base is None or base in known.SIZES:
        return Meaning(hook=hook)
    handler = _handler(base)
    return Meaning(base, is_in_place, handler, "" if is_in_place or handler in WAITING else base)


def _handler(base: str) -> Handler:
    return COMPOSED.get(base) or HANDLERS.get(base, unknown)


_meaning_once = lru_cache(maxsize=4096)(_meaning)


class Propagation(Activations, TorchFunctionMode):
    """Inside it, gradients of a model's outputs are LRP coefficients c, with R = a c at every activation."""

    is_busy = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if self.is_busy:  # torch.compile traces into a custom autograd.Function with the mode on
            return func(*args, **kwargs)
        base, is_in_place, handler, ready_for, hook = _meaning(func) if self.facts.is_compiling else _meaning_once(func)
        if hook is not None:
            return hook()
        if self.composite is None:
            return func(*each(args, self._untaught), **each(kwargs, self._untaught))
        if handler is None:
            return func(*args, **kwargs)
        if base == "setitem" and isinstance(args[2], Tensor):
            self.facts.unspoil(args[0], args[2])
        is_followed = torch.is_grad_enabled()
        ready_for = ready_for if is_followed else ""
        active: Active = []
        args = self.meant(args, active, ready_for)
        if kwargs:
            kwargs = self.meant(kwargs, active, ready_for)
        if not active:
            return self.constants(func(*args, **kwargs))
        if not args and "input" in kwargs and base not in known.INPUT_IS_LATER:
            args, kwargs = (kwargs["input"],), _without(kwargs, "input")
        seen = Seen(func, base, active)
        if not is_followed:
            return self._run(unfollowed, seen, args, kwargs)
        if is_in_place:
            return self._in_place(seen, args, kwargs)
        if "inplace" not in kwargs:
            return self._run(handler, seen, args, kwargs)
        result = self._run(handler, seen, args, _without(kwargs, "inplace"))
        if kwargs["inplace"]:  # torch.nn.functional hands options over by keyword
            self.replace(args[0], result)
        return result

    def _run(self, handler: Handler, seen: Seen, args: tuple, kwargs: dict) -> Any:
        """What the handler makes of a function; those that it calls are not seen in turn, unless they are its parts."""
        self.is_busy = handler not in (in_parts, in_steps)
        try:
            return handler(self, seen, *args, **kwargs)
        finally:
            self.is_busy = False

    def unmoved(self, x: Tensor) -> Tensor:
        """The activation as one that does not count as the input: a rule for the first layer is not for it."""
        if not self.is_active(x):
            return x
        x = self.finished(x)
        with torch._C.DisableTorchFunction():
            y = x.view_as(x)
        self.facts.note(y, is_nonnegative=self.fact(x).is_nonnegative)
        return y

    def _in_place(self, seen: Seen, args: tuple, kwargs: dict) -> Any:
        """A change in place becomes a new tensor that later uses of the old one mean."""
        target, base = args[0], known.OUT_OF_PLACE.get(seen.base, seen.base)
        out_of_place = getattr(torch.Tensor, base, None) or getattr(functional, base, None)
        handler = written if out_of_place is None else _handler(base)
        seen = Seen(out_of_place or seen.func, base, seen.active)
        if handler not in WAITING:
            seen, args, kwargs = self.ready(seen.func, base, args, kwargs)
        result = self._run(handler, seen, args, kwargs)
        self.facts.spoil(target, result)
        self.replace(target, result)
        return None if base == "setitem" else result

    def _untaught(self, x: Tensor) -> Tensor:
        """Without graph, if it is a parameter."""
        return x.detach() if self.walk is None and isinstance(x, nn.Parameter) else x


def _without(options: dict, name: str) -> dict:
    return {key: value for key, value in options.items() if key != name}
