"""Relevance against maps of zennit 0.5.1, stored by make_lrp_golden.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import prepare, stacked_resnet, vgg

from attrdrop import lrp

STORED = np.load(Path(__file__).parents[1] / "data" / "lrp_golden.npz")
NETS = {"resnet": stacked_resnet, "vgg": lambda: vgg(True)}
RULES = {
    "epsilon": lrp.Epsilon(1e-2),
    "epsilon_flat": lrp.EpsilonFlat(1e-2),
    "epsilon_plus": lrp.EpsilonPlus(1e-2, 1e-3),
    "epsilon_plus_flat": lrp.EpsilonPlusFlat(1e-2, 1e-3),
    "gamma": lrp.Gamma(0.25, 1e-3),
    "alpha_beta": lrp.AlphaBeta(2, 1, 1e-3),
    "epsilon_alpha2_beta1": lrp.EpsilonAlpha2Beta1(1e-2, 1e-3),
    "epsilon_alpha2_beta1_flat": lrp.EpsilonAlpha2Beta1Flat(1e-2, 1e-3),
    "epsilon_gamma_box": lrp.EpsilonGammaBox([-4.0, -3.5, -4.5], [4.0, 5.0, 3.5], 1e-2, 0.25, 1e-3),
    "wsquare": lrp.Composite(lrp.ZPlus(1e-3), lrp.Epsilon(1e-2), lrp.WSquare(1e-3)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETS)
def test_map_is_that_of_zennit(name, rule):
    stored = {key.removeprefix(f"{name}/"): torch.from_numpy(STORED[key]) for key in STORED if key.startswith(name)}
    net = prepare(NETS[name]())
    net.load_state_dict({key[6:]: values for key, values in stored.items() if key.startswith("state/")})
    found = lrp.relevance(net, stored["x"], stored["target"], rule=RULES[rule])
    wanted = stored[f"map/{rule}"]
    # zennit leaves BatchNorm's eps in its merged identity: none here
    assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert wanted.abs().max() > 1e-6
