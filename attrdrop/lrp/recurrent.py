"""Recurrent layers as the equations of their cells, whose gates are constants.

Where a gate is multiplied by a signal, the signal takes all relevance (Arras et al., 2017). What enters a cell and the
state before go through one linear layer: R_j = sum_k w_jk a_j R_k / (z_k + eps sign(z_k)), z over both. In a GRU the
reset gate stands between, so that there are two layers, whose sum divides relevance in proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attrdrop.lrp.decompositions import Still

State = tuple[Tensor, ...]
Weights = Sequence[Tensor]
"""Of a cell: those of the input and of the state, their biases where there are any, a projection where there is one."""
Step = Callable[[Tensor, State], State]
"""From what enters a cell, and its state, to the state that follows, of which the first is the output."""


def lstm(weights: Weights, still: Still) -> Step:
    """h and c; gates in the order i, f, g, o."""
    weight, bias, rest = _joined(weights)
    i, f, g, o = weight.chunk(4)
    of_gates = torch.cat([i, f, o])
    for_gates = for_g = None
    if bias is not None:
        i, f, for_g, o = bias.chunk(4)
        for_gates = torch.cat([i, f, o])

    def step(x: Tensor, state: State) -> State:
        h, c = state
        both = torch.cat([x, h], -1)
        i, f, o = torch.sigmoid(functional.linear(still(both), of_gates, for_gates)).chunk(3, -1)
        c = f * c + i * torch.tanh(functional.linear(both, g, for_g))
        h = o * torch.tanh(c)
        return functional.linear(h, rest[0]) if rest else h, c

    return step


def gru(weights: Weights, still: Still) -> Step:
    """h; gates in the order r, z, n."""
    size = weights[1].shape[1]
    of_gates, for_gates, _ = _joined([values[: 2 * size] for values in weights])
    of_x, of_h, *biases = (values[2 * size :] for values in weights)
    for_x, for_h = biases or (None, None)

    def step(x: Tensor, state: State) -> State:
        (h,) = state
        r, z = torch.sigmoid(functional.linear(still(torch.cat([x, h], -1)), of_gates, for_gates)).chunk(2, -1)
        n = torch.tanh(functional.linear(x, of_x, for_x) + r * functional.linear(h, of_h, for_h))
        return ((1 - z) * n + z * h,)

    return step


def rnn(activation: Callable[[Tensor], Tensor]) -> Callable[[Weights, Still], Step]:
    def cell(weights: Weights, still: Still) -> Step:
        weight, bias, _ = _joined(weights)
        return lambda x, state: (activation(functional.linear(torch.cat([x, state[0]], -1), weight, bias)),)

    return cell


CELLS = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn(torch.tanh), "rnn_relu": rnn(torch.relu)}
FUNCTIONS = set(CELLS) | {f"{name}_cell" for name in CELLS}


def run(name: str, still: Still, *args: Any, **kwargs: Any) -> Any:
    """What torch's function of that name returns, of its arguments."""
    if name.endswith("_cell"):
        return _cell(name.removesuffix("_cell"), still, *args, **kwargs)
    if isinstance(args[2], Tensor) or (isinstance(args[1], Tensor) and isinstance(args[2], tuple)):
        return _packed(name, still, *args, **kwargs)
    return _padded(name, still, *args, **kwargs)


def _cell(
    name: str, still: Still, x: Tensor, hx: Any, of_x: Tensor, of_h: Tensor,
    for_x: Tensor | None = None, for_h: Tensor | None = None,
) -> Any:  # fmt: skip
    biases = [] if for_x is None or for_h is None else [for_x, for_h]
    state = CELLS[name]([of_x, of_h, *biases], still)(x, hx if name == "lstm" else (hx,))
    return state if name == "lstm" else state[0]


def _padded(
    name: str, still: Still, x: Tensor, hx: Any, weights: Weights, has_biases: bool, layers: int, dropout: float,
    training: bool, is_both: bool, batch_first: bool,
) -> Any:  # fmt: skip
    """Texts (T, N, D) or (N, T, D)."""
    axis = 1 if batch_first else 0
    y, state = _stacked(name, still, x.unbind(axis), hx, weights, has_biases, layers, is_both)
    return torch.stack(y, axis), *state


def _packed(
    name: str, still: Still, data: Tensor, sizes: Tensor, hx: Any, weights: Weights, has_biases: bool, layers: int,
    dropout: float, training: bool, is_both: bool,
) -> Any:  # fmt: skip
    """Texts one after the other by place, the longest first; sizes: how many have each place."""
    y, state = _stacked(name, still, data.split(sizes.tolist()), hx, weights, has_biases, layers, is_both)
    return torch.cat(y), *state


def _stacked(
    name: str, still: Still, x: Sequence[Tensor], hx: Any, weights: Weights, has_biases: bool, layers: int,
    is_both: bool,
) -> tuple[list[Tensor], State]:  # fmt: skip
    """All layers and directions."""
    states = hx if name == "lstm" else (hx,)
    count = layers * (2 if is_both else 1)
    of_one = len(weights) // count
    finals = []
    y = list(x)
    for layer in range(layers):
        found: list[list[Tensor]] = []
        for place in range(layer * count // layers, (layer + 1) * count // layers):
            own = weights[place * of_one : (place + 1) * of_one]
            outputs, final = _one(CELLS[name](own, still), y, tuple(state[place] for state in states), bool(found))
            found.append(outputs)
            finals.append(final)
        y = found[0] if len(found) == 1 else [torch.cat(both, -1) for both in zip(*found, strict=True)]
    return y, tuple(torch.stack(entries) for entries in zip(*finals, strict=True))


def _one(step: Step, x: Sequence[Tensor], initial: State, is_backward: bool) -> tuple[list[Tensor], State]:
    """One layer in one direction; texts that are over, or not there yet, keep their state."""
    y: list[Tensor] = []
    ended: list[State] = []
    state = initial
    if is_backward:
        state = tuple(entry[: x[-1].shape[0]] for entry in initial)
    for part in reversed(x) if is_backward else x:
        rows, now = part.shape[0], state[0].shape[0]
        if rows > now:
            state = tuple(torch.cat([entry, other[now:rows]]) for entry, other in zip(state, initial, strict=True))
        if rows < now:
            ended.append(tuple(entry[rows:] for entry in state))
            state = tuple(entry[:rows] for entry in state)
        state = step(part, state)
        y.append(state[0])
    for entries in reversed(ended):
        state = tuple(torch.cat(pair) for pair in zip(state, entries, strict=True))
    return y[::-1] if is_backward else y, state


def _joined(weights: Weights) -> tuple[Tensor, Tensor | None, Weights]:
    """Weight and bias of the layer of both [x, h], and what is left, such as a projection."""
    of_x, of_h, *rest = weights
    bias = None
    if len(rest) > 1:
        bias, rest = rest[0] + rest[1], rest[2:]
    return torch.cat([of_x, of_h], -1), bias, rest
