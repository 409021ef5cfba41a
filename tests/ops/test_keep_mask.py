"""keep_mask: the reference against a row-by-row oracle, every backend against the reference, and the promises."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking import as_problem, digest, oracle_row, small_problem, values

from attrdrop import AttentionWeight, KeepMask, keep_mask, pack_mask, random_keep_mask, transpose_mask, unpack_mask
from attrdrop._core import backends
from attrdrop.reference.philox import bernoulli

HELPERS = Path(__file__).parents[1] / "helpers"

BACKENDS = ["reference", "cpp"]


SHORT = {"data": st.data(), "n": st.integers(1, 60), "p": st.floats(0, 1), "low": st.booleans()}


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(**SHORT)
def test_short_rows_match_the_oracle(data, n, p, low):
    check_short_rows(data, n, p, low)


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(**SHORT)
def test_ten_thousand_short_rows_match_the_oracle(data, n, p, low):
    check_short_rows(data, n, p, low)


def check_short_rows(data, n, p, low):
    rows = data.draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=40, max_size=40))
    check_against_oracle(rows, p, low)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 1000), p=st.floats(0, 1), low=st.booleans(), kind=st.integers(0, 3))
def test_long_rows_match_the_oracle(seed, n, p, low, kind):
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((4, n)).astype(np.float32)
    if kind == 1:
        rows = np.round(rows)  # many ties
    elif kind == 2:
        rows[generator.random(rows.shape) < 0.2] = np.nan
        rows[generator.random(rows.shape) < 0.1] = np.inf
    elif kind == 3:
        rows[:] = rows[:, :1]  # all equal
    check_against_oracle(rows.tolist(), p, low)


def check_against_oracle(rows: list[list[float]], p: float, low: bool) -> None:
    """With q = 1 every candidate is dropped, unless its row would be emptied: such a row is kept whole."""
    tensor = torch.tensor(rows, dtype=torch.float32)
    exact = np.array([oracle_row(row, p, low) for row in tensor.tolist()])
    rescued = exact.all(-1)
    expected = np.where(rescued[:, None], True, ~exact)
    x, y = as_problem(tensor)
    for backend in BACKENDS:
        keep = keep_mask(x, y, p=p, q=1.0, seed=0, region="low" if low else "high", backend=backend)
        kept = unpack_mask(keep.rows, tensor.shape[1])[:, 0, 0].numpy()
        assert np.array_equal(kept, expected), (backend, rows)
        assert keep.counts.tolist() == [exact.size, exact.sum(), exact[~rescued].sum(), rescued.sum()]


@pytest.mark.parametrize(("n", "p", "rank"), [(10, 0.9, 1), (5, 0.8, 1), (90, 0.3, 63)])
def test_rank_is_taken_in_float32(n, p, rank):
    host = pytest.importorskip("attrdrop._host")
    assert host.threshold_rank(n, p) == rank
    keep = keep_mask(*as_problem(torch.randperm(n).float()[None]), p=p, q=1.0, seed=0)
    assert keep.counts[1] == n - rank


GRID = list(
    itertools.product(
        [1, 40],
        [1, 31, 32, 33, 200],
        [0.0, 0.3, 1.0],
        ["high", "low"],
        [False, True],
        [None, "keys", "full"],
        [torch.float32, torch.bfloat16, torch.float16],
    )
)


def test_cpp_is_the_reference_over_a_grid():
    for n_q, n_k, p, region, is_causal, mask, dtype in GRID:
        x, y = small_problem(n_q=n_q, n_k=n_k, dtype=dtype)
        valid = None
        if mask is not None:
            valid = pack_mask(torch.rand(2, 1, 1, n_k) < 0.7 if mask == "keys" else torch.rand(2, 4, n_q, n_k) < 0.7)
        arguments = dict(p=p, q=0.4, seed=2**63 + 5, layer=3, valid=valid, is_causal=is_causal, region=region)
        expected = keep_mask(x, y, backend="reference", **arguments)
        ours = keep_mask(x, y, backend="cpp", **arguments)
        case = (n_q, n_k, p, region, is_causal, mask, dtype)
        assert torch.equal(ours.rows, expected.rows), case
        assert torch.equal(ours.cols, expected.cols), case
        assert torch.equal(ours.counts, expected.counts), case


@pytest.mark.parametrize("n", [512, 1000, 2048, 4096])
def test_long_rows(n):
    x, y = small_problem(heads=1, kv_heads=1, n_q=33, n_k=n, d=16)
    expected, ours = (keep_mask(x, y, p=0.3, q=0.3, seed=1, backend=b) for b in BACKENDS)
    assert torch.equal(ours.rows, expected.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_floats_differ_only_at_keys_that_round_differently(dtype):
    x, y = (torch.randn(2, 3, 200, 64).to(dtype) for _ in range(2))
    expected, ours = (unpack_mask(keep_mask(x, y, p=0.3, q=1.0, seed=1, backend=b).rows, 200) for b in BACKENDS)
    differs = expected != ours
    exact = x.double() @ y.double().transpose(-1, -2)
    threshold = exact.sort(-1).values[..., int(200 * np.float32(0.7)), None]
    magnitude = x.double().abs() @ y.double().abs().transpose(-1, -2)
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24
    slack = 4 * (64 * 2.0**-24 * magnitude + unit * exact.abs())
    assert float(differs.double().mean()) < (2e-3 if dtype == torch.bfloat16 else 1e-5)
    assert bool(((exact - threshold).abs() <= slack)[differs].all())


def test_bf16_keys_round_before_ranking():
    x, y = torch.randn(2, 2, 64, 32), torch.randn(2, 2, 64, 32)
    keys = (x @ y.transpose(-1, -2)).bfloat16()
    threshold = keys.sort(-1).values[..., int(64 * np.float32(0.7)), None]
    kept = unpack_mask(keep_mask(x, y, p=0.3, q=1.0, seed=0, keys="bf16").rows, 64)
    assert float((kept != (keys < threshold)).float().mean()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("region", ["high", "low"])
def test_weighting_by_attention(dtype, region):
    q, k, x, y = (torch.randn(2, 4, 50, 16).to(dtype) for _ in range(4))
    lse = torch.logsumexp(q.float() @ k.float().transpose(-1, -2) / 4, -1)
    weight = AttentionWeight(q, k, lse, 0.25)
    expected, ours = (keep_mask(x, y, p=0.3, q=1.0, seed=0, weight=weight, region=region, backend=b) for b in BACKENDS)
    differs = unpack_mask(expected.rows, 50) != unpack_mask(ours.rows, 50)
    assert float(differs.float().mean()) < 2e-3
    plain = keep_mask(x, y, p=0.3, q=1.0, seed=0, region=region)
    assert not torch.equal(plain.rows, ours.rows)
    probability = torch.softmax(q.double() @ k.double().transpose(-1, -2) / 4, -1)
    b = probability * (x.double() @ y.double().transpose(-1, -2))
    rank = int(np.float32(50) * np.float32(0.3 if region == "low" else 1 - 0.3))
    below = b < b.sort(-1).values[..., rank, None]
    by_definition = ~below if region == "low" else below
    assert float((by_definition != unpack_mask(ours.rows, 50)).float().mean()) < (0.02 if dtype.itemsize == 2 else 1e-3)


def test_causal_and_padding_columns_never_appear():
    x, y = small_problem(n_q=50, n_k=50)
    valid = torch.ones(2, 1, 1, 50, dtype=torch.bool)
    valid[1, ..., 30:] = False
    keep = unpack_mask(keep_mask(x * 1e30, y, p=0.5, q=0.5, seed=3, valid=pack_mask(valid), is_causal=True).rows, 50)
    allowed = valid & torch.ones(50, 50).tril().bool()
    assert not bool((keep & ~allowed).any())
    assert bool((keep.any(-1) == allowed.any(-1)).all())


def test_rows_without_valid_keys_stay_empty():
    x, y = small_problem()
    keep = keep_mask(x, y, p=0.5, q=0.5, seed=3, valid=pack_mask(torch.zeros(2, 1, 40, 63, dtype=torch.bool)))
    assert keep.rows.eq(0).all()
    assert keep.cols.eq(0).all()
    assert keep.counts.tolist() == [0, 0, 0, 0]


def test_rescued_rows_keep_all_their_valid_keys():
    x, y = small_problem()
    keep = keep_mask(x, y, p=1.0, q=1.0, seed=3)
    assert unpack_mask(keep.rows, 63).all()
    assert keep.counts.tolist() == [2 * 4 * 40 * 63, 2 * 4 * 40 * 63, 0, 2 * 4 * 40]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("p", "q"), [(0.0, 1.0), (0.3, 0.0)])
def test_nothing_is_dropped_where_p_or_q_is_zero(backend, p, q):
    keep = keep_mask(*small_problem(), p=p, q=q, seed=3, backend=backend)
    assert unpack_mask(keep.rows, 63).all()


@pytest.mark.parametrize(("p", "q"), [(0.1, 0.9), (0.3, 0.3), (0.8, 0.1)])
def test_drop_fraction_is_binomial(p, q):
    x, y = torch.randn(4, 4, 128, 16), torch.randn(4, 4, 128, 16)
    keep = keep_mask(x, y, p=p, q=q, seed=9)
    valid, candidates, dropped, rescued = keep.counts.tolist()
    per_row = 128 - int(np.float32(128) * np.float32(1 - p))
    assert candidates == per_row * 4 * 4 * 128
    assert rescued == 0
    assert abs(dropped - candidates * q) < 5 * (candidates * q * (1 - q)) ** 0.5
    assert valid - dropped == int(unpack_mask(keep.rows, 128).sum())


def test_counts_and_columns_agree_with_rows():
    keep = keep_mask(torch.randn(2, 4, 70, 8), torch.randn(2, 2, 45, 8), p=0.4, q=0.6, seed=1)
    assert keep.shape == (2, 4, 70, 45)
    assert torch.equal(keep.cols, transpose_mask(keep.rows, 45, backend="reference"))


@pytest.mark.skipif(bool(backends.COMPILED_MISSING), reason="needs the C++ kernels")
def test_columns_are_made_when_asked_for():
    """The CPU's kernels read rows alone, so a mask takes half the memory until then."""
    for keep in (
        keep_mask(torch.randn(2, 4, 70, 8), torch.randn(2, 2, 45, 8), p=0.4, q=0.6, seed=1, backend="cpp"),
        random_keep_mask(2, 4, 70, 45, p=0.4, q=0.6, seed=1, backend="cpp"),
        KeepMask.from_rows(pack_mask(torch.ones(2, 4, 70, 45, dtype=torch.bool)), 45),
    ):
        assert keep.by_key.shape == (2, 4, 45, 0)
        assert keep.shape == (2, 4, 70, 45)
        assert keep.cols.shape == (2, 4, 45, 3)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.zeros(2, 4, 7, 2), TypeError, "rows must be packed int32 words"),
        (torch.zeros(2, 4, 7, 1, dtype=torch.int32), ValueError, r"rows must have ceil\(45 / 32\) = 2 words"),
        (torch.zeros(4, 7, 2, dtype=torch.int32), ValueError, r"rows must have shape \(B, H, n_q, words\), got"),
    ],
)
def test_rows_of_a_mask_are_checked(rows, error, message):
    with pytest.raises(error, match=message):
        KeepMask.from_rows(rows, 45)


