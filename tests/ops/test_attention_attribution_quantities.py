"""attention_attribution's quantities, A and A * dF/dA: against the matrices in float64, and without any."""

from pathlib import Path

import pytest
import torch
from backends import EVERYWHERE as BACKENDS
from backends import device_of
from torch._subclasses.fake_tensor import FakeTensorMode

from attrdrop import AttentionWeight, KeepMask, attention_attribution, masked_attention, pack_mask
from attrdrop.lab.device import PeakMemory

CAN_MEASURE = Path("/proc/self/clear_refs").exists()


class Problem:
    """Attention of 4 query heads on 2 key heads, and its n x n matrices in float64."""

    def __init__(self, n_q=40, n_k=63, *, bias=None, is_causal=False, dtype=torch.float32, layout=torch.Tensor.clone):
        make = lambda *shape: layout(torch.randn(shape).to(dtype))  # noqa: E731
        self.q, self.k = make(2, 4, n_q, 5), make(2, 2, n_k, 5)
        self.v, self.grad_out = make(2, 2, n_k, 7), make(2, 4, n_q, 7)
        self.bias = None if bias is None else layout(torch.randn(bias).to(dtype))
        columns = torch.rand(2, 1, n_q, n_k) < 0.8
        columns[0, :, 3 % n_q] = False  # a query that attends to nothing
        self.valid, self.is_causal = pack_mask(columns), is_causal
        columns = columns & torch.ones(n_q, n_k).tril().bool() if is_causal else columns
        q, k, v, grad_out = (x.double() for x in (self.q, self.k, self.v, self.grad_out))
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        scores = 0.3 * q @ k.transpose(-1, -2) + (0 if bias is None else self.bias.double())
        scores = scores.masked_fill(~columns, -torch.inf)
        self.lse = scores.logsumexp(-1).float()
        probability = scores.softmax(-1).nan_to_num()
        gradient = (grad_out @ v.transpose(-1, -2)).masked_fill(~columns, 0)
        self.columns = columns.expand(gradient.shape)
        self.full = {"gradient": gradient, "probability": probability, "relevance": probability * gradient}

    def ask(self, quantity, backend, **options):
        device = device_of(backend)
        q, k, lse, bias, valid, grad_out, v = (
            x if x is None else x.to(device)
            for x in (self.q, self.k, self.lse, self.bias, self.valid, self.grad_out, self.v)
        )
        weight = None if quantity == "gradient" else AttentionWeight(q, k, lse, 0.3, bias)
        operands = () if quantity == "probability" else (grad_out, v)
        found = attention_attribution(
            *operands, quantity=quantity, weight=weight, valid=valid, is_causal=self.is_causal, backend=backend,
            **options,
        )  # fmt: skip
        return found.cpu() if isinstance(found, torch.Tensor) else type(found)(*(x.cpu() for x in found))


def check(problem, quantity, backend, k=9):
    full = problem.full[quantity]
    close = dict(rtol=2e-5, atol=2e-5, check_dtype=False)
    torch.testing.assert_close(problem.ask(quantity, backend), full.sum(2), **close)
    rows = torch.tensor([3, 0, 6]).clamp(max=full.shape[2] - 1)
    torch.testing.assert_close(problem.ask(quantity, backend, rows=rows), full[:, :, rows], **close)
    top = problem.ask(quantity, backend, topk=k)
    flat = full.masked_fill(~problem.columns, -torch.inf).flatten(2)
    expected = torch.nn.functional.pad(flat, (0, k), value=-torch.inf).topk(k).values
    torch.testing.assert_close(top.values, expected, **close)
    assert torch.equal(top.rows >= 0, expected > -torch.inf)
    places = (top.rows * full.shape[3] + top.columns).clamp(min=0)
    found = top.rows >= 0
    torch.testing.assert_close(full.flatten(2).gather(-1, places)[found], top.values[found], **close)


@pytest.mark.parametrize("quantity", ["probability", "relevance"])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("n_q", "n_k", "bias", "is_causal"),
    [(40, 63, None, False), (63, 63, (2, 1, 1, 63), True), (7, 111, (1, 4, 7, 111), False), (1, 1, None, True)],
)
def test_it_is_the_matrix_of_the_definition(quantity, backend, n_q, n_k, bias, is_causal):
    check(Problem(n_q, n_k, bias=bias, is_causal=is_causal), quantity, backend)


@pytest.mark.parametrize("backend", BACKENDS[2:])
@pytest.mark.parametrize(
    ("quantity", "bias", "is_causal"), [("probability", (1, 4, 9, 40), False), ("relevance", None, True)]
)
def test_it_is_the_matrix_of_the_definition_in_triton(backend, quantity, bias, is_causal):
    check(Problem(9, 40, bias=bias, is_causal=is_causal), quantity, backend, k=2)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_strides(backend, dtype):
    layout = lambda x: x.permute(*range(x.dim() - 1, -1, -1)).contiguous().permute(*range(x.dim() - 1, -1, -1))  # noqa: E731
    check(Problem(21, 40, bias=(2, 4, 21, 40), dtype=dtype, layout=layout), "relevance", backend)


