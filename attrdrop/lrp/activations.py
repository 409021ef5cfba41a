"""The activations of a forward: which tensors they are, what is known of them, and what later uses of them mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrdrop.lrp import torch_functions as known
from attrdrop.lrp.choices import Choices
from attrdrop.lrp.facts import Fact, Facts, comes_from
from attrdrop.lrp.nests import each, tensors
from attrdrop.lrp.rules import LayerRule, Rule
from attrdrop.lrp.twice import Walk

OPAQUE = "code that attribution cannot see into, such as a custom autograd.Function"
NOTHING = Fact(lambda: None)
"""What is known of an activation that came about unseen."""


Active = list[tuple[Tensor, Fact]]
"""Activations among the arguments of a function, each with what is known of it."""


@dataclass(slots=True)
class Seen:
    """A function that the model calls, its name, and the activations among its arguments."""

    func: Any
    base: str
    active: Active


class Activations:
    """Those of one forward, and what the functions that it calls make of them.

    Args:
        composite: rules by layer; None leaves the gradient as it is.
        attention: see :func:`attrdrop.lrp.relevance`.
        unknown: "error", or "gradient" to let the plain gradient through functions that have no rule.
        model: for the names of its modules.
        is_twice: whether relevance is to have a gradient of its own.
    """

    def __init__(
        self, composite: Rule | None, attention: str, unknown: str, model: nn.Module, is_twice: bool = False
    ) -> None:
        super().__init__()
        self.walk = Walk() if is_twice else None
        self.composite, self.attention, self.unknown = composite, attention, unknown
        self.choices = Choices(composite, model, is_twice)
        self.facts = Facts()
        self.roots: list[Tensor] = []
        self.linear_layers = 0
        self.rule_in_force: LayerRule | None = None

    def start(self, x: Tensor, carrier: Tensor | None = None, is_raw: bool = True) -> None:
        """Declares an activation that relevance is wanted for; carrier: zeros that receive it as their gradient."""
        self.roots += [x] if carrier is None else [x, carrier]
        self.facts.note(x, carrier=carrier, is_raw=is_raw)

    def root(self, x: Tensor) -> Tensor:
        """The activation as one where the walk ends."""
        if self.walk is None or not x.requires_grad:
            return x.detach().requires_grad_(True)
        return x.view_as(x)

    def still(self, x: Tensor) -> Tensor:
        """The activation as a constant."""
        if self.walk is None or not x.requires_grad:
            return x.detach()
        with torch._C.DisableTorchFunction():
            return self.constants(self.walk.still(x))

    def constants(self, result: Any) -> Any:
        """What came about of constants alone: with a graph only where relevance is to have a gradient."""
        if self.walk is not None:
            for x in tensors(result):
                if x.requires_grad:
                    self.facts.note(x, is_constant=True)
        return result

    def finished(self, x: Tensor) -> Tensor:
        """The activation that x stands for, with its gate in place."""
        fact = self.facts.get(x)
        while fact is not None:
            if fact.pending is not None:
                self._finish(x, fact)
            if fact.replacement is None:
                break
            x = fact.replacement
            fact = self.facts.get(x)
        return x

    def _finish(self, x: Tensor, fact: Fact) -> None:
        pending = fact.pending
        assert pending is not None
        if self.walk is not None or self.facts.is_compiling or not pending.is_identity(x):
            with torch.enable_grad():  # the model may be looking on without, and use it later
                fact.replacement = pending.finish(x, self.walk, relu=False)
            self.facts.note(fact.replacement)
        fact.pending = None

    def check_seen(self, x: Tensor, what: str) -> None:
        """Refuses an activation that came about unseen."""
        is_unseen = self.composite is not None and x.requires_grad and self.facts.get(x) is None
        if is_unseen and not self.facts.is_compiling:
            self.refuse(f"{what} the result of {OPAQUE}")

    def refuse(self, reason: str) -> None:
        """An error, unless the plain gradient is asked for where nothing else is known."""
        if self.unknown == "gradient":
            return
        where = self.choices.running_words()
        raise ValueError(f"{where}{reason}; unknown='gradient' passes the plain gradient through")

    def ready(self, func: Any, base: str, args: tuple, kwargs: dict) -> tuple[Seen, tuple, dict]:
        """A function and its arguments, activations with their gates in place, all of which came about seen."""
        seen = Seen(func, base, [])
        return seen, self.meant(args, seen.active, base), self.meant(kwargs, seen.active, base) if kwargs else kwargs

    def meant(self, nest: Any, active: Active, ready_for: str = "") -> Any:
        """The nest of arguments with its tensors as what they mean now, itself where that is what they are.

        Parameters become constants, a changed tensor what it was changed to. Activations are added to ``active``;
        ready_for: with their gates in place, and seen, for the function of that name.
        """
        changed: Any = None
        is_dict = isinstance(nest, dict)
        for place, x in nest.items() if is_dict else enumerate(nest):
            if type(x) in known.LEAVES:
                continue
            if isinstance(x, Tensor):
                meaning = self._meant(x, active, ready_for)
            elif isinstance(x, (tuple, list, dict)):
                meaning = self.meant(x, active, ready_for)
            else:
                continue
            if meaning is not x:
                if changed is None:
                    changed = dict(nest) if is_dict else list(nest)
                changed[place] = meaning
        if changed is None:
            return nest
        if is_dict:
            return changed
        return type(nest)(*changed) if hasattr(nest, "_fields") else type(nest)(changed)

    def _meant(self, x: Tensor, active: Active, ready_for: str) -> Tensor:
        fact = self.facts.get(x)
        while fact is not None and fact.replacement is not None:
            x = fact.replacement
            fact = self.facts.get(x)
        if fact is None:
            if not x.requires_grad:
                return x
            if isinstance(x, nn.Parameter) or not comes_from(x, self.roots):
                return x.detach() if self.walk is None else self.constants(x)
            fact = NOTHING
        if fact.spoiler is not None:
            raise ValueError(
                f"{self.choices.running_words()}it uses an activation whose memory the model changed in place through "
                "a view, which attribution cannot follow; use an out-of-place form"
            )
        if fact.pending is not None:
            if ready_for:
                x = self.finished(x)
                fact = self.fact(x)
        elif not x.requires_grad or fact.is_constant:
            return x
        if ready_for and fact is NOTHING:
            self.check_seen(x, f"{ready_for} works on")
        active.append((x, fact))
        return x

    def noted(self, result: Any, seen: Seen, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Notes results; given the arguments, with what holds for the activations among them and stays true."""
        base, is_nonnegative, is_gate, is_raw, carriers = seen.base, False, False, False, None
        if args or kwargs:
            kwargs = kwargs or {}
            is_nonnegative = is_raw = has_carrier = bool(seen.active)
            for _, fact in seen.active:
                is_nonnegative, is_raw = is_nonnegative and fact.is_nonnegative, is_raw and fact.is_raw
                has_carrier = has_carrier and fact.carrier is not None
            is_nonnegative = is_nonnegative and self._stays_nonnegative(base, args, kwargs)
            is_gate = len(seen.active) == 1 and seen.active[0][1].is_gate and base in known.GATE_KEPT
            if is_raw and has_carrier:
                carriers = self._moved_carrier(result, seen, args, kwargs)
        carried = [] if carriers is None else tensors(carriers)
        for place, y in enumerate((result,) if isinstance(result, Tensor) else tensors(result)):
            if y.requires_grad:
                carrier = carried[place] if place < len(carried) else None
                self.facts.note(y, is_nonnegative=is_nonnegative, is_gate=is_gate, is_raw=is_raw, carrier=carrier)
        return result

    def _stays_nonnegative(self, base: str, args: tuple, kwargs: dict) -> bool:
        if base not in known.NONNEGATIVE_KEPT or (base in known.ADDITIONS and not _are_tensors(args, kwargs)):
            return False
        facts = [self.facts.get(x) for x in tensors((args, kwargs)) if x.is_floating_point()]
        return bool(facts) and all(fact is not None and fact.is_nonnegative for fact in facts)

    def _moved_carrier(self, result: Any, seen: Seen, args: tuple, kwargs: dict) -> Any:
        """The carrier after a move of the input; adding and scaling leave it where it is."""
        if seen.base in known.MOVES:
            return seen.func(*each(args, self._carrier_of), **each(kwargs, self._carrier_of))
        carrier = seen.active[0][1].carrier
        is_in_place = carrier is not None and carrier.shape == getattr(result, "shape", None)
        return carrier if seen.base in known.ELEMENTWISE and is_in_place else None

    def _carrier_of(self, x: Tensor) -> Tensor:
        fact = self.facts.get(x)
        if fact is not None and fact.carrier is not None:
            return fact.carrier
        return torch.zeros_like(x) if x.is_floating_point() else x

    def fact(self, x: Tensor) -> Fact:
        """What is known of x, if anything."""
        return self.facts.get(x) or NOTHING

    def is_active(self, x: Tensor) -> bool:
        fact = self.fact(x)
        return fact.pending is not None or (x.requires_grad and not fact.is_constant)

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Later uses of the old tensor mean the new one."""
        if new is not old:
            fact = self.facts.get(old) or self.facts.note(old)
            fact.pending, fact.replacement = None, new


def _are_tensors(args: tuple, kwargs: dict) -> bool:
    return not kwargs and all(isinstance(x, Tensor) for x in args)
