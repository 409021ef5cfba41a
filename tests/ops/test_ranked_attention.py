"""ranked_attention: gradients of masked_attention and the mask of keep_mask, both to the bit, in one backward."""

import json
import os
import subprocess
import sys

import pytest
import torch

from attrdrop import KeepMask, keep_mask, masked_attention, pack_mask
from attrdrop._core import backends
from attrdrop.ops.ranked_attention import KeepRule, can_rank, ranked_attention
from attrdrop.reference.ranked_attention import ranked_attention_backward

pytestmark = pytest.mark.skipif(bool(backends.COMPILED_MISSING), reason="needs the C++ kernels")


class Ranking:
    """Notes what it is told."""

    def __init__(self, rule, is_last=False):
        self._rule, self._is_last = rule, is_last
        self.keep = self.grad_out = None

    def rule(self):
        return self._rule

    def is_last(self):
        return self._is_last

    def receive(self, grad_out, keep):
        self.grad_out, self.keep = grad_out, keep


def problem(batch=2, heads=4, kv_heads=2, n_q=70, n_k=63, d=16, d_v=None, dtype=torch.float32, columns=None):
    q = torch.randn(batch, heads, n_q, d).to(dtype)
    k, v = torch.randn(batch, kv_heads, n_k, d).to(dtype), torch.randn(batch, kv_heads, n_k, d_v or d).to(dtype)
    columns = torch.rand(batch, heads, n_q, n_k) < 0.8 if columns is None else columns
    grad_out = torch.randn(batch, n_q, heads, d_v or d).to(dtype)
    grad_out[:, n_q // 2 : n_q // 2 + 20] = 0  # queries that nothing reads
    return [t.requires_grad_() for t in (q, k, v)], KeepMask.from_rows(pack_mask(columns), n_k), grad_out


def walk(qkv, keep, grad_out, rule, is_last=False, bias=None, **options):
    """(out, gradients, mask) of ranked_attention."""
    ranking, marker = Ranking(rule, is_last), torch.empty((), requires_grad=True)
    out = ranked_attention(*qkv, keep, ranking, marker, bias=bias, **options)
    wanted = qkv if bias is None else [*qkv, bias]
    return out, torch.autograd.grad(out, wanted, grad_out, allow_unused=True), ranking


def same_mask(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("rows", "cols", "counts"))


def expect_the_same(qkv, keep, grad_out, rule, bias=None, sample_ids=None, **options):
    out, grads, ranking = walk(qkv, keep, grad_out, rule, bias=bias, sample_ids=sample_ids, **options)
    wanted = qkv if bias is None else [*qkv, bias]
    plain = masked_attention(*qkv, keep, bias=bias, sample_ids=sample_ids, **options)
    assert torch.equal(out, plain)
    for mine, theirs in zip(grads, torch.autograd.grad(plain, wanted, grad_out), strict=True):
        assert torch.equal(mine, theirs)
    x = grad_out.transpose(1, 2)
    expected = keep_mask(x, qkv[2], valid=keep.rows, sample_ids=sample_ids, **rule._asdict())
    assert same_mask(ranking.keep, expected)
    assert torch.equal(ranking.grad_out, x)


SHAPES = [
    dict(n_q=1, n_k=7), dict(n_q=63, n_k=1), dict(n_q=111, n_k=111, d=24), dict(n_q=40, n_k=1000, d=32),
    dict(batch=1, heads=2, kv_heads=1, n_q=700, n_k=211), dict(batch=5, n_q=49, n_k=192, d_v=20),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_two_operators_to_the_bit(shape, dtype):
    """700 queries are walked in parts."""
    expect_the_same(*problem(**shape, dtype=dtype), KeepRule(0.3, 0.4, 5, 2))


@pytest.mark.parametrize("region", ["high", "low"])
@pytest.mark.parametrize("keys", ["fp32", "bf16"])
@pytest.mark.parametrize(("p", "q"), [(0.0, 1.0), (0.5, 0.5), (1.0, 1.0)])
def test_every_rule(region, keys, p, q):
    rule = KeepRule(p, q, -7, 65535, region, keys)
    expect_the_same(*problem(), rule, sample_ids=torch.tensor([9, 4]), dropout_p=0.2, seed=3)


@pytest.mark.parametrize("columns", [(2, 1, 1, 63), (1, 1, 70, 63), "causal", "none", "tiles"])
def test_masks_that_broadcast_and_rows_and_tiles_without_a_bit(columns):
    if columns == "causal":
        columns = torch.ones(1, 1, 70, 63, dtype=torch.bool).tril()
    elif columns == "none":
        columns = torch.rand(2, 4, 70, 63) < 0.5
        columns[0, 0, 3] = columns[1, :, 48:60] = False
    elif columns == "tiles":
        columns = torch.ones(1, 1, 100, 600, dtype=torch.bool)
        columns[:, :, :, 192:384] = False
    else:
        columns = torch.rand(columns) < 0.7
    n_q, n_k = (100, 600) if columns.shape[-1] == 600 else (70, 63)
    for region in ("high", "low"):
        expect_the_same(*problem(n_q=n_q, n_k=n_k, columns=columns), KeepRule(0.4, 0.5, 1, 0, region))


@pytest.mark.parametrize("shape", [(2, 4, 70, 63), (1, 4, 1, 63), (1, 1, 70, 1)])
def test_the_gradient_of_a_bias_comes_too(shape):
    qkv, keep, grad_out = problem()
    expect_the_same(qkv, keep, grad_out, KeepRule(0.3, 0.3, 1), bias=torch.randn(shape, requires_grad=True))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [0, 1, 2, "grad"])
def test_what_is_not_finite_is_ranked_as_by_keep_mask(poison, where):
    qkv, keep, grad_out = problem()
    if where == "grad":
        grad_out[1, 3, 2] = poison
    else:
        qkv[where].detach()[1, 1, 40] = poison
    for region in ("high", "low"):
        rule = KeepRule(0.3, 0.4, 5, 2, region)
        _, _, ranking = walk(qkv, keep, grad_out, rule)
        expected = keep_mask(grad_out.transpose(1, 2), qkv[2], valid=keep.rows, **rule._asdict())
        assert same_mask(ranking.keep, expected)


def test_queries_without_a_gradient_hide_no_value_that_is_not_finite():
    qkv, keep, grad_out = problem(kv_heads=4, columns=torch.ones(1, 1, 70, 63, dtype=torch.bool))
    grad_out[:, 1:] = 0
    qkv[2].detach()[0, 0, 5] = torch.inf
    _, grads, _ = walk(qkv, keep, grad_out, KeepRule(0.3, 0.4, 5))
    wanted = torch.autograd.grad(masked_attention(*qkv, keep, backend="reference"), qkv, grad_out)
    for mine, theirs in zip(grads, wanted, strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())


def test_one_gradient_alone_is_that_of_all_but_zeros():
    """As of a classifier on the first token; all other queries are left out of the walk."""
    qkv, keep, grad_out = problem(n_q=300, n_k=300)
    grad_out[:, 1:] = 0
    expected = torch.autograd.grad(masked_attention(*qkv, keep, backend="reference"), qkv, grad_out)
    _, grads, _ = walk(qkv, keep, grad_out, KeepRule(0.3, 0.4, 5))
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=2e-5)


