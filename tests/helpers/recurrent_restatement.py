"""LRP of recurrent layers restated slowly: relevance itself, text by text and place by place, back through time.

Nothing is shared with the package: no coefficients, no autograd, no torch function mode. Gates take nothing, signals
all (Arras et al., 2017); every linear map obeys the epsilon rule, every sum divides in proportion.
"""

import torch
from torch import Tensor, nn


def restated(layer: nn.RNNBase, x: Tensor, initial: Tensor, relevance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Relevance of x (T, D) and of the initial h (layers x directions, H), from that of the outputs of one text.

    initial: h, and after it c where there is one, each (layers x directions, H).
    """
    directions = 2 if layer.bidirectional else 1
    runs = []
    for number in range(layer.num_layers):
        y = []
        for way in range(directions):
            place = number * directions + way
            suffix = f"_l{number}" + ("_reverse" if way else "")
            weights = {key: getattr(layer, f"{key}{suffix}", None) for key in ("weight_ih", "weight_hh", "bias_ih",
                                                                               "bias_hh", "weight_hr")}  # fmt: skip
            steps = walk(layer, weights, x.flip(0) if way else x, [state[place] for state in initial])
            runs.append((number, way, place, weights, steps))
            outputs = torch.stack([step["h"] for step in steps])
            y.append(outputs.flip(0) if way else outputs)
        x = torch.cat(y, -1)
    of_initial = torch.zeros_like(initial[0])
    for number in reversed(range(layer.num_layers)):
        below = 0
        parts = relevance.chunk(directions, -1)
        for _, way, place, weights, steps in [run for run in runs if run[0] == number]:
            part = parts[way].flip(0) if way else parts[way]
            of_x, of_initial[place] = back(layer, weights, steps, part, eps)
            below = below + (of_x.flip(0) if way else of_x)
        relevance = below
    return relevance, of_initial


def walk(layer: nn.RNNBase, weights: dict, x: Tensor, state: list[Tensor]) -> list[dict[str, Tensor]]:
    """What each place has, in the order in which it comes about."""
    h, c = state[0], state[-1]
    steps = []
    for row in x:
        of_x = weights["weight_ih"] @ row + (0 if weights["bias_ih"] is None else weights["bias_ih"])
        of_h = weights["weight_hh"] @ h + (0 if weights["bias_hh"] is None else weights["bias_hh"])
        step = {"x": row, "before": h, "c_before": c, "of_x": of_x, "of_h": of_h}
        if isinstance(layer, nn.LSTM):
            i, f, g, o = (of_x + of_h).chunk(4)
            i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
            step |= {"z": g, "i": i, "f": f}
            c = f * c + i * g.tanh()
            inner = o * c.tanh()
            h = inner if weights["weight_hr"] is None else weights["weight_hr"] @ inner
            step |= {"c": c, "inner": inner}
        elif isinstance(layer, nn.GRU):
            r, z, _ = (of_x + of_h).sigmoid().chunk(3)
            ours, theirs = of_x.chunk(3)[2], of_h.chunk(3)[2]
            n = (ours + r * theirs).tanh()
            step |= {"new": (1 - z) * n, "kept": z * h, "ours": ours, "theirs": theirs, "r": r}
            h = (1 - z) * n + z * h
        else:
            h = (of_x + of_h).tanh() if layer.nonlinearity == "tanh" else (of_x + of_h).relu()
            step["z"] = of_x + of_h
        steps.append(step | {"h": h})
    return steps


def back(
    layer: nn.RNNBase, weights: dict, steps: list[dict], relevance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Relevance of each place's input and of the first h."""
    found = torch.zeros(len(steps), weights["weight_ih"].shape[1], dtype=relevance.dtype)
    of_h, of_c = torch.zeros_like(steps[0]["h"]), torch.zeros_like(steps[0]["c_before"])
    w_x, w_h = weights["weight_ih"], weights["weight_hh"]
    for place in reversed(range(len(steps))):
        step, total = steps[place], relevance[place] + of_h
        if isinstance(layer, nn.LSTM):
            if weights["weight_hr"] is not None:
                total = epsilon(weights["weight_hr"], step["inner"], step["h"], total, eps)
            total = total + of_c
            of_c = total * step["f"] * step["c_before"] / step["c"]
            total = total * step["i"] * step["z"].tanh() / step["c"]
            w_x, w_h = (weights[key].chunk(4)[2] for key in ("weight_ih", "weight_hh"))
        if isinstance(layer, nn.GRU):
            kept = total * step["kept"] / step["h"]
            total = total * step["new"] / step["h"]
            both = step["ours"] + step["r"] * step["theirs"]
            w_x, w_h = (weights[key].chunk(3)[2] for key in ("weight_ih", "weight_hh"))
            found[place] = epsilon(w_x, step["x"], step["ours"], total * step["ours"] / both, eps)
            of_theirs = total * step["r"] * step["theirs"] / both
            of_h = kept + epsilon(w_h, step["before"], step["theirs"], of_theirs, eps)
            continue
        if isinstance(layer, nn.RNN) and layer.nonlinearity == "relu":
            total = torch.where(step["z"] > 0, total, 0)
        found[place] = epsilon(w_x, step["x"], step["z"], total, eps)
        of_h = epsilon(w_h, step["before"], step["z"], total, eps)
    return found, of_h


def epsilon(weight: Tensor, a: Tensor, z: Tensor, relevance: Tensor, eps: float) -> Tensor:
    """R_j = sum_k a_j w_kj R_k / (z_k + eps sign(z_k))"""
    found = torch.zeros_like(a)
    for k in range(len(z)):
        found += a * weight[k] * relevance[k] / (z[k] + (-eps if z[k] < 0 else eps))
    return found
