"""Writes tests/data/lrp_golden.npz: maps of zennit 0.5.1 on two small networks, with their weights and inputs.

The package and its tests do not need zennit; run this where it is: ``python tests/helpers/make_lrp_golden.py``.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from nets import Sum, prepare, stacked_resnet, vgg
from torch import Tensor, nn
from zennit import layer, rules, types
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import SpecialFirstLayerMapComposite

PATH = Path(__file__).parents[1] / "data" / "lrp_golden.npz"
NETS = {"resnet": stacked_resnet, "vgg": lambda: vgg(True)}
NONE = 1e-30  # attrdrop divides residual sums, pools and flat windows without a stabiliser

CONV, LINEAR = types.Convolution, types.Linear
LOW, HIGH = (torch.tensor(x).view(1, 3, 1, 1).double() for x in ([-4.0, -3.5, -4.5], [4.0, 5.0, 3.5]))
EPSILON = (LINEAR, rules.Epsilon(1e-2))
RULES = {
    "epsilon": ([EPSILON], []),
    "epsilon_flat": ([EPSILON], [(LINEAR, rules.Flat(NONE))]),
    "epsilon_plus": ([(CONV, rules.ZPlus(1e-3)), EPSILON], []),
    "epsilon_plus_flat": ([(CONV, rules.ZPlus(1e-3)), EPSILON], [(LINEAR, rules.Flat(NONE))]),
    "gamma": ([(LINEAR, rules.Gamma(0.25, 1e-3))], []),
    "alpha_beta": ([(LINEAR, rules.AlphaBeta(2, 1, 1e-3))], []),
    "epsilon_alpha2_beta1": ([(CONV, rules.AlphaBeta(2, 1, 1e-3)), EPSILON], []),
    "epsilon_alpha2_beta1_flat": ([(CONV, rules.AlphaBeta(2, 1, 1e-3)), EPSILON], [(LINEAR, rules.Flat(NONE))]),
    "epsilon_gamma_box": ([(CONV, rules.Gamma(0.25, 1e-3)), EPSILON], [(CONV, rules.ZBox(LOW, HIGH, 1e-3))]),
    "wsquare": ([(CONV, rules.ZPlus(1e-3)), EPSILON], [(LINEAR, rules.WSquare(1e-3))]),
}


def zennit_map(net: nn.Module, x: Tensor, target: Tensor, rule: str) -> Tensor:
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        if isinstance(getattr(module, "sum", None), Sum):
            module.sum = layer.Sum(-1)
        if hasattr(module, "inplace"):
            module.inplace = False
    others = [(types.Activation, rules.Pass()), (types.BatchNorm, rules.Pass())]
    others += [(layer.Sum, rules.Norm(NONE)), (types.AvgPool, rules.Norm(NONE))]
    layers, first = RULES[rule]
    composite = SpecialFirstLayerMapComposite([*others, *layers], first, [SequentialMergeBatchNorm()])
    start = net(x).detach() * nn.functional.one_hot(target, 5)
    with Gradient(net, composite) as attribute:
        return attribute(x, start)[1].detach()


def main() -> None:
    stored = {}
    for name, make in NETS.items():
        torch.manual_seed(0)
        net, x, target = prepare(make()), torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 3])
        stored[f"{name}/x"], stored[f"{name}/target"] = x, target
        stored |= {f"{name}/state/{key}": values for key, values in net.state_dict().items()}
        stored |= {f"{name}/map/{rule}": zennit_map(net, x, target, rule) for rule in RULES}
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, **{key: values.numpy() for key, values in stored.items()})


if __name__ == "__main__":
    main()
