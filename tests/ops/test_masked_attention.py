"""masked_attention: values and gradients against float64, every path of the CPU backend, and the promises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import attention
import pytest
import torch
from attention import FLOOR, errors, exact, gradients, problem, sdpa

from attrdrop import KeepMask, keep_mask, masked_attention, pack_mask, unpack_mask

BACKENDS = ["reference", "cpp"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n_q", "n_k", "kv_heads", "d"),
    [(1, 1, 4, 16), (7, 63, 2, 32), (63, 7, 1, 64), (111, 111, 4, 24), (40, 1000, 2, 16)],
)
def test_error_is_at_most_twice_that_of_torch(backend, dtype, n_q, n_k, kv_heads, d):
    qkv, keep, columns = problem(n_q=n_q, n_k=n_k, kv_heads=kv_heads, d=d, dtype=dtype)
    weight = torch.randn(2, n_q, 4, d)
    expected = gradients(lambda q, k, v: exact(q, k, v, columns), [t.double() for t in qkv], weight)
    ours = gradients(lambda q, k, v: masked_attention(q, k, v, keep, backend=backend), qkv, weight)
    torchs = gradients(lambda q, k, v: sdpa(q, k, v, columns), qkv, weight)
    for mine, theirs in zip(errors(ours, expected), errors(torchs, expected), strict=True):
        assert mine <= 2 * theirs + FLOOR[dtype]


def bias_squares(shape, dtype):
    """Mean squares of our errors, torch's, and the terms that a gradient sums, for out and four gradients (3, 5)."""
    qkv, keep, columns = problem(dtype=dtype)
    bias = torch.randn(shape).to(dtype)
    weight = torch.randn(2, 40, 4, 16)
    doubles = [t.double() for t in (*qkv, bias)]
    expected = gradients(lambda q, k, v, b: exact(q, k, v, columns, b), doubles, weight)
    ours = gradients(lambda q, k, v, b: masked_attention(q, k, v, keep, bias=b, backend="cpp"), [*qkv, bias], weight)
    torchs = gradients(
        lambda q, k, v, b: sdpa(q, k, v, b.expand(2, 4, 40, 63).masked_fill(~columns, -torch.inf)), [*qkv, bias], weight
    )
    constant = masked_attention(*qkv, keep, bias=bias, backend="cpp")
    assert errors([constant], expected[:1])[0] < (1e-5 if dtype == torch.float32 else 5e-2)
    whole = [*doubles[:3], doubles[3].expand(2, 4, 40, 63)]
    terms = gradients(lambda q, k, v, b: exact(q, k, v, columns, b), whole, weight)[-1].square().sum_to_size(shape)
    squares = [[(mine.double() - exactly).square().mean() for mine, exactly in zip(found, expected, strict=True)]
               for found in (ours, torchs)]  # fmt: skip
    return torch.tensor([*squares, [*(exactly.square().mean() for exactly in expected[:4]), terms.mean()]])


@pytest.mark.parametrize("shape", [(2, 4, 40, 63), (1, 4, 40, 63), (2, 1, 1, 63), (40, 63), (1, 1, 40, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_and_its_gradient(shape, dtype):
    """Over eight problems: the largest error of a single small one is mostly luck."""
    mine, theirs, terms = torch.stack([bias_squares(shape, dtype) for _ in range(8)]).mean(0).sqrt()
    assert (mine <= 2 * theirs + terms * (2**-24 if dtype == torch.float32 else 2**-9)).all()


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_dropout_is_the_reference_bit_for_bit(dropout_p, kv_heads):
    qkv, keep, _ = problem(kv_heads=kv_heads, n_q=33, n_k=100)
    weight = torch.randn(2, 33, 4, 16)
    arguments = dict(dropout_p=dropout_p, seed=42, sample_ids=torch.tensor([3, 9]), scale=0.3)

    def run(backend):
        return gradients(lambda q, k, v: masked_attention(q, k, v, keep, backend=backend, **arguments), qkv, weight)

    for mine, theirs in zip(run("cpp"), run("reference"), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=2e-5)


def test_dropout_keeps_the_mean_and_depends_on_the_seed():
    (q, k, _), keep, _ = problem(n_q=64, n_k=256, kv_heads=4)
    v = torch.ones(2, 4, 256, 16)
    outs = torch.stack([masked_attention(q, k, v, keep, dropout_p=0.3, seed=s) for s in range(40)])
    has_keys = unpack_mask(keep.rows, 256).any(-1).transpose(1, 2)
    assert abs(float(outs[:, has_keys].mean()) - 1.0) < 0.01
    assert not torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(1, 1, 1), (1, 4, 2), (5, 4, 4)])
def test_any_number_of_threads_gives_the_same_bits(batch, heads, kv_heads, dropout_p):
    """Few heads are split into parts of their queries, whatever the threads; 700 queries make four."""
    qkv, keep, _ = problem(batch=batch, heads=heads, kv_heads=kv_heads, n_q=700, n_k=211)
    weight = torch.randn(batch, 700, heads, 16)
    threads = torch.get_num_threads()

    def run(count):
        torch.set_num_threads(count)
        try:
            return gradients(
                lambda q, k, v: masked_attention(q, k, v, keep, dropout_p=dropout_p, seed=1, backend="cpp"), qkv, weight
            )
        finally:
            torch.set_num_threads(threads)

    one = run(1)
    for count in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(one, run(count), strict=True))