def test_where_the_walk_ends_only_the_mask_is_made():
    qkv, keep, grad_out = problem()
    rule = KeepRule(0.3, 0.4, 5, 2)
    _, grads, ranking = walk(qkv, keep, grad_out, rule, is_last=True)
    assert grads == (None, None, None)
    assert same_mask(ranking.keep, walk(qkv, keep, grad_out, rule)[2].keep)
    assert walk(qkv, keep, grad_out, None, is_last=True)[2].keep is None


def test_without_a_rule_it_is_masked_attention():
    qkv, keep, grad_out = problem()
    _, grads, ranking = walk(qkv, keep, grad_out, None)
    assert ranking.keep is None
    expected = torch.autograd.grad(masked_attention(*qkv, keep), qkv, grad_out)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(grads, expected, strict=True))


def test_any_number_of_threads_gives_the_same_bits():
    qkv, keep, grad_out = problem(batch=1, heads=2, kv_heads=1, n_q=700, n_k=300)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            found.append(walk(qkv, keep, grad_out, KeepRule(0.3, 0.4, 5), dropout_p=0.1, seed=1))
        finally:
            torch.set_num_threads(threads)
    for _, grads, ranking in found[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(grads, found[0][1], strict=True))
        assert same_mask(ranking.keep, found[0][2].keep)


