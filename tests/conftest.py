"""Fixtures of all tests."""

import importlib.util
import os

# Threads that wait in a loop make small models a hundred times slower on a busy machine. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("COLUMNS", None)  # that of a test process; a console would keep it where a test sets another

import pytest
import torch

if not torch.cuda.is_available():  # Triton kernels, imported later, then run in the interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        import interpreter

        interpreter.install()


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills fresh memory with NaN and maximal integers, so that a kernel that skips an element is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