WORST = """
import torch
from attention import errors, exact, gradients, problem
from attrdrop import masked_attention
torch.manual_seed(0)
qkv, keep, columns = problem(n_q=100, n_k=300, d=40)
weight, bias = torch.randn(2, 100, 4, 40), torch.randn(1, 4, 100, 300)
tensors = [*qkv, bias]
wanted = gradients(lambda q, k, v, b: exact(q, k, v, columns, b), [t.double() for t in tensors], weight)
found = gradients(lambda q, k, v, b: masked_attention(q, k, v, keep, bias=b, backend="cpp"), tensors, weight)
print(max(errors(found, wanted)))
"""


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
def test_every_isa(isa):
    if isa not in json.loads(torch.ops.attrdrop.build_info())["isa_available"].split():
        pytest.skip(f"this processor does not run {isa}")
    env = {**os.environ, "ATTRDROP_ISA": isa, "PYTHONPATH": str(Path(attention.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", WORST], env=env, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2e-5


@pytest.mark.parametrize("causal", [True, False])
def test_tiles_without_a_set_bit_are_as_if_they_were_not_there(causal):
    """Whole tiles of 48 queries and 192 keys are empty, some in the middle of a row."""
    (q, k, v), _, _ = problem(batch=1, n_q=400, n_k=600, kv_heads=4)
    columns = torch.ones(400, 600, dtype=torch.bool)
    columns = columns.tril() if causal else columns.index_fill(1, torch.arange(192, 384), False)
    columns[48:96] = False
    keep = KeepMask.from_rows(pack_mask(columns[None, None]), 600)
    weight = torch.randn(1, 400, 4, 16)
    expected = gradients(lambda q, k, v: exact(q, k, v, columns), [t.double() for t in (q, k, v)], weight)
    found = gradients(lambda q, k, v: masked_attention(q, k, v, keep, backend="cpp"), (q, k, v), weight)
    assert max(errors(found, expected)) < 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_rows_without_a_set_bit_give_zero(backend, dropout_p):
    qkv, keep, columns = problem()
    leaves = [t.requires_grad_() for t in qkv]
    out, lse = masked_attention(*leaves, keep, dropout_p=dropout_p, seed=0, return_lse=True, backend=backend)
    assert out[0, 3, 0].eq(0).all()
    assert lse[0, 0, 3] == -torch.inf
    out.sum().backward()
    assert leaves[0].grad[0, 0, 3].eq(0).all()
    assert all(t.grad.isfinite().all() for t in leaves)
    groups = leaves[1].repeat_interleave(2, 1)
    scores = (leaves[0] @ groups.transpose(-1, -2) / 4).masked_fill(~columns, -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1).detach(), atol=1e-5, rtol=1e-5)


def test_masks_that_broadcast():
    qkv, _, _ = problem()
    columns = torch.rand(2, 1, 1, 63) < 0.7
    keep = KeepMask.from_rows(pack_mask(columns), 63)
    for dropout_p in (0.0, 0.3):
        full = KeepMask.from_rows(pack_mask(columns.expand(2, 4, 40, 63)), 63)
        a, b = (masked_attention(*qkv, mask, dropout_p=dropout_p, seed=1) for mask in (keep, full))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_without_a_mask_it_is_sdpa():
    qkv, _, _ = problem()
    assert torch.equal(masked_attention(*qkv, None), sdpa(*qkv, None, scale=0.25))
    with pytest.raises(ValueError, match="return_lse needs a keep mask"):
        masked_attention(*qkv, None, return_lse=True)
    with pytest.raises(ValueError, match="backend and seed need a keep mask"):
        masked_attention(*qkv, None, backend="cpp")


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_strides(dropout_p):
    (q, k, v), keep, _ = problem()
    views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    views[0] = torch.stack([q, q], -1).flatten(-2)[..., ::2]  # not unit stride
    a = masked_attention(q, k, v, keep, dropout_p=dropout_p, seed=5)
    b = masked_attention(*views, keep, dropout_p=dropout_p, seed=5)
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert b.is_contiguous()
    assert b.shape == (2, 40, 4, 16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize(("batch", "n_q", "n_k"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_empty_input(backend, dropout_p, batch, n_q, n_k):
    qkv = [torch.ones(batch, 2, n, 8, requires_grad=True) for n in (n_q, n_k, n_k)]
    keep = keep_mask(qkv[0], qkv[1], p=0.5, q=0.5, seed=0)
    out = masked_attention(*qkv, keep, dropout_p=dropout_p, seed=0, backend=backend)
    assert out.shape == (batch, n_q, 2, 8)
    assert out.eq(0).all()
    out.sum().backward()
    assert all(t.grad.eq(0).all() for t in qkv)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_masked_keys_may_hold_anything_finite_and_nan_is_not_hidden(poison, dropout_p):
    (q, k, v), _, _ = problem(kv_heads=4)
    columns = torch.ones(2, 4, 40, 63, dtype=torch.bool)
    keep = KeepMask.from_rows(pack_mask(columns), 63)
    q[1, 2, 5] = poison
    out = masked_attention(q, k, v, keep, dropout_p=dropout_p, seed=0)
    assert out[1, 5, 2].isnan().all()
    assert out[0].isfinite().all()


def test_two_runs_are_bitwise_equal():
    qkv, keep, _ = problem(n_q=200, n_k=200)
    weight = torch.randn(2, 200, 4, 16)
    for dropout_p in (0.0, 0.1):
        a, b = (
            gradients(lambda q, k, v, p=dropout_p: masked_attention(q, k, v, keep, dropout_p=p, seed=3), qkv, weight)
            for _ in range(2)
        )
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_gradcheck():
    qkv, keep, _ = problem(batch=1, n_q=5, n_k=7, d=3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in qkv]
    assert torch.autograd.gradcheck(lambda q, k, v: masked_attention(q, k, v, keep), leaves)
    bias = torch.randn(1, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    with_dropout = dict(dropout_p=0.3, seed=4, backend="reference")
    assert torch.autograd.gradcheck(
        lambda q, k, v, b: masked_attention(q, k, v, keep, bias=b, **with_dropout), [*leaves, bias]
    )


def test_opcheck():
    qkv, keep, _ = problem()
    bias, ids = torch.randn(2, 1, 40, 63), torch.tensor([3, 4])
    ops = torch.ops.attrdrop
    for options in ((None, 0.25, 0.0, 0, None), (bias, 0.25, 0.3, 7, ids)):
        torch.library.opcheck(ops.masked_attention, (*qkv, keep.rows, *options))
        out, lse = ops.masked_attention(*qkv, keep.rows, *options)
        has_bias = options[0] is not None
        torch.library.opcheck(
            ops.masked_attention_backward,
            (torch.randn_like(out), *qkv, out, lse, keep.rows, keep.cols, *options, has_bias),
        )


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_compiles_without_graph_breaks(dropout_p):
    qkv, keep, _ = problem()
    leaves = [t.requires_grad_() for t in qkv]

    def step(q, k, v, keep):
        return masked_attention(q, k, v, keep, dropout_p=dropout_p, seed=9).square().sum()

    expected = torch.autograd.grad(step(*leaves, keep), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves, keep), leaves), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_does_not_lower_the_precision_inside():
    qkv, keep, _ = problem()
    plain = masked_attention(*qkv, keep, dropout_p=0.1, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(masked_attention(*qkv, keep, dropout_p=0.1, seed=1), plain)


Q = torch.ones(2, 4, 8, 16)
KEEP = KeepMask.from_rows(pack_mask(torch.ones(2, 4, 8, 8, dtype=torch.bool)), 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(q=Q.int()), TypeError, "q must be float32"),
        (dict(k=Q[..., :8]), ValueError, "k must have shape"),
        (dict(v=Q[:, :, :4]), ValueError, "v must have shape"),
        (dict(k=Q[:, :3], v=Q[:, :3]), ValueError, "must divide the 4 query heads"),
        (dict(keep=torch.ones(2, 4, 8, 8).bool()), TypeError, "keep must be a KeepMask"),
        (dict(keep=KeepMask.from_rows(torch.ones(2, 4, 9, 1).int(), 8)), ValueError, "keep.rows must broadcast"),
        (dict(bias=torch.ones(2, 4, 8, 8).bool()), TypeError, "bias must be floating point"),
        (dict(bias=torch.ones(3, 4, 8, 8)), ValueError, "bias must broadcast"),
        (dict(dropout_p=2.0), ValueError, r"dropout_p must lie in \[0, 1\]"),
        (dict(seed="x", dropout_p=0.1), TypeError, "seed must be an int"),
        (dict(backend="cuda"), RuntimeError, "not implemented for this operator"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        masked_attention(**{"q": Q, "k": Q, "v": Q, "keep": KEEP, **arguments})


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_gradients(backend, dropout_p):
    (q, k, v), keep, _ = problem(n_q=3, n_k=4, d=4, dtype=torch.float32)

    def total(q, k, v, backend=backend):
        out = masked_attention(q, k, v, keep, dropout_p=dropout_p, seed=3, backend=backend)
        return (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()

    found = torch.autograd.functional.hessian(total, (q, k, v))
    wanted = torch.autograd.functional.hessian(lambda *qkv: total(*qkv, backend="reference"), (q, k, v))
    assert wanted[0][1].abs().max() > 1e-3
    for ours, theirs in zip(sum(found, ()), sum(wanted, ()), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5


def test_heads_without_a_dimension_are_refused():
    q = torch.zeros(1, 2, 3, 0)
    with pytest.raises(ValueError, match=r"q must have a head dimension of at least 1, got shape \(1, 2, 3, 0\)"):
        masked_attention(q, q, q, None)
