"""Relevance as Quantus' explain_func: values, types, and metrics of Quantus where it is there."""

import numpy as np
import pytest
import torch
from nets import build

from attrdrop import lrp
from attrdrop.integrations.quantus import explain_func


def test_arrays_in_and_out():
    net, x, target = build("resnet10")
    wanted = lrp.relevance(net, x, target).numpy()
    for inputs, targets in ((x.numpy(), target.numpy()), (x, target), (x.numpy(), target.int().tolist())):
        found = explain_func(net, inputs, targets, device="cpu")
        assert type(found) is np.ndarray
        assert np.array_equal(found, wanted)
    single = explain_func(net.float(), x.numpy(), target.numpy(), rule=lrp.ZPlus())
    assert single.dtype == np.float32
    with pytest.raises(TypeError, match="unexpected keyword argument 'ruel'"):
        explain_func(net, x.numpy(), target.numpy(), ruel=lrp.ZPlus())


def test_metrics_of_quantus_call_it():
    quantus = pytest.importorskip("quantus")
    torch.manual_seed(0)
    net, x, target = build("resnet10")
    net = net.float()
    call = {
        "model": net, "x_batch": x.float().numpy(), "y_batch": target.numpy(), "explain_func": explain_func,
        "explain_func_kwargs": {"rule": lrp.EpsilonPlus()}, "device": "cpu",
    }  # fmt: skip
    spread = quantus.Sparseness(disable_warnings=True)(**call, a_batch=None)
    assert len(spread) == 2
    assert all(0 < value < 1 for value in spread)
    robust = quantus.MaxSensitivity(nr_samples=2, disable_warnings=True)(**call, a_batch=None)
    assert all(np.isfinite(robust))
