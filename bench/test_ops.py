"""Every op and its peers under pytest-benchmark: `pytest bench`, or `pytest bench --quick`."""

from functools import cache, lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.ops.registry import REGISTRY
from bench.ops.shapes import TINY
from bench.run import Case, Variant, agreeing, cases, current_device, variants

DEVICE = current_device()


@lru_cache(maxsize=1)  # the variants of a case follow one another and share their inputs
def contest(case: Case) -> dict[str, Variant]:
    return agreeing(case, variants(case, DEVICE))


@cache
def names(op: str, mode: str) -> tuple[str, ...]:
    """The variants of an op, as they are at a tiny shape."""
    entry = REGISTRY[op]
    tiny = TINY[type(entry.shapes[DEVICE.type][0])]
    return tuple(variants(Case(entry, tiny, mode), DEVICE))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = []
    for case in cases(None, DEVICE, metafunc.config.getoption("quick")):
        for name in names(case.entry.name, case.mode):
            group = f"{case.entry.name}, {case.mode}, {case.shape}"
            found.append(pytest.param(case, name, id=f"{group}, {name}", marks=pytest.mark.benchmark(group=group)))
    metafunc.parametrize(("case", "name"), found)


def test_op(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    found = contest(case)
    if name not in found:
        pytest.skip(f"{name} cannot run on {DEVICE}")
    benchmark.extra_info["backend"] = found[name].backend
    call = found[name].call
    if DEVICE.type == "cuda":
        benchmark(lambda: (call(), torch.cuda.synchronize()))
    else:
        benchmark(call)