@pytest.mark.parametrize(("batch", "n_q", "n_k"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_empty_input(batch, n_q, n_k):
    qkv, keep, grad_out = problem(batch=batch, n_q=n_q, n_k=n_k)
    _, grads, ranking = walk(qkv, keep, grad_out, KeepRule(0.5, 0.5, 1))
    assert all(grad.eq(0).all() for grad in grads)
    assert ranking.keep.shape == (batch, 4, n_q, n_k)
    assert ranking.keep.counts.tolist() == [0] * 4


def operands(bias=None):
    (q, k, v), keep, grad_out = problem()
    q, k, v = (t.detach() for t in (q, k, v))
    rest = (bias, 0.25, 0.1, 7, torch.tensor([3, 4]))
    out, lse = torch.ops.attrdrop.masked_attention(q, k, v, keep.rows, *rest)
    return (grad_out, q, k, v, out, lse, keep.rows, keep.cols, *rest, bias is not None, 0.3, 0.4, 5, 2, False, False)


def test_the_operator_is_its_definition():
    arguments = operands(torch.randn(2, 1, 70, 63))
    found = torch.ops.attrdrop.ranked_attention_backward(*arguments)
    expected = ranked_attention_backward(*arguments)
    for mine, theirs in zip(found[:4], expected[:4], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=2e-5)
    mine, theirs = KeepMask(*found[4:]), KeepMask(*expected[4:])
    assert torch.equal(mine.rows, theirs.rows)
    assert torch.equal(mine.cols, theirs.cols)
    assert torch.equal(mine.counts, theirs.counts)


@pytest.mark.parametrize("bias", [None, (2, 1, 70, 63)])
def test_opcheck(bias):
    arguments = operands(None if bias is None else torch.randn(bias))
    torch.library.opcheck(torch.ops.attrdrop.ranked_attention_backward, arguments)


BITS = """
import sys, torch
torch.manual_seed(0)
x, v, q = torch.randn(1, 2, 90, 24), torch.randn(1, 2, 300, 24), torch.randn(1, 2, 90, 24)
from attrdrop import KeepMask, pack_mask
keep = KeepMask.from_rows(pack_mask(torch.ones(1, 1, 1, 300, dtype=torch.bool)), 300)
ops = torch.ops.attrdrop
out, lse = ops.masked_attention(q, v, v, keep.rows, None, 0.2, 0.0, 0, None)
saved = (q, v, v, out, lse, keep.rows, keep.cols, None, 0.2, 0.0, 0, None, False)
found = ops.ranked_attention_backward(x.transpose(1, 2).contiguous(), *saved, 0.3, 0.4, 5, 2, False, False)
torch.save(found[4:], sys.argv[1])
"""


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
def test_every_isa_gives_the_bits_of_keep_mask(isa, tmp_path):
    if isa not in json.loads(torch.ops.attrdrop.build_info())["isa_available"].split():
        pytest.skip(f"this processor does not run {isa}")
    env = {**os.environ, "ATTRDROP_ISA": isa}
    subprocess.run([sys.executable, "-c", BITS, str(tmp_path / "bits.pt")], env=env, check=True)
    torch.manual_seed(0)
    x, v = torch.randn(1, 2, 90, 24), torch.randn(1, 2, 300, 24)
    expected = keep_mask(x, v, p=0.3, q=0.4, seed=5, layer=2)
    for mine, theirs in zip(torch.load(tmp_path / "bits.pt"), expected.__dict__.values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (KeepRule(1.5, 0.4, 5), ValueError, r"p must lie in \[0, 1\]"),
        (KeepRule(0.5, 0.4, 5, 70000), ValueError, "layer must"),
        (KeepRule(0.5, 0.4, 5, 0, "middle"), ValueError, "region must be one of"),
        (KeepRule(0.5, 0.4, 5, 0, "high", "fp8"), ValueError, "keys must be one of"),
        (KeepRule(0.5, 0.4, "x"), TypeError, "seed must be an int"),
    ],
)
def test_a_bad_rule_is_named(rule, error, message):
    with pytest.raises(error, match=message):
        walk(*problem(), rule)


def test_what_it_does_not_serve_is_said():
    qkv, keep, _ = problem()
    marker = torch.empty((), requires_grad=True)
    doubles = [t.double() for t in qkv]
    assert can_rank(*qkv)
    assert not can_rank(*doubles)
    with pytest.raises(RuntimeError, match=r"needs CPU tensors of one half or single type.*got torch.float64 on cpu"):
        ranked_attention(*doubles, keep, Ranking(None), marker)
    with pytest.raises(TypeError, match=r"keep must be a KeepMask .*got None"):
        ranked_attention(*qkv, None, Ranking(None), marker)
    with backends.use_backend("reference"):
        assert not can_rank(*qkv)
