"""pack_mask, unpack_mask, transpose_mask: every backend against the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attrdrop import pack_mask, transpose_mask, unpack_mask

SIZES = [0, 1, 7, 31, 32, 33, 63, 64, 111, 1000]
BACKENDS = ["reference", "cpp"]


def packed_by_definition(mask: torch.Tensor) -> torch.Tensor:
    n = mask.shape[-1]
    bits = torch.zeros(*mask.shape[:-1], (n + 31) // 32, dtype=torch.int64)
    for j in range(n):
        bits[..., j // 32] += mask[..., j].long() << (j % 32)
    return bits.to(torch.int32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", SIZES)
def test_pack_is_the_definition(backend, n):
    mask = torch.rand(2, 3, 5, n) < 0.5
    bits = pack_mask(mask, backend=backend)
    assert torch.equal(bits, packed_by_definition(mask))
    assert torch.equal(unpack_mask(bits, n, backend=backend), mask)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (7, 33), (32, 32), (100, 63), (65, 200), (0, 5), (5, 0)])
def test_transpose(backend, n_q, n_k):
    mask = torch.rand(2, 3, n_q, n_k) < 0.5
    cols = transpose_mask(pack_mask(mask), n_k, backend=backend)
    assert torch.equal(unpack_mask(cols, n_q), mask.transpose(-1, -2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_broadcast(backend):
    mask = torch.rand(6, 40, 50) < 0.5
    for view in (mask.transpose(1, 2), mask[:, ::3, 1::2], mask[:1].expand(4, 40, 50), mask[0, 0].expand(3, 50)):
        assert torch.equal(pack_mask(view, backend=backend), packed_by_definition(view))
    bits = pack_mask(mask).transpose(0, 1)
    assert torch.equal(unpack_mask(bits, 50, backend=backend), mask.transpose(0, 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=45, max_size=45), min_size=1, max_size=4))
def test_host_module_agrees(rows):
    host = pytest.importorskip("attrdrop._host")
    mask = np.array(rows)
    bits = pack_mask(torch.from_numpy(mask))
    assert np.array_equal(host.pack_mask(mask).astype(np.int32), bits.numpy())
    assert np.array_equal(host.unpack_mask(bits.numpy().view(np.uint32), 45), mask)


def test_triton_interpreter_agrees():
    pytest.importorskip("triton")
    from attrdrop.triton_kernels import pack_mask as kernels

    for n in SIZES:
        mask = torch.rand(5, 2 * n)[:, ::2] < 0.5
        bits = kernels.pack_mask(mask)
        assert torch.equal(bits, packed_by_definition(mask))
        assert torch.equal(kernels.unpack_mask(bits, n), mask)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("n", SIZES)
def test_gpu_agrees(backend, n):
    mask = torch.rand(3, 70, n, device="cuda") < 0.5
    bits = pack_mask(mask, backend=backend)
    assert torch.equal(bits.cpu(), packed_by_definition(mask.cpu()))
    assert torch.equal(unpack_mask(bits, n, backend=backend), mask)
    if backend == "cuda":
        assert torch.equal(transpose_mask(bits, n, backend=backend), transpose_mask(bits, n, backend="reference"))


def test_opcheck():
    mask = torch.rand(4, 70) < 0.5
    bits = pack_mask(mask)
    torch.library.opcheck(torch.ops.attrdrop.pack_mask, (mask,))
    torch.library.opcheck(torch.ops.attrdrop.unpack_mask, (bits, 70))
    torch.library.opcheck(torch.ops.attrdrop.transpose_mask, (bits[None], 70))


def test_compiles_without_graph_breaks():
    mask = torch.rand(2, 4, 70) < 0.5

    @torch.compile(fullgraph=True, backend="aot_eager")
    def there_and_back(mask):
        bits = pack_mask(mask)
        return unpack_mask(bits, mask.shape[-1]), transpose_mask(bits, mask.shape[-1])

    same, cols = there_and_back(mask)
    assert torch.equal(same, mask)
    assert torch.equal(cols, transpose_mask(pack_mask(mask), 70))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack_mask([True]), TypeError, "mask must be a torch.Tensor, got list"),
        (lambda: pack_mask(torch.ones(3)), TypeError, "mask must be bool, got torch.float32"),
        (lambda: pack_mask(torch.tensor(True)), ValueError, "mask must have at least one dimension"),
        (lambda: unpack_mask(torch.ones(3), 3), TypeError, "bits must be packed int32 words, got torch.float32"),
        (lambda: unpack_mask(torch.ones(3, 2).int(), 65), ValueError, "= 3 words"),
        (lambda: transpose_mask(torch.ones(3).int(), 90), ValueError, "rows must have at least two dimensions"),
        (lambda: pack_mask(torch.ones(3).bool(), backend="fast"), ValueError, "backend must be one of"),
        (lambda: pack_mask(torch.ones(3).bool(), backend="cuda"), RuntimeError, "cannot serve this call"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