def test_relevance_is_probability_times_its_gradient():
    q, k, v = (torch.randn(2, 4, 20, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    scores = q @ k.transpose(-1, -2) * 0.5
    probability = scores.softmax(-1)
    out = probability @ v
    by_autograd, grad_out, grad_v = torch.autograd.grad(out.sin().sum(), (probability, out, v))
    expected = probability * by_autograd
    weight = (q, k, scores.logsumexp(-1), 0.5)
    rows = attention_attribution(grad_out, v, quantity="relevance", weight=weight, rows=torch.arange(20))
    torch.testing.assert_close(rows, expected)
    sums = attention_attribution(grad_out, v, quantity="relevance", weight=weight)
    torch.testing.assert_close(sums, (v * grad_v).sum(-1))  # the identity of the docstring
    torch.testing.assert_close(rows.sum(-1), (grad_out * out).sum(-1))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_probabilities_under_sinks(backend):
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 9, 4)
    keep = KeepMask.from_rows(pack_mask(torch.ones(1, 1, 6, 9, dtype=torch.bool)), 9)
    v = torch.eye(9).expand(1, 2, 9, 9)
    out, lse = masked_attention(q, k, v, keep, sinks=torch.tensor([0.5, 2.0]), return_lse=True)
    found = attention_attribution(
        quantity="probability", weight=(q, k, lse, 0.5), rows=torch.arange(6), backend=backend
    )
    torch.testing.assert_close(found, out.transpose(1, 2))
    assert (found.sum(-1) < 0.99).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_in_its_row(backend):
    problem = Problem(9, 11)
    problem.q[0, 0, 5, 2] = torch.nan
    problem.lse[0, 0, 5] = torch.nan
    rows = problem.ask("probability", backend, rows=torch.arange(9))
    is_nan = torch.zeros_like(rows, dtype=torch.bool)
    is_nan[0, 0, 5] = problem.columns[0, 0, 5]
    assert torch.equal(rows.isnan(), is_nan)
    assert problem.ask("probability", backend, topk=1).rows[0, 0, 0] == 5


@pytest.mark.skipif(not CAN_MEASURE, reason="needs Linux's peak of resident memory")
@pytest.mark.parametrize("quantity", ["probability", "relevance"])
@pytest.mark.parametrize("options", [{}, {"topk": 5}, {"rows": torch.tensor([4, 7])}])
def test_nothing_n_by_n_is_made(quantity, options):
    n = 6000
    x = torch.randn(1, 1, n, 4)
    weight = (x, x, torch.full((1, 1, n), 9.0), 0.1)
    operands = () if quantity == "probability" else (x, x)
    memory = PeakMemory(torch.device("cpu"))
    attention_attribution(*operands, quantity=quantity, weight=weight, is_causal=True, **options)
    assert memory.bytes() < n * n * 4 / 8


@pytest.mark.parametrize("quantity", ["gradient", "relevance"])
def test_rows_on_a_device_are_not_waited_for(quantity):
    with FakeTensorMode():  # which has no values: to read one is an error
        x, rows = torch.ones(1, 2, 5, 4, device="cuda"), torch.zeros(3, dtype=torch.int64, device="cuda")
        weight = None if quantity == "gradient" else (x, x, torch.zeros(1, 2, 5, device="cuda"), 0.5)
        for picked in (rows, torch.arange(0)):
            found = attention_attribution(x, x, quantity=quantity, weight=weight, rows=picked, backend="reference")
            assert found.shape == (1, 2, len(picked), 5)
            assert found.device.type == "cuda"


def test_empty_input():
    for n_q, n_k in ((0, 3), (3, 0)):
        q, k = torch.ones(2, 4, n_q, 5), torch.ones(2, 2, n_k, 5)
        for backend in BACKENDS[:2]:
            ask = dict(quantity="probability", weight=(q, k, torch.zeros(2, 4, n_q), 1.0), backend=backend)
            assert attention_attribution(**ask).eq(0).all()
            assert attention_attribution(**ask, topk=2).rows.eq(-1).all()


def test_opcheck_and_compile():
    problem = Problem(7, 11, bias=(1, 4, 7, 11))
    weight = (problem.q, problem.k, problem.lse, 0.3, problem.bias)
    for arguments in (
        (problem.grad_out, problem.v, *weight, problem.valid, False, 3),
        (None, None, *weight, None, True, 0),
    ):
        torch.library.opcheck(torch.ops.attrdrop.attention_attribution, arguments)
    compiled = torch.compile(attention_attribution, fullgraph=True, backend="aot_eager")
    ask = dict(quantity="probability", weight=weight)
    assert torch.equal(compiled(**ask), attention_attribution(**ask))


X = torch.ones(2, 4, 8, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(quantity="attention"), ValueError, "quantity must be one of gradient, probability, relevance"),
        (dict(quantity="relevance", weight=None), ValueError, "weight must be given for quantity 'relevance'"),
        (dict(quantity="gradient"), ValueError, "weight must be left out for quantity 'gradient'"),
        (dict(quantity="probability"), ValueError, "grad_out must be left out for quantity 'probability'"),
        (dict(v=None), ValueError, "v must be given for quantity 'relevance'"),
        (dict(weight=(X, X)), TypeError, "weight must be a tuple .* got 2 entries"),
        (dict(weight=(X, X, X, 1.0)), ValueError, "weight lse must be float32 of shape"),
        (dict(weight=(X[:, :, :3], X, X[..., 0], 1.0)), ValueError, "weight q must have shape"),
        (dict(weight=(X, X, X[..., 0], "1")), TypeError, "weight scale must be a number"),
        (dict(weight=(X, X, X[..., 0], 1.0, X)), ValueError, "weight bias must broadcast"),
        (dict(grad_out=None, v=None, quantity="probability", weight=(X, X[:, :3], X[..., 0], 1.0)), ValueError,
         "weight k has 3 heads, which must divide the 4"),
        (dict(grad_out=X[:, :, :0], v=X, quantity="gradient", weight=None, rows=torch.arange(2)), ValueError,
         "rows must be empty if there are no queries"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(arguments, error, message):
    usual = {"grad_out": X, "v": X, "quantity": "relevance", "weight": (X, X, X[..., 0], 1.0)}
    with pytest.raises(error, match=message):
        attention_attribution(**{**usual, **arguments})
