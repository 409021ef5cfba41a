"""What the tests of the benchmarks share: the package bench, and quick runs."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import attrdrop

ROOT = Path(__file__).resolve().parents[2]
if "bench" not in sys.modules:  # without the repository root on sys.path, where a top-level triton_kernels would show
    folder = ROOT / "bench"
    spec = importlib.util.spec_from_file_location(
        "bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bench"])

CPU = torch.device("cpu")


def tiny(entry):
    """A small shape of the kind that the op of the registry is measured on."""
    from bench.ops.shapes import TINY

    return TINY[type(entry.shapes["cpu"][0])]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are tiny here, and threads that wait for each other make a busy machine crawl."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def compiled_kernels():
    """Triton's interpreter is not for timing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attrdrop._core.backends, "TRITON_INTERPRETED", False)
        yield
