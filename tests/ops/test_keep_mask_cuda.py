"""keep_mask on CUDA against the oracle and the C++ kernel: in the emulator, and on a GPU where there is one."""

import itertools
import math

import numpy as np
import pytest
import torch
from emulated import emulated_keep_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking import as_problem, oracle_row, small_problem, values

from attrdrop import KeepMask, keep_mask, pack_mask, random_keep_mask, transpose_mask, unpack_mask

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LONG = dict(shared_bytes=12_000)  # too little for a block to keep its rows: they go through scratch memory


def on_gpu(
    x, y, *, weight=None, valid=None, sample_ids=None, scheduler_seed=0, shared_bytes=0, scratch_bytes=0, **rest
):
    """The same call on the device; how the work is cut is not ours to say there."""
    move = lambda t: None if t is None else t.cuda()  # noqa: E731
    if weight is not None:
        weight = (*(t.cuda() for t in weight[:3]), weight[3])
    keep = keep_mask(x.cuda(), y.cuda(), weight=weight, valid=move(valid), sample_ids=move(sample_ids), backend="cuda",
                     **rest)  # fmt: skip
    return KeepMask(keep.rows.cpu(), keep.cols.cpu(), keep.counts.cpu())


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def cuda_keep_mask(request):
    return emulated_keep_mask if request.param == "emulated" else on_gpu


def assert_same(ours: KeepMask, expected: KeepMask, case: object) -> None:
    assert torch.equal(ours.rows, expected.rows), case
    assert torch.equal(ours.cols, expected.cols), case
    assert torch.equal(ours.counts, expected.counts), case


GRID = list(
    itertools.product(
        [1, 40], [1, 33, 63], [0.0, 0.3, 1.0], ["high", "low"], [False, True], [None, "keys", "full"], DTYPES
    )
)


@pytest.mark.slow
def test_is_the_cpp_kernel_over_a_grid(cuda_keep_mask):
    for seed, case in enumerate(GRID):
        n_q, n_k, p, region, is_causal, mask, dtype = case
        x, y = small_problem(n_q=n_q, n_k=n_k, dtype=dtype)
        valid = None
        if mask is not None:
            valid = pack_mask(torch.rand(2, 1, 1, n_k) < 0.7 if mask == "keys" else torch.rand(2, 4, n_q, n_k) < 0.7)
        arguments = dict(p=p, q=0.4, seed=2**63 + 5, layer=3, valid=valid, is_causal=is_causal, region=region)
        ours = cuda_keep_mask(x, y, **arguments, scheduler_seed=seed, **(LONG if seed % 2 else {}))
        assert_same(ours, keep_mask(x, y, backend="cpp", **arguments), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 63, 100, 257, 512, 1000, 2048, 4096])
def test_sizes_of_rows(cuda_keep_mask, n, dtype):
    d = [3, 64, 72, 130][n % 4]
    x, y = small_problem(heads=2, kv_heads=1, n_q=min(n, 37) if n < 2048 else 3, n_k=n, d=d, dtype=dtype)
    x, y = x[:1], y[:1]
    lengths = pack_mask(torch.arange(n) < max(1, n - 40))[None, None, None]
    for seed, options in enumerate(({}, {"is_causal": True}, {"valid": lengths}, {"region": "low"})):
        arguments = dict(p=0.3, q=0.3, seed=1, **options)
        ours = cuda_keep_mask(x, y, **arguments, scheduler_seed=seed)
        assert_same(ours, keep_mask(x, y, backend="cpp", **arguments), (n, options))


@pytest.mark.parametrize("keys", ["fp32", "bf16"])
@pytest.mark.parametrize(("n", "n_q"), [(9000, 2), (20000, 1)])
def test_rows_that_several_warps_share(cuda_keep_mask, n, n_q, keys):
    x, y = small_problem(heads=1, kv_heads=1, n_q=n_q, n_k=n, d=6)
    valid = pack_mask(torch.rand(2, 1, n_q, n) < 0.9)
    ours = cuda_keep_mask(x, y, p=0.3, q=0.3, seed=1, valid=valid, keys=keys, scheduler_seed=n)
    assert_same(ours, keep_mask(x, y, p=0.3, q=0.3, seed=1, valid=valid, keys=keys, backend="cpp"), n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_how_the_work_is_cut(dtype):
    x, y = (torch.randn(1, 2, n, 40).to(dtype) for n in (150, 300))
    arguments = dict(p=0.3, q=0.5, seed=9, is_causal=True)
    expected = emulated_keep_mask(x, y, **arguments)
    for seed, (shared, scratch) in enumerate([(232448, 1), (60_000, 1), (30_000, 1), (12_000, 1), (12_000, 150_000)]):
        ours = emulated_keep_mask(x, y, **arguments, scheduler_seed=seed, shared_bytes=shared, scratch_bytes=scratch)
        assert_same(ours, expected, shared)
    many = emulated_keep_mask(
        *(t.expand(80, 2, -1, -1)[..., :40, :] for t in (x, y)), p=0.3, q=0.5, seed=9
    )  # larger blocks
    few = emulated_keep_mask(x[:, :, :40], y[:, :, :40], p=0.3, q=0.5, seed=9)
    assert torch.equal(many.rows[0], few.rows[0])
    assert torch.equal(many.cols[0], few.cols[0])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 60), p=st.floats(0, 1), low=st.booleans(), bf16=st.booleans())