def test_bits_do_not_depend_on_the_batch_split():
    x, y = small_problem()
    whole = keep_mask(x, y, p=0.5, q=0.5, seed=3)
    for sample in range(2):
        ids = torch.tensor([sample])
        part = keep_mask(x[sample : sample + 1], y[sample : sample + 1], p=0.5, q=0.5, seed=3, sample_ids=ids)
        assert torch.equal(part.rows[0], whole.rows[sample])


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_are_the_same_for_every_isa_and_thread_count(isa, threads):
    import json

    if isa not in json.loads(torch.ops.attrdrop.build_info())["isa_available"].split():
        pytest.skip(f"this processor does not run {isa}")
    code = f"import torch; torch.set_num_threads({threads}); import ranking; print(ranking.digest())"
    env = {**os.environ, "ATTRDROP_ISA": isa, "PYTHONPATH": str(HELPERS)}
    printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    # lse comes from torch, whose own kernels differ with the ISA it picks: it is the same processor in all runs.
    assert printed.strip() == digest()


def test_an_unknown_isa_is_refused():
    code = "import torch, attrdrop; attrdrop.keep_mask(torch.ones(1,1,2,2), torch.ones(1,1,2,2), p=.5, q=.5, seed=0)"
    env = {**os.environ, "ATTRDROP_ISA": "mmx"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ATTRDROP_ISA=mmx is not one of: base" in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(backend):
    base = torch.randint(-3, 4, (2, 40, 4, 6)).float()
    x, y = base.transpose(1, 2), torch.randint(-3, 4, (2, 2, 6, 33)).float().transpose(2, 3)
    strided = keep_mask(x, y, p=0.4, q=0.5, seed=1, backend=backend)
    assert torch.equal(strided.rows, keep_mask(x.contiguous(), y.contiguous(), p=0.4, q=0.5, seed=1).rows)
    shared = torch.randint(-3, 4, (1, 1, 40, 6)).float().expand(2, 4, 40, 6)
    expanded = keep_mask(shared, y, p=0.4, q=0.5, seed=1, backend=backend)
    assert torch.equal(expanded.rows, keep_mask(shared.clone(), y.clone(), p=0.4, q=0.5, seed=1).rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "n_q", "n_k", "d"), [(0, 4, 4, 2), (2, 0, 4, 2), (2, 4, 0, 2), (2, 4, 4, 0)])
