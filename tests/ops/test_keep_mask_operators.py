"""keep_mask, random_keep_mask, keep_scores and transpose_mask through the public functions on the Triton backend."""

import math

import pytest
import torch
from ranking import small_problem

from attrdrop import AttentionWeight, keep_mask, keep_scores, pack_mask, random_keep_mask, transpose_mask, unpack_mask

pytest.importorskip("triton")
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if HAS_GPU else []


def assert_same(ours, expected):
    for a, b in zip((ours.rows, ours.cols, ours.counts), (expected.rows, expected.cols, expected.counts), strict=True):
        assert torch.equal(a, b)


def both(call):
    return [call(backend) for backend in ("triton", "reference")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("region", ["high", "low"])
def test_keep_mask(dtype, region):
    x, y = (t[:1].to(DEVICE) for t in small_problem(heads=2, kv_heads=1, n_q=20, n_k=63, dtype=dtype))
    valid = pack_mask(torch.rand(1, 1, 1, 63, device=DEVICE) < 0.8)
    arguments = dict(p=0.3, q=0.4, seed=2**63 + 5, layer=3, valid=valid, is_causal=True, region=region)
    assert_same(*both(lambda backend: keep_mask(x, y, backend=backend, **arguments)))


def test_weighted_by_attention():
    x, y = (t.to(DEVICE) for t in small_problem(heads=2, kv_heads=1, n_q=30, n_k=50))
    q, k = torch.zeros(2, 2, 30, 16, device=DEVICE), torch.zeros(2, 1, 50, 16, device=DEVICE)
    lse = torch.full((2, 2, 30), math.log(64.0), device=DEVICE)  # equal weights: the order is that of the products
    weight = AttentionWeight(q, k, lse, 0.25)
    assert_same(*both(lambda backend: keep_mask(x, y, p=0.3, q=0.5, seed=3, weight=weight, backend=backend)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("p", "region"), [(0.3, "high"), (0.3, "low"), (1.0, "high")])
def test_keep_scores(dtype, p, region):
    scores = torch.randn(2, 63, 35, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype).transpose(1, 2)
    scores[0, 3, ::4], scores[1, 2], scores[1, 3, 5] = torch.nan, 1, torch.inf
    valid = pack_mask(torch.rand(2, 1, 63, device=DEVICE) < 0.8)
    for given in (None, valid):
        arguments = dict(p=p, q=0.4, seed=2**63 + 5, layer=65535, valid=given, region=region)
        ours, expected = both(lambda backend, a=arguments: keep_scores(scores, backend=backend, **a))
        assert torch.equal(ours.rows, expected.rows)
        assert torch.equal(ours.counts, expected.counts)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (1, 3, 1000), (0, 3, 4), (2, 3, 0)])
def test_keep_scores_of_odd_sizes(shape):
    scores = torch.randn(shape, device=DEVICE)
    ours, expected = both(lambda backend: keep_scores(scores, p=0.5, q=0.5, seed=1, backend=backend))
    assert torch.equal(ours.rows, expected.rows)
    assert torch.equal(ours.counts, expected.counts)


def test_random_keep_mask():
    valid = pack_mask(torch.rand(2, 1, 1, 70, device=DEVICE) < 0.8)
    arguments = dict(p=0.6, q=0.7, seed=11, layer=2, valid=valid)
    assert_same(*both(lambda backend: random_keep_mask(2, 2, 40, 70, backend=backend, **arguments)))


@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (7, 33), (100, 63), (0, 5), (5, 0)])
def test_transpose_mask(n_q, n_k):
    mask = torch.rand(2, 3, n_q, n_k, device=DEVICE) < 0.5
    cols = transpose_mask(pack_mask(mask), n_k, backend="triton")
    assert torch.equal(unpack_mask(cols, n_q), mask.transpose(-1, -2))


def test_opcheck_and_compile():
    x, y = (t[:1].to(DEVICE) for t in small_problem(heads=1, kv_heads=1, n_q=8, n_k=9))
    ops = torch.ops.attrdrop_triton
    options = (0.3, 0.4, 3, 0, None, False, False, False, None, None, None, None, 1.0, None)
    torch.library.opcheck(ops.keep_mask, (x, y, *options))
    torch.library.opcheck(ops.random_keep_mask, (x, 1, 1, 8, 9, 0.4, 3, 0, None, False, None))
    torch.library.opcheck(ops.keep_scores, (x[0], 0.3, 0.4, 3, 0, None, False, None))
    torch.library.opcheck(ops.transpose_mask, (ops.keep_mask(x, y, *options)[0][0], 9))
    compiled = torch.compile(keep_mask, fullgraph=True, backend="aot_eager")
    arguments = dict(p=0.3, q=0.4, seed=3, backend="triton")
    assert torch.equal(compiled(x, y, **arguments).rows, keep_mask(x, y, **arguments).rows)


def test_rows_that_are_too_long():
    x, y = torch.ones(1, 1, 1, 4, device=DEVICE), torch.ones(1, 1, 40000, 4, device=DEVICE)
    with pytest.raises(RuntimeError, match="it ranks rows of up to 32768 keys, got 40000"):
        keep_mask(x, y, p=0.3, q=0.3, seed=0, backend="triton")
