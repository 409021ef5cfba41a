"""A public function on one backend, with CPU tensors in and out whatever the backend."""

import importlib.util

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
TRITON = pytest.param("triton", marks=[pytest.mark.gpu] if HAS_GPU else [])
EVERYWHERE = ["reference", "cpp", TRITON] if importlib.util.find_spec("triton") else ["reference", "cpp"]
"""Backends that run without a GPU, Triton's in the interpreter, and with one there."""

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def device_of(backend):
    return "cuda" if HAS_GPU and backend == "triton" else "cpu"


def on_gpu(call):
    """The same call on the device."""

    def there(*tensors, scheduler_seed=0, **arguments):
        move = lambda x: x.cuda() if isinstance(x, torch.Tensor) else x  # noqa: E731
        result = call(*map(move, tensors), **{k: move(v) for k, v in arguments.items()}, backend="cuda")
        return tuple(t.cpu() for t in result) if isinstance(result, tuple) else result.cpu()

    return there


def on_cpu(call, backend):
    """The same call; the seed of the emulator's scheduler is for others."""
    return lambda *tensors, scheduler_seed=0, **arguments: call(*tensors, **arguments, backend=backend)