def test_empty_input(backend, batch, n_q, n_k, d):
    keep = keep_mask(torch.ones(batch, 2, n_q, d), torch.ones(batch, 2, n_k, d), p=0.5, q=0.5, seed=0, backend=backend)
    assert keep.shape == (batch, 2, n_q, n_k)
    assert keep.counts[0] == batch * 2 * n_q * n_k


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_keep_mask(backend):
    valid = pack_mask(torch.rand(3, 1, 1, 100) < 0.8)
    keep = random_keep_mask(3, 4, 90, 100, p=0.5, q=0.4, seed=8, layer=2, valid=valid, backend=backend)
    drawn = bernoulli(8, 2, torch.arange(3), 4, 90, 100, 0.2)
    allowed = unpack_mask(valid, 100).expand(3, 4, 90, 100)
    assert torch.equal(unpack_mask(keep.rows, 100), allowed & ~drawn)
    assert keep.counts.tolist() == [int(allowed.sum())] * 2 + [int((allowed & drawn).sum()), 0]


def test_float64_ranks_in_float64():
    x, y = as_problem(torch.tensor([[1.0, 1.0 + 1e-12, 1.0 + 2e-12, 1.0 + 3e-12]], dtype=torch.float64))
    keep = keep_mask(x.double(), y, p=0.5, q=1.0, seed=0)
    assert unpack_mask(keep.rows, 4).flatten().tolist() == [True, True, False, False]


