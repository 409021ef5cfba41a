"""What is done instead of each torch function that activations meet, so that its gradient leads relevance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attrdrop.lrp import decompositions
from attrdrop.lrp import torch_functions as known
from attrdrop.lrp.activations import NOTHING, Activations, Seen
from attrdrop.lrp.calls import LinearCall
from attrdrop.lrp.carriers import Carried, Relevance
from attrdrop.lrp.gates import Pending, proportional, scaled
from attrdrop.lrp.nests import each, tensors

Handler = Callable[..., Any]
"""Called with the activations, the function that is seen, and its arguments; returns what the model gets of it."""


def linear(
    of: Activations, seen: Seen, /, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    *rest: Any, **options: Any,
) -> Tensor:  # fmt: skip
    """A linear layer; its gate waits for what follows. With weights that are activations it is a product."""
    fact = NOTHING
    for x, known_of_x in seen.active:
        if x is weight:
            return product(of, seen, input, weight, bias, *rest, **options)
        fact = known_of_x if x is input else fact
    is_conv = seen.base != "linear"
    rule = of.rule_in_force or of.choices.rule("conv" if is_conv else "linear", fact.is_raw, seen.base)
    call = LinearCall(
        seen.func, input, weight, bias, rest, options, is_conv, "transpose" in seen.base, fact.is_nonnegative,
        fact.carrier,
    )  # fmt: skip
    z = call.run(input, weight, bias)
    misfit = rule.misfit(call, z)
    if misfit is not None:
        raise ValueError(f"{of.choices.running_words()}{misfit}")
    of.linear_layers += 1
    of.facts.note(z, pending=Pending(rule, call))
    return z


def batch_norm(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Tensor:
    return _affine_by_channel(of, *known.batch_norm_arguments(seen.func, args), **kwargs)


def _affine_by_channel(
    of: Activations,
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
        var, mean = torch.var_mean(of.still(of.finished(input)), axes, correction=0)
    wide = torch.promote_types(var.dtype, torch.float32)
    scale = torch.rsqrt(var.to(wide) + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    fact = of.facts.get(input)
    before = fact.pending if fact is not None else None
    if before is not None and before.takes_affine(input, scale.numel()):
        pending = Pending(before.rule, before.call, scale, shift)
        of.choices.tell("batch_norm", None)
    else:
        input = of.finished(input)
        of.check_seen(input, "batch_norm works on")
        pending = Pending(of.choices.norm_rule("batch_norm"), None, scale, shift)
    stand_in = input.view_as(input)  # not the value yet: whoever uses it gets the finished one
    of.facts.note(stand_in, pending=pending)
    return stand_in


def relu(of: Activations, seen: Seen, /, x: Tensor, *rest: Any, **options: Any) -> Tensor:
    fact = of.facts.get(x)
    if fact is not None and fact.pending is not None:
        y = fact.pending.finish(x, of.walk, relu=True)
    else:
        x = of.finished(x)
        of.check_seen(x, "relu works on")
        y = functional.relu(x)
    of.facts.note(y, is_nonnegative=True)
    return y


def dropout(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Tensor:
    if not kwargs.get("training", args[2] if len(args) > 2 else True):
        return args[0]
    seen, args, kwargs = of.ready(seen.func, seen.base, args, kwargs)
    return carried(of, seen, *args, **kwargs)


def carried(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Any:
    """What the ordinary gradient is right for."""
    return of.noted(seen.func(*args, **kwargs), seen, args, kwargs)


def iterated(of: Activations, seen: Seen, /, x: Tensor) -> Iterator[Tensor]:
    return iter(carried(of, Seen(torch.unbind, "unbind", seen.active), x))


def constant(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Any:
    return of.constants(seen.func(*each(args, of.still), **each(kwargs, of.still)))


def quotient(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Tensor:
    args, kwargs = (args[0], *each(args[1:], of.still)), each(kwargs, of.still)
    of_first = [entry for entry in seen.active if entry[0] is args[0]][:1]
    return carried(of, Seen(seen.func, seen.base, of_first), *args, **kwargs)


def product(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Tensor:
    """Of two activations each takes half; a gate takes nothing. With a constant it is a linear layer."""
    active = seen.active
    if len(active) > 1:
        gates = [id(x) for x, fact in active if fact.is_gate]
        if 0 < len(gates) < len(active):
            args = each(args, lambda x: of.still(x) if id(x) in gates else x)
        else:
            ids = [id(x) for x, _ in active]
            factors = [x for x in tensors(args) if id(x) in ids]
            halves = iter(scaled(of.walk, factors, [0.5] * len(factors)))
            args = each(args, lambda x: next(halves) if id(x) in ids else x)
        return of.noted(seen.func(*args, **kwargs), seen)
    if active and seen.base in known.MATRIX_PRODUCTS:
        y = seen.func(*args, **kwargs)
        of.linear_layers += 1
        of.facts.note(y, pending=Pending(of.choices.norm_rule(seen.base), None))
        return y
    return carried(of, seen, *args, **kwargs)


def activation(of: Activations, seen: Seen, /, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """y = f(z) with the gradient c (f(z) - f(0)) / z."""
    y = of.still(seen.func(z, *args, **kwargs))
    at_zero = None
    if seen.base in known.SHIFTED:
        at_zero = seen.func(z.detach().new_zeros(()), *args, **kwargs).detach()
    y = proportional(of.walk, y if at_zero is None else y - at_zero, z.to(y.dtype))
    y = y if at_zero is None else y + at_zero
    of.facts.note(y, is_gate=seen.base in known.GATES)
    return y


def statistic(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Any:
    """A constant; of a deviation and a mean, the mean is an activation."""
    result = seen.func(*args, **kwargs)
    if seen.base not in ("var_mean", "std_mean"):
        return each(result, of.still)
    of.facts.note(result[1])
    return of.still(result[0]), result[1]


def power(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Any:
    if not any(x is args[0] for x, _ in seen.active):
        return unknown(of, seen, *args, **kwargs)
    treat = statistic if known.is_reciprocal(args, kwargs) else activation
    return treat(of, seen, *args, **kwargs)


def norm(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Tensor:
    return of.noted(decompositions.NORMS[seen.base](*args, **kwargs, still=of.still), seen)


def softmax(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Tensor:
    y = seen.func(*args, **kwargs)
    of.facts.note(y, is_gate=seen.base == "softmax" and of.attention == "detach")
    return y


def attention(
    of: Activations, seen: Seen, /, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
) -> Tensor:
    """softmax(q kᵀ) v: AttnLRP halves at each of the two products, or the probabilities are constants."""
    if of.attention == "detach":
        query, key = of.still(query), of.still(key)
    else:
        query, key, value = scaled(of.walk, [query, key, value], [0.25, 0.25, 0.5])
    return of.noted(seen.func(query, key, value, *rest, **options), seen)


def grouped(
    of: Activations, seen: Seen, /, points: Tensor, index: Tensor, centres: Tensor | None = None, **options: Any
) -> Tensor:
    """Points seen from centres, which are constants: what a point gets is its own, wherever it is seen from."""
    if centres is None:
        return carried(of, seen, points, index, centres=None, **options)
    if of.walk is not None:
        raise ValueError("create_graph does not support points grouped around centres")
    fact = of.fact(points)
    carrier = seen.func(Relevance.apply(points) if fact.carrier is None else fact.carrier, index, **options)
    y = Carried.apply(seen.func(points.detach(), index, centres=centres.detach(), **options), carrier)
    of.facts.note(y, is_raw=fact.is_raw, carrier=carrier)
    return y


def unknown(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Any:
    """The plain gradient, where it is asked for."""
    of.refuse(f"no rule covers the function {seen.base}")
    return of.noted(seen.func(*args, **kwargs), seen)


def written(of: Activations, seen: Seen, /, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A copy of the target, changed by a function that exists in place only."""
    if seen.base not in known.WRITES:
        of.refuse(f"no rule covers the function {seen.base}_")
    result = of.finished(target).clone()
    seen.func(result, *each(args, of.finished), **each(kwargs, of.finished))
    of.facts.note(result)
    return result


