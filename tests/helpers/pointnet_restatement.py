"""Relevance of PointNet and PointNet++ restated slowly: relevance itself, point by point, in loops.

Nothing is shared with the package but what the neighbours are: BatchNorm is folded into weights, every row of a group
is a number of its own until it is added to its point.
"""

import torch
from lrp_restatement import divide, folded, stable
from torch import Tensor, nn

from attrdrop.models import PointNet, PointNet2


def restated(net: PointNet2 | PointNet, points: Tensor, target: Tensor, eps: float, is_flat: bool) -> Tensor:
    """(N, P, C), of the target's logit by epsilon, the layers that see coordinates alone flat where asked for."""
    with torch.no_grad():
        return torch.stack([_of_cloud(net, x, int(t), eps, is_flat) for x, t in zip(points, target, strict=True)])


def _of_cloud(net: PointNet2 | PointNet, x: Tensor, target: int, eps: float, is_flat: bool) -> Tensor:
    if isinstance(net, PointNet):
        layers = Layers(net.layers, eps, is_flat)
        top = layers.forward(x)
        r = Head(net.head, eps).relevance(top.max(0).values, target)
        return layers.relevance(unpooled(top, r))
    levels = []
    places, features, everyone = x, None, range(len(x))
    sources = list(everyone)  # of the places, among the points
    for level, found in zip(net.levels, net.neighbours(x[None]), strict=True):
        chosen = found.centres[0].tolist()
        scales = []
        for shared, group in zip(level.scales, found.groups, strict=True):
            layers = Layers(shared, eps, is_flat and features is None)
            rows = [
                torch.cat((places[j, :3] - places[i, :3], places[j, 3:], *([] if features is None else [features[j]])))
                for i, members in zip(chosen, group[0].tolist(), strict=True)
                for j in members
            ]
            scales.append((layers, layers.forward(torch.stack(rows)), group[0]))
        levels.append((scales, sources, places, features))
        pooled = [y.unflatten(0, group.shape).max(1).values for _, y, group in scales]
        places, features, sources = places[chosen, :3], torch.cat(pooled, 1), [sources[i] for i in chosen]
    layers = Layers(net.top, eps, False)
    top = layers.forward(torch.cat((places, features), 1))
    r = layers.relevance(unpooled(top, Head(net.head, eps).relevance(top.max(0).values, target)))
    total = torch.zeros_like(x)
    for i, source in enumerate(sources):
        total[source, :3] += r[i, :3]
    r = r[:, 3:]
    for scales, sources, places, features in reversed(levels):
        below = None if features is None else torch.zeros_like(features)
        for layers, y, group in scales:
            mine, r = r[:, : y.shape[1]], r[:, y.shape[1] :]
            rows = torch.stack([unpooled(y[i * group.shape[1] :][: group.shape[1]], one) for i, one in enumerate(mine)])
            rows = layers.relevance(rows.flatten(0, 1))
            width = places.shape[1]
            for row, j in zip(rows, group.flatten().tolist(), strict=True):
                total[sources[j], :width] += row[:width]
                if below is not None:
                    below[j] += row[width:]
        r = below
    return total


def unpooled(y: Tensor, r: Tensor) -> Tensor:
    """Relevance (C,) of the maximum over rows (k, C), which goes to the row that has it."""
    return nn.functional.one_hot(y.argmax(0), len(y)).T * r


class Layers:
    """Linear, BatchNorm, ReLU, and so on, over rows."""

    def __init__(self, layers: nn.Sequential, eps: float, is_flat: bool) -> None:
        linear = [m for m in layers if isinstance(m, nn.Linear)]
        norms = [m for m in layers if isinstance(m, nn.BatchNorm1d)]
        self.parameters, self.eps, self.is_flat = [], eps, is_flat
        for layer, norm in zip(linear, norms, strict=False):
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            self.parameters.append(folded(layer, scale, norm.bias - norm.running_mean * scale))

    def forward(self, a: Tensor) -> Tensor:
        self.inputs, self.outputs = [], []
        for weight, bias in self.parameters:
            z = a @ weight.T + bias
            self.inputs.append(a)
            self.outputs.append(z)
            a = z.clamp_min(0)
        return a

    def relevance(self, r: Tensor) -> Tensor:
        """Of the rows, given that of the last layer's outputs."""
        for place in reversed(range(len(self.parameters))):
            a, z, (weight, _) = self.inputs[place], self.outputs[place], self.parameters[place]
            if place == 0 and self.is_flat:
                r = r.sum(1, keepdim=True).expand_as(a) / a.shape[1]
            else:
                r = a * (divide(r, stable(z, self.eps)) @ weight)
        return r


class Head(Layers):
    """As Layers, with a linear layer at the end."""

    def __init__(self, layers: nn.Sequential, eps: float) -> None:
        super().__init__(layers, eps, False)
        self.last = layers[-1]

    def relevance(self, pooled: Tensor, target: int) -> Tensor:
        a = self.forward(pooled[None])
        logits = a @ self.last.weight.T + self.last.bias
        r = torch.zeros_like(logits)
        r[0, target] = logits[0, target]
        return super().relevance(a * (divide(r, stable(logits, self.eps)) @ self.last.weight))[0]
