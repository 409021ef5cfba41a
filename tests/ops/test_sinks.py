"""masked_attention with sinks: a logit of each row that joins its softmax and has no value."""

import importlib.util
from functools import partial

import pytest
import torch
from torch import Tensor

from attrdrop import masked_attention
from attrdrop._core import backends
from attrdrop.ops import AttentionWeight, KeepMask, keep_mask, pack_mask

BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(bool(backends.COMPILED_MISSING), reason="needs the C++ kernels")),
    pytest.param("triton", marks=pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")),
]
attend = partial(masked_attention, scale=0.4)


def problem(n_q, n_k, dtype=torch.float32):
    q = torch.randn(2, 4, n_q, 16, dtype=dtype)
    k, v = (torch.randn(2, 2, n_k, 16, dtype=dtype) for _ in range(2))
    mask = torch.rand(2, 4, n_q, n_k) < 0.6
    mask[0, 0, 0] = False  # such a row attends to its sink alone
    return q, k, v, mask


def definition(q, k, v, mask, sinks, bias=None) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the log-sum-exp, and the probabilities of the keys."""
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * 0.4 + (0 if bias is None else bias)
    scores = scores.masked_fill(~mask, -torch.inf)
    sinks = sinks[:, None, None] if sinks.dim() == 1 else sinks
    everything = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], -1)
    probabilities = everything.softmax(-1)[..., :-1]
    return (probabilities @ v).transpose(1, 2), everything.logsumexp(-1), probabilities


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("n_k", [1, 31, 32, 63, 111])
def test_sinks_join_the_softmax(n_k, biased, per_row, backend):
    q, k, v, mask = problem(7, n_k)
    sinks = torch.randn(2, 4, 7, 1) if per_row else torch.randn(4)
    bias = [torch.randn(1, 4, 1, n_k)] * biased
    keep, weight = KeepMask.from_rows(pack_mask(mask), n_k), torch.randn(2, 7, 4, 16)
    leaves = [x.requires_grad_() for x in (q, k, v, sinks, *bias)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected, lse, _ = definition(*exact[:3], mask, *exact[3:])
    options = dict(bias=bias[0]) if biased else {}
    found, found_lse = attend(q, k, v, keep, sinks=sinks, return_lse=True, backend=backend, **options)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(found_lse.double(), lse, atol=2e-6, rtol=2e-6)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    for a, b in zip(torch.autograd.grad((found * weight).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(a.double(), b, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_mask(dtype):
    """Sinks are often kept in float32."""
    q, k, v, _ = problem(9, 33, dtype)
    sinks = torch.randn(4)
    expected, _, _ = definition(q.double(), k.double(), v.double(), torch.ones(9, 33, dtype=torch.bool), sinks.double())
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    found = attend(q, k, v, None, sinks=sinks)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    ones = KeepMask.from_rows(pack_mask(torch.ones(1, 1, 1, 33, dtype=torch.bool)), 33)
    torch.testing.assert_close(attend(q, k, v, ones, sinks=sinks).double(), expected, atol=tolerance, rtol=tolerance)


def test_gradcheck():
    q, k, v, mask = problem(3, 31, torch.float64)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    keep = KeepMask.from_rows(pack_mask(mask), 31)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: attend(*x[:3], keep, sinks=x[3]), (*leaves, sinks))


def test_a_sink_is_never_dropped_and_takes_no_part_in_dropout():
    q, k, v, mask = problem(7, 63)
    keep = KeepMask.from_rows(pack_mask(mask), 63)
    empty = attend(q, k, v, keep, sinks=torch.full((4,), 200.0))
    assert float(empty.detach().abs().max()) < 1e-20
    dropped = attend(q, k, v, keep, sinks=torch.full((4,), -torch.inf), dropout_p=0.3, seed=5)
    torch.testing.assert_close(dropped, attend(q, k, v, keep, dropout_p=0.3, seed=5))


def test_weights_of_keys_follow_from_the_log_sum_exp():
    """Integrated gradients weigh by the probabilities of the keys (Eq. 3), of which sinks take their share."""
    q, k, v, mask = problem(7, 63)
    sinks = torch.randn(4)
    _, lse = attend(q, k, v, KeepMask.from_rows(pack_mask(mask), 63), sinks=sinks, return_lse=True)
    gradient = torch.randn(2, 4, 7, 16)
    weighed = definition(q, k, v, mask, sinks)[2] * (gradient @ v.repeat_interleave(2, 1).transpose(-1, -2))
    keep = keep_mask(
        gradient, v, p=0.3, q=1.0, seed=0, valid=pack_mask(mask), keys="fp32", weight=AttentionWeight(q, k, lse, 0.4)
    )
    one = torch.ones(2, 4, 7, 1)
    expected = [
        keep_mask(one[b : b + 1, h : h + 1, i : i + 1], weighed[b, h, i].view(1, 1, -1, 1), p=0.3, q=1.0, seed=0,
                  valid=pack_mask(mask[b, h, i].view(1, 1, 1, -1)), keys="fp32").rows
        for b in range(2) for h in range(4) for i in range(7)
    ]  # fmt: skip
    assert torch.equal(keep.rows.reshape(-1, 2), torch.cat(expected).reshape(-1, 2))


def test_it_compiles_as_one_graph():
    q, k, v, mask = problem(7, 32)
    keep, sinks = KeepMask.from_rows(pack_mask(mask), 32), torch.randn(4)

    def call(q, sinks):
        return attend(q, k, v, keep, sinks=sinks)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, sinks), call(q, sinks))


@pytest.mark.parametrize("sinks", [torch.ones(3), torch.ones(2, 4, 7, 2), torch.ones(5, 4, 1, 1)])
def test_other_shapes_are_refused(sinks):
    q, k, v, _ = problem(7, 32)
    with pytest.raises(ValueError, match=r"sinks must broadcast to \(H,\) or \(B, H, n_q, 1\) = \(2, 4, 7, 1\), got"):
        attend(q, k, v, None, sinks=sinks)
    with pytest.raises(TypeError, match=r"sinks must be floating point .*, got torch.int64"):
        attend(q, k, v, None, sinks=torch.ones(4, dtype=torch.int64))
