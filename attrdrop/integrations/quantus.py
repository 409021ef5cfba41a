"""Relevance in the shape of Quantus' ``explain_func``; Quantus need not be there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from attrdrop.lrp import relevance


def explain_func(model: nn.Module, inputs: Any, targets: Any, *, device: Any = None, **options: Any) -> np.ndarray:
    """Relevance of a batch, to be called by the metrics of Quantus.

    ::

        metric(model=model, x_batch=x, y_batch=y, explain_func=explain_func,
               explain_func_kwargs={"rule": lrp.EpsilonPlusFlat()})

    Args:
        model: as :func:`attrdrop.lrp.relevance` takes it.
        inputs: (N, ...), an array or a tensor; converted to the type of the model's parameters, tokens stay integers.
        targets: (N,), classes.
        device: where the model is; default, that of its parameters.
        options: of :func:`attrdrop.lrp.relevance`, such as ``rule``.

    Returns:
        Relevance, shape of inputs.
    """
    parameter = next(model.parameters(), None)
    device = device if device is not None else "cpu" if parameter is None else parameter.device
    x = torch.as_tensor(inputs, device=device)
    if x.is_floating_point() and parameter is not None:
        x = x.to(parameter.dtype)
    classes = torch.as_tensor(targets, device=device).to(torch.int64)
    return relevance(model, x.detach(), classes, **options).cpu().numpy()