def test_opcheck():
    x, y = small_problem()
    q, k = torch.randn(2, 4, 40, 3), torch.randn(2, 2, 63, 3)
    common = (0.3, 0.3, 7, 1)
    ids = torch.tensor([4, 9])
    valid = pack_mask(torch.rand(2, 1, 1, 63) < 0.7)
    op = torch.ops.attrdrop.keep_mask
    torch.library.opcheck(op, (x, y, *common, None, False, False, False, None, None, None, None, 1.0, None))
    torch.library.opcheck(op, (x, y, *common, valid, True, True, True, ids, q, k, torch.zeros(2, 4, 40), 0.5, None))


def test_compiles_without_graph_breaks_and_without_recompiling_for_seeds():
    x, y = small_problem()
    frames = []

    def backend(graph, _inputs):
        frames.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=backend)
    def kept(x, y, seed):
        keep = keep_mask(x, y, p=0.3, q=0.5, seed=seed)
        return keep.rows, keep.cols, keep.counts

    for seed in range(6):
        ours, expected = kept(x, y, seed), keep_mask(x, y, p=0.3, q=0.5, seed=seed)
        assert torch.equal(ours[0], expected.rows)
        assert torch.equal(ours[1], expected.cols)
    assert len(frames) <= 3  # 0 and 1 are specialised, then the seed is dynamic


X = torch.ones(2, 4, 8, 16)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(p=1.5), ValueError, r"p must lie in \[0, 1\], got 1.5"),
        (dict(q=-0.1), ValueError, r"q must lie in \[0, 1\], got -0.1"),
        (dict(p=float("nan")), ValueError, "p must lie in"),
        (dict(p="0.3"), TypeError, "p must be a number"),
        (dict(x=X[0]), ValueError, r"x must have shape \(batch, heads, length, head dim\)"),
        (dict(x=X.long()), TypeError, "x must be float32"),
        (dict(y=X.half()), TypeError, "y must have the dtype of the other inputs"),
        (dict(y=X[:1]), ValueError, "y must have shape"),
        (dict(y=X[..., :8]), ValueError, "y must have shape"),
        (dict(y=torch.ones(2, 3, 8, 16)), ValueError, "must divide the 4 query heads"),
        (dict(y=X.to("meta")), ValueError, "y must be on the device"),
        (dict(seed=0.5), TypeError, "seed must be an int"),
        (dict(seed=2**64), ValueError, "seed must fit in 64 bits"),
        (dict(layer=-1), ValueError, r"layer must lie in \[0, 65536\)"),
        (dict(region="middle"), ValueError, "region must be one of high, low"),
        (dict(keys="int8"), ValueError, "keys must be one of"),
        (dict(valid=torch.ones(2, 1, 1, 8, dtype=torch.bool)), TypeError, "valid must be packed int32"),
        (dict(valid=torch.ones(3, 1, 1, 1, dtype=torch.int32)), ValueError, "valid must broadcast"),
        (dict(sample_ids=torch.arange(3)), ValueError, r"sample_ids must be int64 of shape \(2,\)"),
        (dict(weight=(X, X)), TypeError, r"weight must be a tuple \(q, k, lse, scale\)"),
        (dict(weight=(X, X, torch.ones(2, 4, 9), 1.0)), ValueError, "weight lse must be float32 of shape"),
        (dict(x=X.double(), y=X.double(), backend="cpp"), RuntimeError, "float64 keys are ranked by the reference"),
        (dict(backend="cuda"), RuntimeError, "cannot serve this call"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        keep_mask(**{"x": X, "y": X, "p": 0.3, "q": 0.3, "seed": 0, **arguments})
