"""attention_attribution: rows, sums and top entries against the materialised dO Vᵀ."""

import pytest
import torch
from backends import EVERYWHERE as BACKENDS
from backends import device_of

from attrdrop import attention_attribution, pack_mask


def problem(n_q=40, n_k=63, dtype=torch.float32, integers=True):
    make = (lambda *s: torch.randint(-3, 4, s).to(dtype)) if integers else (lambda *s: torch.randn(s).to(dtype))
    return make(2, 4, n_q, 5), make(2, 2, n_k, 5)


def materialised(grad_out, v, columns):
    b = grad_out.double() @ v.double().repeat_interleave(2, 1).transpose(-1, -2)
    return b, columns.expand(b.shape)


def check_sums_and_top_entries(backend, dtype, is_causal, n_q, n_k, counts):
    device = device_of(backend)
    grad_out, v = problem(n_q, n_k, dtype)
    columns = torch.rand(2, 1, n_q, n_k) < 0.8
    allowed = columns & torch.ones(n_q, n_k).tril().bool() if is_causal else columns
    b, allowed = materialised(grad_out, v, allowed)
    options = dict(valid=pack_mask(columns).to(device), is_causal=is_causal, backend=backend)
    grad_out, v = grad_out.to(device), v.to(device)
    sums = attention_attribution(grad_out, v, **options)
    assert torch.equal(sums.cpu().double(), torch.where(allowed, b, 0.0).sum(2))
    for k in counts:
        values, rows, columns = (t.cpu() for t in attention_attribution(grad_out, v, topk=k, **options))
        flat = torch.where(allowed, b, -torch.inf).flatten(2)
        expected = torch.full((2, 4, k), -torch.inf, dtype=torch.float64)
        largest = flat.sort(-1, descending=True).values[..., :k]
        expected[..., : largest.shape[-1]] = largest
        assert torch.equal(values.double(), expected)
        found = rows >= 0
        assert torch.equal(found, expected > -torch.inf)
        index = rows.clamp(min=0) * n_k + columns.clamp(min=0)
        assert torch.equal(b.flatten(2).gather(-1, index)[found], values.double()[found])
        order = index[..., 1:] > index[..., :-1]  # ties: the smaller index first
        assert bool((order | (values[..., 1:] < values[..., :-1]) | ~found[..., 1:]).all())


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (40, 63), (33, 200), (7, 7)])
def test_sums_and_top_entries(backend, dtype, is_causal, n_q, n_k):
    check_sums_and_top_entries(backend, dtype, is_causal, n_q, n_k, (1, 5, n_q * n_k + 3))


@pytest.mark.parametrize("backend", BACKENDS[2:])
@pytest.mark.parametrize(
    ("dtype", "is_causal", "n_q", "n_k", "counts"),
    [
        (torch.float32, False, 1, 1, (1, 4)),
        (torch.float32, False, 40, 63, (5,)),
        (torch.bfloat16, True, 33, 70, (20,)),
        (torch.float16, False, 7, 7, (52,)),
    ],
)
def test_sums_and_top_entries_in_triton(backend, dtype, is_causal, n_q, n_k, counts):
    check_sums_and_top_entries(backend, dtype, is_causal, n_q, n_k, counts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities_and_nan(backend):
    values = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan, 2.0])
    ones, values = (t.to(device_of(backend)) for t in (torch.ones(1, 1, 1, 1), values.view(1, 1, 5, 1)))
    top = attention_attribution(ones, values, topk=5, backend=backend)
    assert top.columns.flatten().tolist()[2:] == [4, 0, 2]
    assert set(top.columns.flatten().tolist()[:2]) == {1, 3}


@pytest.mark.parametrize("backend", ["reference", None, *BACKENDS[2:]])
def test_rows(backend):
    grad_out, v = (t.to(device_of(backend)) for t in problem())
    columns = torch.rand(2, 1, 40, 63) < 0.8
    b, allowed = materialised(grad_out.cpu(), v.cpu(), columns & torch.ones(40, 63).tril().bool())
    rows = torch.tensor([39, 0, 7])
    valid = pack_mask(columns).to(grad_out.device)
    found = attention_attribution(grad_out, v, rows=rows, valid=valid, is_causal=True, backend=backend)
    assert torch.equal(found.cpu().double(), torch.where(allowed, b, 0.0)[:, :, rows])
    none = attention_attribution(grad_out, v, rows=rows[:0], backend=backend)
    assert none.shape == (2, 4, 0, 63)


def test_it_is_the_gradient_of_the_attention_probabilities():
    q, k, v = torch.randn(3, 2, 4, 20, 8, dtype=torch.float64)
    probability = torch.softmax(q @ k.transpose(-1, -2), -1).requires_grad_()
    out = probability @ v
    target = out.sin().sum()
    (by_autograd,) = torch.autograd.grad(target, probability, retain_graph=True)
    (grad_out,) = torch.autograd.grad(target, out)
    torch.testing.assert_close(attention_attribution(grad_out, v, rows=torch.arange(20)), by_autograd)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_input(backend):
    assert attention_attribution(torch.ones(2, 4, 0, 5), torch.ones(2, 2, 3, 5), backend=backend).eq(0).all()
    top = attention_attribution(torch.ones(1, 1, 2, 5), torch.ones(1, 1, 0, 5), topk=2, backend=backend)
    assert top.rows.eq(-1).all()
    assert top.values.eq(-torch.inf).all()


WEIGHTLESS = None, None, None, 1.0, None  # weight_q, weight_k, weight_lse, scale, bias


def test_opcheck_and_compile():
    grad_out, v = problem()
    valid = pack_mask(torch.rand(2, 1, 1, 63) < 0.8)
    for k in (0, 4):
        torch.library.opcheck(torch.ops.attrdrop.attention_attribution, (grad_out, v, *WEIGHTLESS, valid, True, k))
    compiled = torch.compile(attention_attribution, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(grad_out, v), attention_attribution(grad_out, v))
    assert torch.equal(compiled(grad_out, v, topk=3).columns, attention_attribution(grad_out, v, topk=3).columns)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(topk=0), ValueError, "topk must be a positive int"),
        (dict(topk=2, rows=torch.arange(2)), ValueError, "rows and topk cannot both be given"),
        (dict(rows=torch.ones(2)), TypeError, "rows must be int64"),
        (dict(rows=torch.tensor([8])), ValueError, r"rows must lie in \[0, 8\), got 8 to 8"),
        (dict(topk=2000, backend="triton"), RuntimeError, "topk may be at most 1024, got 2000"),
        (dict(v=torch.ones(2, 3, 8, 5)), ValueError, "must divide"),
        (dict(v=torch.ones(2, 2, 8, 4)), ValueError, "v must have shape"),
        (dict(grad_out=torch.ones(2, 4, 8, 5).long()), TypeError, "grad_out must be float32"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        attention_attribution(**{"grad_out": torch.ones(2, 4, 8, 5), "v": torch.ones(2, 2, 8, 5), **arguments})
