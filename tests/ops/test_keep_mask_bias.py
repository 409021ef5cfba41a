"""keep_mask under a bias: the reference against exact arithmetic, and every backend against the reference."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from ranking import oracle_row, small_problem

from attrdrop import AttentionWeight, keep_mask, masked_attention, unpack_mask
from attrdrop.reference.keep_mask import scale_and_add

LEAST = torch.finfo(torch.float32).min
SCALES = [0.125, 0.17677669, -0.3]


def rounded_once(exact: Fraction) -> float:
    """The float32 nearest to a number, ties to even."""
    if exact == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(exact)))
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    nearest = round(exact / unit) * unit
    return float(nearest) if abs(nearest) < 2**128 else math.copysign(math.inf, nearest)


def special_bias(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Ties, fractions that round with the product, tiny numbers, minus infinity, NaN and the least number."""
    values = torch.tensor([0.0, -0.0, 0.25, -1.0, 0.1, 0.33333, 1e-30, -1e-30, -math.inf, math.nan, LEAST, 3.0, 1e6])
    values = values.nan_to_num(math.nan, None, torch.finfo(dtype).min).to(dtype)
    return values[torch.randint(len(values), shape)]


@pytest.mark.parametrize("scale", SCALES)
def test_the_reference_rounds_once(scale):
    product = torch.randn(400) * torch.exp(10 * torch.randn(400))
    bias = torch.cat([torch.randn(300) * torch.exp(10 * torch.randn(300)), torch.full((100,), 1e-38)])
    factor = Fraction(float(torch.tensor(scale)))
    expected = [
        rounded_once(Fraction(a) * factor + Fraction(b)) for a, b in zip(product.tolist(), bias.tolist(), strict=True)
    ]
    assert scale_and_add(product, scale, bias).tolist() == expected


def test_the_reference_rounds_half_way_products_by_a_tiny_bias():
    product, tiny = torch.tensor([1 + 2.0**-12] * 3), torch.tensor([0.0, 1e-30, -1e-30])
    got = scale_and_add(product, 1 + 2.0**-12, tiny)  # 1 + 2^-11 + 2^-24: half a unit in the last place
    assert (got.double() - (1 + 2.0**-11)).tolist() == [0.0, 2.0**-23, 0.0]


@pytest.mark.parametrize("region", ["high", "low"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rows_match_the_oracle(region, p):
    x, y = small_problem(heads=2, kv_heads=1, n_q=9, n_k=31)
    bias = special_bias(2, 2, 9, 31)
    keep = keep_mask(x, y, p=p, q=1.0, seed=0, bias=bias, scale=0.17677669, region=region, backend="reference")
    kept = unpack_mask(keep.rows, 31)
    rows = scale_and_add(x @ y.transpose(-1, -2), 0.17677669, bias)
    for place in itertools.product(range(2), range(2), range(9)):
        dropped = torch.tensor(oracle_row(rows[place].tolist(), p, region == "low"))
        assert torch.equal(kept[place], torch.ones_like(dropped) if dropped.all() else ~dropped), place


def test_float64_adds_in_float64():
    x, y = torch.ones(1, 1, 1, 1).double(), torch.ones(1, 1, 4, 1).double()
    bias = torch.tensor([0.0, 1e-12, 2e-12, 3e-12], dtype=torch.float64)
    keep = keep_mask(x, y, p=0.5, q=1.0, seed=0, bias=bias, scale=0.5)
    assert unpack_mask(keep.rows, 4).flatten().tolist() == [True, True, False, False]


def test_a_bias_of_minus_infinity_is_ranked_first():
    x, y = small_problem(n_q=8, n_k=10)
    bias = torch.zeros(10)
    bias[3] = -math.inf
    keep = keep_mask(x, y, p=0.95, q=1.0, seed=0, bias=bias, scale=0.5)
    assert unpack_mask(keep.rows, 10)[..., 3].all()


def test_zero_bias_and_scale_one_change_nothing():
    x, y = small_problem()
    plain = keep_mask(x, y, p=0.3, q=0.5, seed=3, backend="reference")
    ours = keep_mask(x, y, p=0.3, q=0.5, seed=3, bias=torch.zeros(1, 1, 1, 1), backend="reference")
    assert torch.equal(ours.rows, plain.rows)


def test_weight_under_a_bias_is_the_attention_of_that_bias():
    q, k, x, y = (torch.randn(2, 4, 50, 16) for _ in range(4))
    bias = torch.randn(1, 4, 50, 50)
    scores = q @ k.transpose(-1, -2) / 4 + bias
    full = keep_mask(x, y, p=0.0, q=0.0, seed=0)
    _, lse = masked_attention(q, k, y, full, bias=bias, scale=0.25, return_lse=True)
    keep = keep_mask(x, y, p=0.3, q=1.0, seed=0, weight=AttentionWeight(q, k, lse, 0.25, bias), backend="reference")
    b = torch.softmax(scores.double(), -1) * (x.double() @ y.double().transpose(-1, -2))
    below = b < b.sort(-1).values[..., 35, None]
    assert float((below != unpack_mask(keep.rows, 50)).float().mean()) < 1e-3


X = torch.ones(2, 4, 8, 16)
BIAS = torch.zeros(2, 4, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(bias=1.0), TypeError, "bias must be a torch.Tensor, got float"),
        (dict(bias=BIAS.bool()), TypeError, "bias must be floating point .*, got torch.bool"),
        (dict(bias=BIAS.to("meta")), ValueError, "bias must be on the device of the other inputs, cpu, got meta"),
        (dict(bias=BIAS[:, :3]), ValueError, r"bias must broadcast to \(B, H, n_q, n_k\) = \(2, 4, 8, 8\), got \(2, 3"),
        (dict(bias=BIAS[None]), ValueError, "bias must broadcast"),
        (dict(bias=BIAS, scale="1"), TypeError, "scale must be a number, got str"),
        (dict(scale=0.5), ValueError, "scale must be 1 where no bias is given, got 0.5"),
        (dict(bias=BIAS, weight=(X, X, torch.ones(2, 4, 8), 1.0)), ValueError, "bias must be None where a weight is"),
        (dict(weight=(X, X, torch.ones(2, 4, 8), 1.0, BIAS[0, :3])), ValueError, "weight bias must broadcast"),
        (dict(weight=(X, X, torch.ones(2, 4, 8), 1.0, None, 1)), TypeError, r"or \(q, k, lse, scale, bias\), got 6 en"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        keep_mask(X, X, p=0.3, q=0.3, seed=0, **arguments)


def test_compiles_without_graph_breaks():
    x, y = small_problem()
    bias = torch.randn(1, 4, 1, 63)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def kept(x, y, bias):
        return keep_mask(x, y, p=0.3, q=0.5, seed=7, bias=bias, scale=0.125).rows

    assert torch.equal(kept(x, y, bias), keep_mask(x, y, p=0.3, q=0.5, seed=7, bias=bias, scale=0.125).rows)
