"""What an operator says of its results before it runs, shapes, types and strides, is what it gives, in every layout."""

import pytest
import torch
from every_op import CALLS, LAYOUTS, cases
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from attrdrop._core import backends


class FakesAgree(TorchDispatchMode):
    """Runs each operator of ours on fake tensors as well; seen: the operators that ran."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.namespace.startswith("attrdrop"):
            return func(*args, **(kwargs or {}))
        with FakeTensorMode() as fakes:
            as_fake = lambda x: fakes.from_tensor(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
            told = func(*tree_map(as_fake, args), **tree_map(as_fake, kwargs or {}))
        given = func(*args, **(kwargs or {}))
        assert described(told) == described(given), func
        self.seen.add(func.__name__.split(".")[0])
        return given


def described(results):
    tensors = [x for x in tree_leaves(results) if isinstance(x, torch.Tensor)]
    return [(x.dtype, tuple(x.shape), x.stride() if x.numel() else None) for x in tensors]


def layouts_of_cases():
    """Every case in every layout; quick ones in the interpreter of Triton take one."""
    for case in cases():
        backend = case.values[1]
        for name, layout in LAYOUTS.items():
            marks = [pytest.mark.slow] if backend == "triton" and name != "transposed" else []
            yield pytest.param(*case.values, layout, marks=[*case.marks, *marks], id=f"{case.id}-{name}")


@pytest.mark.parametrize(("call", "backend", "layout"), layouts_of_cases())
def test_fakes_tell_the_truth(call, backend, layout):
    with FakesAgree() as mode:
        call(layout, backend)
    assert mode.seen


@pytest.mark.skipif(bool(backends.COMPILED_MISSING), reason="needs the C++ kernels")
def test_every_operator_is_among_the_calls():
    with FakesAgree() as mode:
        for call, _ in CALLS.values():
            call(torch.Tensor.contiguous, "cpp")
    known = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("attrdrop::")
    }
    assert mode.seen == known - {"build_info"}