def test_special_values_match_the_oracle(data, n, p, low, bf16):
    rows = data.draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=9, max_size=9))
    check_against_oracle(torch.tensor(rows, dtype=torch.float32), p, low, bf16)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "equal", "zeros", "tails", "all_nan"])
def test_rows_of_every_kind_match_the_oracle(kind, low, bf16):
    for seed, n in enumerate((5, 300, 700, 1100)):
        rows = torch.randn(3, n)
        if kind == "ties":
            rows = rows.round()
        elif kind == "nan":
            rows[torch.rand(3, n) < 0.2] = math.nan
            rows[torch.rand(3, n) < 0.1] = math.inf
        elif kind == "equal":
            rows[:] = rows[:, :1]
        elif kind == "zeros":
            rows = torch.where(torch.rand(3, n) < 0.5, 0.0, -0.0)
        elif kind == "tails":
            rows = rows * torch.exp(8 * torch.randn(3, n))
        elif kind == "all_nan":
            rows[:] = math.nan
        for p in (0.02, 0.3, 0.85, 0.999):
            check_against_oracle(rows, p, low, bf16, scheduler_seed=seed)


def check_against_oracle(rows: torch.Tensor, p: float, low: bool, bf16: bool, **launch: int) -> None:
    """As in test_keep_mask: with q = 1 every candidate is dropped, unless its row would be emptied."""
    keys = rows.bfloat16().float() if bf16 else rows
    exact = np.array([oracle_row(row, p, low) for row in keys.tolist()])
    rescued = exact.all(-1)
    expected = np.where(rescued[:, None], True, ~exact)
    x, y = as_problem(rows)
    keep = emulated_keep_mask(
        x, y, p=p, q=1.0, seed=0, region="low" if low else "high", keys="bf16" if bf16 else "fp32", **launch
    )
    assert np.array_equal(unpack_mask(keep.rows, rows.shape[1])[:, 0, 0].numpy(), expected)
    assert keep.counts.tolist() == [exact.size, exact.sum(), exact[~rescued].sum(), rescued.sum()]


@pytest.mark.parametrize("keys", ["fp32", "bf16"])
def test_random_float32_gives_the_bits_of_the_cpp_kernel(cuda_keep_mask, keys):
    """Both multiply by one chain of fused multiply-adds over d, so the keys are equal too."""
    x, y = torch.randn(2, 2, 70, 50) * 3, torch.randn(2, 2, 90, 50)
    arguments = dict(p=0.37, q=0.41, seed=77, keys=keys)
    assert_same(cuda_keep_mask(x, y, **arguments), keep_mask(x, y, backend="cpp", **arguments), keys)


