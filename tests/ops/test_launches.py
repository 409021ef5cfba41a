"""Triton kernels are launched on the device of their tensors, whichever is current."""

import contextlib
import importlib
import pkgutil

import pytest
import torch
from every_op import CALLS

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("launches are watched in the interpreter", allow_module_level=True)

from triton.runtime.interpreter import InterpretedFunction

import attrdrop.triton_kernels


@pytest.mark.parametrize("name", ["attention", "full bias", "masks", "gates"])
def test_launches_choose_the_device(monkeypatch, name):
    chosen, launched, run = [], [], InterpretedFunction.run

    @contextlib.contextmanager
    def on_device(device):
        chosen.append(device)
        yield
        chosen.pop()

    def watched(kernel, *arguments, **options):
        launched.append(kernel.__name__)
        assert chosen, kernel.__name__
        return run(kernel, *arguments, **options)

    for found in pkgutil.iter_modules(attrdrop.triton_kernels.__path__):
        module = importlib.import_module(f"attrdrop.triton_kernels.{found.name}")
        if hasattr(module, "on_device"):
            monkeypatch.setattr(module, "on_device", on_device)
    monkeypatch.setattr(InterpretedFunction, "run", watched)
    CALLS[name][0](torch.Tensor.contiguous, "triton")
    assert launched
