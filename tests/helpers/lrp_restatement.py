"""Layer-wise relevance propagation restated slowly: relevance itself, layer by layer, over a traced network.

Nothing is shared with the package: no coefficients, no torch function mode, BatchNorm folded into weights.
"""

import copy
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
PASSES = {  # relevance of the output is relevance of the input, element by element: f(0) = 0
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Tanh, nn.Dropout, nn.Identity, nn.ELU,
    functional.relu, torch.relu, functional.gelu, functional.silu, functional.leaky_relu, torch.tanh, "relu",
}  # fmt: skip
MOVES = {
    nn.Flatten, nn.Unflatten, torch.cat, torch.flatten, "transpose", "flatten", "reshape", "permute", "view",
    operator.getitem, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, torch.amax, functional.max_pool2d, nn.PixelShuffle,
}  # fmt: skip
SUMS = {nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, functional.adaptive_avg_pool2d,
        functional.interpolate, nn.Upsample, "mean", "sum", operator.add, torch.add, operator.sub,
        nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d}  # fmt: skip
GATES = {nn.Sigmoid, nn.Hardsigmoid, torch.sigmoid}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def restated(net: nn.Module, x: Tensor, target: Tensor, rule: dict) -> dict[str, Tensor]:
    """Relevance of the input, as "input", and of every traced node. rule: {"conv": ..., "linear": ..., "first": ...},
    each ("epsilon", eps), ("zplus", eps), ("gamma", gamma, eps), ("alphabeta", alpha, beta, eps), ("wsquare", eps),
    ("zbox", low, high, eps), ("flat",), ("pass",) or ("block",); first may be missing."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    traced = fx.symbolic_trace(net)
    values = forward(traced, x)
    nodes = {node.name: node for node in traced.graph.nodes}
    found = dict.fromkeys(nodes, 0)
    is_raw = raw_nodes(traced)
    output = next(node.args[0] for node in nodes.values() if node.op == "output")
    logits = values[output.name]
    found[output.name] = logits * functional.one_hot(target, logits.shape[1])
    for node in reversed(list(nodes.values())):
        if node.op in ("placeholder", "get_attr", "output") or not isinstance(found[node.name], Tensor):
            continue
        for source, share in shares(traced, node, values, found[node.name], rule, is_raw):
            found[source.name] = found[source.name] + share
    found["input"] = next(found[node.name] for node in nodes.values() if node.op == "placeholder")
    return found


def forward(traced: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}

    class Keep(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Tensor:
            values[node.name] = super().run_node(node)
            return values[node.name]

    for node in traced.graph.nodes:  # in place means out of place for nets that use the result
        node.target = {operator.iadd: operator.add, "relu_": "relu"}.get(node.target, node.target)
    with torch.no_grad():
        Keep(traced).run(x)
    return values


def raw_nodes(traced: fx.GraphModule) -> dict[str, bool]:
    """Which nodes only move the input."""
    found: dict[str, bool] = {}
    for node in traced.graph.nodes:
        moved = what(traced, node) in MOVES and all(found[source.name] for source in node.all_input_nodes)
        found[node.name] = node.op == "placeholder" or moved
    return found


def what(traced: fx.GraphModule, node: fx.Node) -> object:
    return type(traced.get_submodule(node.target)) if node.op == "call_module" else node.target


def shares(
    traced: fx.GraphModule, node: fx.Node, values: dict[str, Tensor], r: Tensor, rule: dict, is_raw: dict[str, bool]
) -> list[tuple[fx.Node, Tensor]]:
    """What each input of a node receives of its relevance r."""
    kind = what(traced, node)
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    if kind in PASSES:
        return [(sources[0], r)]
    if kind in GATES:  # only reached where it is no factor
        a = values[sources[0].name]
        return [(sources[0], r * (values[node.name] - 0.5) / values[node.name])]
    if kind is operator.mul:
        gates = [source for source in sources if what(traced, source) in GATES]
        if len(sources) == 2 and not gates:
            return [(source, r / 2) for source in sources]
        return [(source, r) for source in sources if source not in gates]
    if kind in MOVES:
        return list(zip(sources, adjoint(traced, node, values, sources, r), strict=True))
    if kind in SUMS:
        parts = adjoint(traced, node, values, sources, divide(r, values[node.name]))
        return [(source, values[source.name] * part) for source, part in zip(sources, parts, strict=True)]
    module = traced.get_submodule(node.target)
    if isinstance(module, NORMS):
        layer = sources[0]
        while what(traced, layer) is nn.Dropout:
            layer = layer.all_input_nodes[0]
        scale = module.weight / torch.sqrt(module.running_var + module.eps)
        shift = module.bias - module.running_mean * scale
        if foldable(traced, layer, values):
            weight, bias = folded(traced.get_submodule(layer.target), scale, shift)
            return linear_layer(traced, layer, weight, bias, values, r, rule, is_raw)
        a = values[sources[0].name]
        by_channel = (1, -1, *(1,) * (a.dim() - 2))
        eps = rule["linear"][1] if rule["linear"][0] == "epsilon" else 1e-6
        return [(sources[0], scale.view(by_channel) * a * divide(r, stable(values[node.name], eps)))]
    return linear_layer(traced, node, module.weight, module.bias, values, r, rule, is_raw)


def foldable(traced: fx.GraphModule, node: fx.Node, values: dict[str, Tensor]) -> bool:
    is_conv = issubclass(what(traced, node), CONVS + TRANSPOSED) if node.op == "call_module" else False
    return is_conv or (what(traced, node) is nn.Linear and values[node.name].dim() == 2)


def folded(layer: nn.Module, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer with an affine map per channel after it."""
    weight = layer.weight.detach().clone()
    if isinstance(layer, TRANSPOSED):
        out = weight.shape[1]
        per_group = weight.shape[0] // layer.groups
        for place in range(weight.shape[0]):
            for channel in range(out):
                weight[place, channel] *= scale[(place // per_group) * out + channel]
    else:
        for channel in range(weight.shape[0]):
            weight[channel] *= scale[channel]
    return weight, shift if layer.bias is None else layer.bias * scale + shift


def linear_layer(
    traced: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor | None, values: dict[str, Tensor], r: Tensor,
    rule: dict, is_raw: dict[str, bool],
) -> list[tuple[fx.Node, Tensor]]:  # fmt: skip
    """A layer's rule, with the BatchNorm after it already in weight and bias."""
    source = node.all_input_nodes[0]
    a = values[source.name].detach()
    run = runner(traced.get_submodule(node.target))
    is_first = is_raw[source.name] and "first" in rule
    kind, *numbers = rule["first" if is_first else "linear" if what(traced, node) is nn.Linear else "conv"]
    if kind == "flat":
        ones, level = torch.ones_like(a), torch.ones_like(weight)
        return [(source, back(run, level, ones, r / run(ones, level, None)))]
    if kind == "epsilon":
        z = run(a, weight, bias)
        return [(source, a * back(run, weight, a, divide(r, stable(z, numbers[0]))))]
    if kind == "pass":
        return [(source, r)]
    if kind == "block":
        return [(source, torch.zeros_like(a))]
    if kind == "wsquare":
        ones, squared = torch.ones_like(a), weight.square()
        z = run(ones, squared, None if bias is None else bias.square())
        return [(source, back(run, squared, ones, r / (z + numbers[0])))]
    if kind == "zbox":
        by_channel = (-1,) if run is functional.linear else (-1, *(1,) * (a.dim() - 2))
        low, high = (torch.tensor(bound).double().view(by_channel).expand_as(a) for bound in numbers[:2])
        above, below = weight.clamp_min(0), weight.clamp_max(0)
        z = run(a, weight, None) - run(low, above, None) - run(high, below, None)
        part = divide(r, stable(z, numbers[2]))
        found = a * back(run, weight, a, part) - low * back(run, above, a, part) - high * back(run, below, a, part)
        return [(source, found)]
    if kind == "alphabeta":
        alpha, beta, eps = numbers
        total = torch.zeros_like(a)
        for factor, keep in ((alpha, lambda t: t.clamp_min(0)), (-beta, lambda t: t.clamp_max(0))):
            same, other = keep(weight), weight - keep(weight)
            z = run(a.clamp_min(0), same, None if bias is None else keep(bias)) + run(a.clamp_max(0), other, None)
            part = divide(r, stable(z, eps))
            contributions = a.clamp_min(0) * back(run, same, a, part) + a.clamp_max(0) * back(run, other, a, part)
            total = total + factor * contributions
        return [(source, total)]
    gamma = numbers[0] if kind == "gamma" else None
    z = run(a, weight, bias)
    total = torch.zeros_like(a)
    for sign in (1, -1) if gamma is not None else (1,):

        def favour(values: Tensor, sign: int) -> Tensor:
            return (sign * values).clamp_min(0) * sign

        def larger(values: Tensor, sign: int) -> Tensor:
            return favour(values, sign) if gamma is None else values + gamma * favour(values, sign)

        up, down = larger(weight, sign), larger(weight, -sign)  # of positive and of negative inputs
        b = None if bias is None else larger(bias, sign)
        denominator = run(a.clamp_min(0), up, b) + run(a.clamp_max(0), down, None)
        mine = r if gamma is None else torch.where(sign * z > 0, r, 0)
        part = divide(mine, stable(denominator, numbers[-1]))
        total = total + a.clamp_min(0) * back(run, up, a, part) + a.clamp_max(0) * back(run, down, a, part)
    return [(source, total)]


def runner(layer: nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The layer as a function of input, weight and bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear
    if isinstance(layer, TRANSPOSED):
        transposed = getattr(functional, f"conv_transpose{layer.weight.dim() - 2}d")
        return lambda a, w, b: transposed(
            a, w, b, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    conv = getattr(functional, f"conv{layer.weight.dim() - 2}d")
    return lambda a, w, b: conv(a, w, b, layer.stride, layer.padding, layer.dilation, layer.groups)


def back(run: Callable, weight: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """sum_k w_jk s_k: the transposed linear map."""
    at = torch.zeros_like(a, requires_grad=True)
    return torch.autograd.grad(run(at, weight, None), at, s.detach())[0]


def adjoint(
    traced: fx.GraphModule, node: fx.Node, values: dict[str, Tensor], sources: list[fx.Node], s: Tensor
) -> list[Tensor]:
    """s sent back through a node that moves, sums or chooses, one result for each input."""
    at = {source.name: values[source.name].detach().requires_grad_(True) for source in sources}
    if what(traced, node) in (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d):
        y = normalised(traced.get_submodule(node.target), at[sources[0].name])
    else:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: at.get(n.name, values[n.name]))
        if node.op == "call_module":
            y = traced.get_submodule(node.target)(*args, **kwargs)
        else:
            y = (
                getattr(args[0], node.target)(*args[1:], **kwargs)
                if node.op == "call_method"
                else node.target(*args, **kwargs)
            )
    return list(torch.autograd.grad(y, list(at.values()), s.detach()))


def normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm, GroupNorm or InstanceNorm of which the deviation is a constant."""
    if isinstance(layer, nn.LayerNorm):
        axes, flat = list(range(-len(layer.normalized_shape), 0)), x
        weight, bias = layer.weight, layer.bias
    else:
        groups = getattr(layer, "num_groups", x.shape[1])
        flat, axes = x.reshape(x.shape[0], groups, -1), [2]
        by_channel = (-1, *(1,) * (x.dim() - 2))
        weight, bias = (None if p is None else p.view(by_channel) for p in (layer.weight, layer.bias))
    deviation = (flat.detach().var(axes, unbiased=False, keepdim=True) + layer.eps).sqrt()
    y = ((flat - flat.mean(axes, keepdim=True)) / deviation).reshape(x.shape)
    return y if weight is None else y * weight + bias


def divide(r: Tensor, z: Tensor) -> Tensor:
    """r / z, and nothing where there is nothing."""
    return torch.where(r == 0, 0, r / torch.where(r == 0, 1, z))


def stable(z: Tensor, eps: float) -> Tensor:
    return torch.where(z < 0, z - eps, z + eps)