@pytest.mark.parametrize("keys", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_random_halves_differ_only_at_keys_that_round_differently(cuda_keep_mask, dtype, keys):
    n = 200
    x, y = (torch.randn(2, 2, n, 64).to(dtype) for _ in range(2))
    arguments = dict(p=0.3, q=1.0, seed=1, keys=keys)
    ours, expected = (
        unpack_mask(keep.rows, n)
        for keep in (cuda_keep_mask(x, y, **arguments), keep_mask(x, y, backend="cpp", **arguments))
    )
    differs = ours != expected
    exact = x.double() @ y.double().transpose(-1, -2)
    threshold = exact.sort(-1).values[..., int(n * np.float32(0.7)), None]
    magnitude = x.double().abs() @ y.double().abs().transpose(-1, -2)
    unit = 2.0**-8 if keys == "bf16" else 2.0**-24
    slack = 4 * (64 * 2.0**-24 * magnitude + unit * exact.abs())
    assert float(differs.double().mean()) < (2e-3 if keys == "bf16" else 1e-4)
    assert bool(((exact - threshold).abs() <= slack)[differs].all())


@pytest.mark.parametrize("launch", [{}, LONG | {"shared_bytes": 24_000}], ids=["short", "long"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("region", ["high", "low"])
def test_weighting_by_attention(cuda_keep_mask, dtype, region, launch):
    q, x = (torch.randn(2, 4, 50, d).to(dtype) for d in (24, 16))
    k, y = (torch.randn(2, 2, 70, d).to(dtype) for d in (24, 16))
    scores = q.float() @ k.float().repeat_interleave(2, 1).transpose(-1, -2) / 4
    weight = (q, k, torch.logsumexp(scores, -1), 0.25)
    arguments = dict(p=0.3, q=1.0, seed=0, weight=weight, region=region)
    ours, expected = cuda_keep_mask(x, y, **arguments, **launch), keep_mask(x, y, backend="cpp", **arguments)
    differs = unpack_mask(expected.rows, 70) != unpack_mask(ours.rows, 70)
    assert float(differs.float().mean()) < 2e-3
    assert torch.equal(ours.cols, transpose_mask(ours.rows, 70, backend="reference"))


def test_strides_and_sample_ids(cuda_keep_mask):
    base = torch.randint(-3, 4, (2, 40, 4, 9)).bfloat16()
    x, y = base.transpose(1, 2)[..., 1:], torch.randint(-3, 4, (2, 2, 33, 16)).bfloat16()[..., :8]
    shared = torch.randint(-3, 4, (1, 1, 40, 8)).bfloat16().expand(2, 4, 40, 8)
    for queries in (x, shared):
        arguments = dict(p=0.4, q=0.5, seed=1, layer=7, sample_ids=torch.tensor([2**33 + 5, 9]))
        ours = cuda_keep_mask(queries, y, **arguments)
        assert_same(ours, keep_mask(queries, y, backend="cpp", **arguments), queries.stride())


@pytest.mark.parametrize("n_k", [100, 2500])
def test_nothing_is_ranked_where_the_head_dimension_is_zero(cuda_keep_mask, n_k):
    valid = pack_mask(torch.rand(2, 1, 1, n_k) < 0.8)
    x, y = torch.empty(2, 3, 40, 0), torch.empty(2, 1, n_k, 0)
    for p, region in itertools.product((0.0, 0.4, 1.0), ("high", "low")):
        arguments = dict(p=p, q=0.3, seed=8, valid=valid, is_causal=True, region=region)
        assert_same(cuda_keep_mask(x, y, **arguments), keep_mask(x, y, backend="cpp", **arguments), (p, region))


def test_rescued_and_empty_rows(cuda_keep_mask):
    x, y = small_problem()
    valid = pack_mask((torch.rand(2, 4, 40, 63) < 0.03).contiguous())
    arguments = dict(p=1.0, q=1.0, seed=3, valid=valid)
    assert_same(cuda_keep_mask(x, y, **arguments), keep_mask(x, y, backend="cpp", **arguments), "rescued")


@pytest.mark.gpu
def test_random_keep_mask_on_the_device():
    arguments = dict(p=0.5, q=0.4, seed=8, layer=2, is_causal=True)
    ours = random_keep_mask(3, 4, 90, 100, **arguments, device="cuda", backend="cuda")
    expected = random_keep_mask(3, 4, 90, 100, **arguments, backend="cpp")
    assert_same(KeepMask(ours.rows.cpu(), ours.cols.cpu(), ours.counts.cpu()), expected, "random")


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "n_q", "n_k", "d"), [(0, 4, 4, 2), (2, 0, 4, 2), (2, 4, 0, 2), (2, 4, 4, 0)])
def test_empty_input_on_the_device(batch, n_q, n_k, d):
    x, y = torch.ones(batch, 2, n_q, d, device="cuda"), torch.ones(batch, 2, n_k, d, device="cuda")
    keep = keep_mask(x, y, p=0.5, q=0.5, seed=0, backend="cuda")
    assert keep.shape == (batch, 2, n_q, n_k)
    assert keep.counts[0] == batch * 2 * n_q * n_k


@pytest.mark.gpu
@pytest.mark.parametrize("n", [512, 4096])
def test_a_cuda_graph_replays_the_same_bits(n):
    x, y = (torch.randn(1, 2, n, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    expected = keep_mask(x, y, p=0.3, q=0.3, seed=1, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keep = keep_mask(x, y, p=0.3, q=0.3, seed=1, backend="cuda")
    for _ in range(2):
        keep.rows.zero_()
        graph.replay()
        assert_same(keep, expected, n)