def unfollowed(of: Activations, seen: Seen, /, *args: Any, **kwargs: Any) -> Any:
    """What a model does with gradients off, as within a custom autograd.Function: a view still is an activation."""
    if known.identify(seen.func)[1] and any(x is args[0] for x, _ in seen.active):
        raise ValueError(
            f"{of.choices.running_words()}the model changes an activation in place where gradients are off, "
            "which attribution cannot follow; use an out-of-place form"
        )
    active = [of.finished(x) for x, _ in seen.active]
    result = seen.func(*each(args, of.finished), **each(kwargs, of.finished))
    if seen.base in known.MOVES and len({id(x) for x in active}) == 1:
        fact = of.fact(active[0])
        source = active[0] if fact.source is None else fact.source
        for y in tensors(result):
            if y.requires_grad and y.grad_fn is None:
                of.facts.note(y, source=source, is_nonnegative=fact.is_nonnegative, is_raw=fact.is_raw)
    return result


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(known.CONSTANTS, constant),
    **dict.fromkeys(known.MOVES | known.SUMS, carried),
    **dict.fromkeys(known.DROPOUTS, dropout),
    **dict.fromkeys(known.PRODUCTS | known.MATRIX_PRODUCTS, product),
    **dict.fromkeys(known.LINEAR, linear),
    **dict.fromkeys(known.QUOTIENTS, quotient),
    **dict.fromkeys(known.STATISTICS, statistic),
    **dict.fromkeys(known.ACTIVATIONS, activation),
    **dict.fromkeys(decompositions.NORMS, norm),
    "batch_norm": batch_norm,
    "relu": relu,
    "pow": power,
    "softmax": softmax,
    "log_softmax": softmax,
    "scaled_dot_product_attention": attention,
    "group_points": grouped,
    "iter": iterated,
}
"""By the name of a function."""
