"""The propagation: a torch function mode that turns a model's ordinary gradient into LRP coefficients.

It sees every torch function that the model calls, in the order in which data flow, and nothing is done to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attrdrop.lrp import decompositions, recurrent
from attrdrop.lrp import torch_functions as known
from attrdrop.lrp.calls import LinearCall
from attrdrop.lrp.carriers import Carried, Relevance
from attrdrop.lrp.choices import Choices
from attrdrop.lrp.facts import Fact, Facts, comes_from
from attrdrop.lrp.gates import Pending, gate, scaled
from attrdrop.lrp.nests import each, tensors
from attrdrop.lrp.rules import LayerRule, Rule
from attrdrop.lrp.twice import Walk

ATTENTIONS = ("attnlrp", "detach")
OPAQUE = "code that attribution cannot see into, such as a custom autograd.Function"


def _finishing(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler, given activations with their gates in place, all of which came about seen."""

    @wraps(handler)
    def treat(self: Propagation, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = each(args, self.finished), each(kwargs, self.finished)
        for x in self._active(args, kwargs):
            self.check_seen(x, f"{base} works on")
        return handler(self, func, base, *args, **kwargs)

    return treat


class Propagation(TorchFunctionMode):
    """Inside it, gradients of a model's outputs are LRP coefficients c, with R = a c at every activation.

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
        self.is_busy = False

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
            return self._constants(self.walk.still(x))

    def finished(self, x: Tensor) -> Tensor:
        """The activation that x stands for, with its gate in place."""
        fact = self.facts.get(x)
        while fact is not None:
            if fact.pending is not None:
                with torch.enable_grad():  # the model may be looking on without, and use it later
                    fact.replacement = fact.pending.finish(x, self.walk, relu=False)
                fact.pending = None
                self.facts.note(fact.replacement)
            if fact.replacement is None:
                break
            x = fact.replacement
            fact = self.facts.get(x)
        return x

    def check_seen(self, x: Tensor, what: str) -> None:
        """Refuses an activation that came about unseen."""
        is_unseen = self.composite is not None and x.requires_grad and self.facts.get(x) is None
        if is_unseen and not torch.compiler.is_compiling():
            self._refuse(f"{what} the result of {OPAQUE}")

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.is_busy:  # torch.compile traces into a custom autograd.Function with the mode on
            return func(*args, **kwargs)
        if func.__name__ in known.HOOKS:
            return known.HOOKS[func.__name__]()
        if self.composite is None:
            return func(*each(args, self._untaught), **each(kwargs, self._untaught))
        base, is_in_place = known.identify(func)
        if base is None or base in known.SIZES:
            return func(*args, **kwargs)
        if base == "setitem" and isinstance(args[2], Tensor):
            self.facts.unspoil(args[0], args[2])
        args, kwargs = each(args, self._current), each(kwargs, self._current)
        if not self._active(args, kwargs):
            return self._constants(func(*args, **kwargs))
        if not args and "input" in kwargs and base not in known.INPUT_IS_LATER:
            args = (kwargs.pop("input"),)
        if not torch.is_grad_enabled():
            return self._busily(self._without_gradient, func, base, args, kwargs)
        if is_in_place:
            return self._in_place(func, base, args, kwargs)
        replaces = kwargs.pop("inplace", False)  # torch.nn.functional hands options over by keyword
        result = self._run(func, base, args, kwargs)
        if replaces:
            self._replace(args[0], result)
        return result

    def _run(self, func: Any, base: str, args: tuple, kwargs: dict) -> Any:
        """One out-of-place function of activations; a composed one as its parts, each of which meets its own rule."""
        if base in decompositions.PARTS:
            with self:
                return decompositions.PARTS[base](*args, **kwargs)
        if base in recurrent.FUNCTIONS:
            return self._recurrent(base, args, kwargs)
        return self._busily(self._apply, func, base, args, kwargs)

    def _recurrent(self, base: str, args: tuple, kwargs: dict) -> Any:
        """The equations of a cell; all its layers and places have the rule of its module, as one layer."""
        args = each(args, self._unmoved)
        self.rule_in_force = self.choices.rule("linear", False, base)
        try:
            with self:
                return recurrent.run(base, self.still, *args, **kwargs)
        finally:
            self.rule_in_force = None

    def _unmoved(self, x: Tensor) -> Tensor:
        """The activation as one that does not count as the input: a rule for the first layer is not for it."""
        if not self._is_active(x):
            return x
        x = self.finished(x)
        with torch._C.DisableTorchFunction():
            y = x.view_as(x)
        self.facts.note(y, is_nonnegative=self._fact(x).is_nonnegative)
        return y

    def _without_gradient(self, func: Any, base: str, args: tuple, kwargs: dict) -> Any:
        """What a model does with gradients off, as within a custom autograd.Function: a view still is an activation."""
        if known.identify(func)[1] and self._is_active(args[0]):
            raise ValueError(
                f"{self.choices.running_words()}the model changes an activation in place where gradients are off, "
                "which attribution cannot follow; use an out-of-place form"
            )
        args, kwargs = each(args, self.finished), each(kwargs, self.finished)
        active = self._active(args, kwargs)
        result = func(*args, **kwargs)
        if base in known.MOVES and len({id(x) for x in active}) == 1:
            fact = self._fact(active[0])
            source = active[0] if fact.source is None else fact.source
            for y in tensors(result):
                if y.requires_grad and y.grad_fn is None:
                    self.facts.note(y, source=source, is_nonnegative=fact.is_nonnegative, is_raw=fact.is_raw)
        return result

    def _in_place(self, func: Any, base: str, args: tuple, kwargs: dict) -> Any:
        """A change in place becomes a new tensor that later uses of the old one mean."""
        target, base = args[0], known.OUT_OF_PLACE.get(base, base)
        out_of_place = getattr(torch.Tensor, base, None) or getattr(functional, base, None)
        if out_of_place is not None:
            result = self._run(out_of_place, base, args, kwargs)
        else:
            result = self._busily(self._write, func, base, args, kwargs)
        self.facts.spoil(target, result)
        self._replace(target, result)
        return None if base == "setitem" else result

    def _busily(self, treat: Callable, func: Any, base: str, args: tuple, kwargs: dict) -> Any:
        """What treat returns; the functions that it calls are not treated in turn."""
        self.is_busy = True
        try:
            return treat(func, base, args, kwargs)
        finally:
            self.is_busy = False

    def _apply(self, func: Any, base: str, args: tuple, kwargs: dict) -> Any:
        """What the function's handler makes of it."""
        return HANDLERS.get(base, Propagation._unknown)(self, func, base, *args, **kwargs)

    def _write(self, func: Any, base: str, args: tuple, kwargs: dict) -> Tensor:
        """A copy of the first argument, changed by a function that exists in place only."""
        if base not in known.WRITES:
            self._refuse(f"no rule covers the function {base}_")
        result = self.finished(args[0]).clone()
        func(result, *each(args[1:], self.finished), **each(kwargs, self.finished))
        self.facts.note(result)
        return result

    def _linear(
        self, func: Any, base: str, /, input: Tensor, weight: Tensor, bias: Tensor | None = None,
        *rest: Any, **options: Any,
    ) -> Tensor:  # fmt: skip
        """A linear layer; its gate waits for what follows. With weights that are activations it is a product."""
        if self._is_active(weight):
            return self._product(func, base, input, weight, bias, *rest, **options)
        input = self.finished(input)
        self.check_seen(input, f"{base} works on")
        fact = self._fact(input)
        is_conv = base != "linear"
        rule = self.rule_in_force or self.choices.rule("conv" if is_conv else "linear", fact.is_raw, base)
        call = LinearCall(
            func, input, weight, bias, rest, options, is_conv, "transpose" in base, fact.is_nonnegative, fact.carrier
        )
        z = call.run(input, weight, bias)
        misfit = rule.misfit(call, z)
        if misfit is not None:
            raise ValueError(f"{self.choices.running_words()}{misfit}")
        self.linear_layers += 1
        self.facts.note(z, pending=Pending(rule, call))
        return z

    def _batch_norm(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Tensor:
        return self._affine_by_channel(*known.batch_norm_arguments(func, args), **kwargs)

    def _affine_by_channel(
        self,
        input: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """An affine map per channel: part of the linear layer before it, or a linear layer of its own."""
        if mean is None or var is None or training:
            axes = [0, *range(2, input.dim())]
            var, mean = torch.var_mean(self.still(self.finished(input)), axes, correction=0)
        wide = torch.promote_types(var.dtype, torch.float32)
        scale = torch.rsqrt(var.to(wide) + eps)
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        fact = self.facts.get(input)
        before = fact.pending if fact is not None else None
        if before is not None and before.takes_affine(input, scale.numel()):
            pending = Pending(before.rule, before.call, scale, shift)
            self.choices.tell("batch_norm", None)
        else:
            input = self.finished(input)
            self.check_seen(input, "batch_norm works on")
            pending = Pending(self.choices.norm_rule("batch_norm"), None, scale, shift)
        stand_in = input.view_as(input)  # not the value yet: whoever uses it gets the finished one
        self.facts.note(stand_in, pending=pending)
        return stand_in

    def _relu(self, func: Any, base: str, /, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        fact = self.facts.get(x)
        if fact is not None and fact.pending is not None:
            y = fact.pending.finish(x, self.walk, relu=True)
        else:
            x = self.finished(x)
            self.check_seen(x, "relu works on")
            y = functional.relu(x)
        self.facts.note(y, is_nonnegative=True)
        return y

    def _dropout(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Tensor:
        if not kwargs.get("training", args[2] if len(args) > 2 else True):
            return args[0]
        return self._carried(func, base, *args, **kwargs)

    @_finishing
    def _carried(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Any:
        """What the ordinary gradient is right for."""
        return self._noted(func(*args, **kwargs), base, func, args, kwargs)

    @_finishing
    def _iterated(self, func: Any, base: str, /, x: Tensor) -> Iterator[Tensor]:
        return iter(self._noted(x.unbind(0), "unbind", torch.unbind, (x,)))

    @_finishing
    def _constant(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Any:
        return self._constants(func(*each(args, self.still), **each(kwargs, self.still)))

    @_finishing
    def _quotient(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = (args[0], *each(args[1:], self.still)), each(kwargs, self.still)
        return self._noted(func(*args, **kwargs), base, func, args, kwargs)

    @_finishing
    def _product(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Tensor:
        """Of two activations each takes half; a gate takes nothing. With a constant it is a linear layer."""
        active = self._active(args, kwargs)
        if len(active) > 1:
            gates = [x for x in active if self._is_gate(x)]
            if 0 < len(gates) < len(active):
                args = each(args, lambda x: self.still(x) if any(x is gate for gate in gates) else x)
            else:
                args = each(args, lambda x: scaled(self.walk, x, 0.5) if self._is_active(x) else x)
        y = func(*args, **kwargs)
        if base in known.MATRIX_PRODUCTS and len(active) == 1:
            self.linear_layers += 1
            self.facts.note(y, pending=Pending(self.choices.norm_rule(base), None))
            return y
        return self._noted(y, base, func, args, kwargs) if len(active) == 1 else self._noted(y, base)

    @_finishing
    def _activation(self, func: Any, base: str, /, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """y = f(z) with the gradient c (f(z) - f(0)) / z."""
        y = self.still(func(z, *args, **kwargs))
        at_zero = func(z.detach().new_zeros(()), *args, **kwargs).detach() if base in known.SHIFTED else None
        y = gate(self.walk, y if at_zero is None else y - at_zero, 0.0, surrogate=z.to(y.dtype))
        y = y if at_zero is None else y + at_zero
        self.facts.note(y, is_gate=base in known.GATES)
        return y

    @_finishing
    def _statistic(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Any:
        """A constant; of a deviation and a mean, the mean is an activation."""
        result = func(*args, **kwargs)
        if base not in ("var_mean", "std_mean"):
            return each(result, self.still)
        self.facts.note(result[1])
        return self.still(result[0]), result[1]

    def _power(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Any:
        if not (args and isinstance(args[0], Tensor) and self._is_active(args[0])):
            return self._unknown(func, base, *args, **kwargs)
        treat = self._statistic if known.is_reciprocal(args, kwargs) else self._activation
        return treat(func, base, *args, **kwargs)

    @_finishing
    def _norm(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Tensor:
        return self._noted(decompositions.NORMS[base](*args, **kwargs, still=self.still), base)

    @_finishing
    def _softmax(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Tensor:
        y = func(*args, **kwargs)
        self.facts.note(y, is_gate=base == "softmax" and self.attention == "detach")
        return y

    @_finishing
    def _attention(
        self, func: Any, base: str, /, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
    ) -> Tensor:
        """softmax(q kᵀ) v: AttnLRP halves at each of the two products, or the probabilities are constants."""
        if self.attention == "detach":
            query, key = self.still(query), self.still(key)
        else:
            query, key, value = (
                scaled(self.walk, x, factor) for x, factor in ((query, 0.25), (key, 0.25), (value, 0.5))
            )
        return self._noted(func(query, key, value, *rest, **options), "attention")

    @_finishing
    def _grouped(
        self, func: Any, base: str, /, points: Tensor, index: Tensor, centres: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Points seen from centres, which are constants: what a point gets is its own, wherever it is seen from."""
        if centres is None:
            return self._carried(func, base, points, index, centres=None, **options)
        if self.walk is not None:
            raise ValueError("create_graph does not support points grouped around centres")
        fact = self._fact(points)
        carrier = func(Relevance.apply(points) if fact.carrier is None else fact.carrier, index, **options)
        y = Carried.apply(func(points.detach(), index, centres=centres.detach(), **options), carrier)
        self.facts.note(y, is_raw=fact.is_raw, carrier=carrier)
        return y

    @_finishing
    def _unknown(self, func: Any, base: str, /, *args: Any, **kwargs: Any) -> Any:
        """The plain gradient, where it is asked for."""
        self._refuse(f"no rule covers the function {base}")
        return self._noted(func(*args, **kwargs), base)

    def _noted(self, result: Any, base: str, func: Any = None, args: tuple = (), kwargs: Any = None) -> Any:
        """Notes results; given the arguments, with what holds for them and stays true."""
        kwargs = kwargs or {}
        facts = [self._fact(x) for x in self._active(args, kwargs)]
        is_raw = bool(facts) and all(fact.is_raw for fact in facts)
        is_gate = base in known.GATE_KEPT and len(facts) == 1 and facts[0].is_gate
        is_nonnegative = self._stays_nonnegative(base, args, kwargs)
        carriers = None
        if is_raw and all(fact.carrier is not None for fact in facts):
            carriers = self._moved_carrier(result, base, func, args, kwargs)
        carried = tensors(carriers)
        for place, y in enumerate(tensors(result)):
            if y.requires_grad:
                carrier = carried[place] if place < len(carried) else None
                self.facts.note(y, is_nonnegative=is_nonnegative, is_gate=is_gate, is_raw=is_raw, carrier=carrier)
        return result

    def _stays_nonnegative(self, base: str, args: tuple, kwargs: dict) -> bool:
        if base not in known.NONNEGATIVE_KEPT or (base in known.ADDITIONS and not _are_tensors(args, kwargs)):
            return False
        facts = [self.facts.get(x) for x in tensors((args, kwargs)) if x.is_floating_point()]
        return bool(facts) and all(fact is not None and fact.is_nonnegative for fact in facts)

    def _moved_carrier(self, result: Any, base: str, func: Any, args: tuple, kwargs: dict) -> Any:
        """The carrier after a move of the input; adding and scaling leave it where it is."""
        if base in known.MOVES:
            return func(*each(args, self._carrier_of), **each(kwargs, self._carrier_of))
        carrier = self._carrier_of(self._active(args, kwargs)[0])
        return carrier if base in known.ELEMENTWISE and carrier.shape == getattr(result, "shape", None) else None

    def _carrier_of(self, x: Tensor) -> Tensor:
        fact = self.facts.get(x)
        if fact is not None and fact.carrier is not None:
            return fact.carrier
        return torch.zeros_like(x) if x.is_floating_point() else x

    def _replace(self, old: Tensor, new: Tensor) -> None:
        if new is not old:
            fact = self.facts.get(old) or self.facts.note(old)
            fact.pending, fact.replacement = None, new

    def _current(self, x: Tensor) -> Tensor:
        """Parameters as constants; a changed tensor as what it was changed to."""
        x = self.facts.current(x)
        fact = self.facts.get(x)
        if fact is None and x.requires_grad and (isinstance(x, nn.Parameter) or not comes_from(x, self.roots)):
            return x.detach() if self.walk is None else self._constants(x)
        if fact is not None and fact.spoiler is not None:
            raise ValueError(
                f"{self.choices.running_words()}it uses an activation whose memory the model changed in place through "
                "a view, which attribution cannot follow; use an out-of-place form"
            )
        return x

    def _untaught(self, x: Tensor) -> Tensor:
        """Without graph, if it is a parameter."""
        return x.detach() if self.walk is None and isinstance(x, nn.Parameter) else x

    def _constants(self, result: Any) -> Any:
        """What came about of constants alone: with a graph only where relevance is to have a gradient."""
        if self.walk is not None:
            for x in tensors(result):
                if x.requires_grad:
                    self.facts.note(x, is_constant=True)
        return result

    def _fact(self, x: Tensor) -> Fact:
        """What is known about x, if anything."""
        return self.facts.get(x) or Fact(lambda: None)

    def _active(self, args: tuple, kwargs: dict) -> list[Tensor]:
        """The activations among the arguments of a function."""
        return [x for x in tensors((args, kwargs)) if self._is_active(x)]

    def _is_active(self, x: Tensor) -> bool:
        if x.requires_grad:
            return self.walk is None or not self._fact(x).is_constant
        fact = self.facts.get(x)
        return fact is not None and fact.pending is not None

    def _is_gate(self, x: Tensor) -> bool:
        fact = self.facts.get(x)
        return fact is not None and fact.is_gate

    def _refuse(self, reason: str) -> None:
        if self.unknown == "gradient":
            return
        where = self.choices.running_words()
        raise ValueError(f"{where}{reason}; unknown='gradient' passes the plain gradient through")


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(known.CONSTANTS, Propagation._constant),
    **dict.fromkeys(known.MOVES | known.SUMS, Propagation._carried),
    **dict.fromkeys(known.DROPOUTS, Propagation._dropout),
    **dict.fromkeys(known.PRODUCTS | known.MATRIX_PRODUCTS, Propagation._product),
    **dict.fromkeys(known.LINEAR, Propagation._linear),
    **dict.fromkeys(known.QUOTIENTS, Propagation._quotient),
    **dict.fromkeys(known.STATISTICS, Propagation._statistic),
    **dict.fromkeys(known.ACTIVATIONS, Propagation._activation),
    **dict.fromkeys(decompositions.NORMS, Propagation._norm),
    "batch_norm": Propagation._batch_norm,
    "relu": Propagation._relu,
    "pow": Propagation._power,
    "softmax": Propagation._softmax,
    "log_softmax": Propagation._softmax,
    "scaled_dot_product_attention": Propagation._attention,
    "group_points": Propagation._grouped,
    "iter": Propagation._iterated,
}
"""By the name of a function, what is done instead of it: called with the function, its name and its arguments."""


def _are_tensors(args: tuple, kwargs: dict) -> bool:
    return not kwargs and all(isinstance(x, Tensor) for x in args)
