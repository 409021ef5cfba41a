"""keep_mask under a bias: the reference against exact arithmetic, and every backend against the reference."""

import importlib.util
import itertools
import math
from fractions import Fraction

import pytest
import torch
from emulated import emulated_keep_mask
from ranking import oracle_row, small_problem
from torch.utils._pytree import tree_map

from attrdrop import AttentionWeight, KeepMask, keep_mask, masked_attention, pack_mask, unpack_mask
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


def has(module: str):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not there")


BACKENDS = [
    "cpp",
    pytest.param("emulated", marks=has("attrdrop._host")),
    pytest.param("triton", marks=has("triton")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
HALVES = [torch.bfloat16, torch.float16]


def problem(**shape):
    """One sample of a small problem: Triton's interpreter is slow."""
    return [t[:1] for t in small_problem(**shape)]


def run(backend: str, x: torch.Tensor, y: torch.Tensor, **arguments) -> KeepMask:
    if backend == "emulated":
        return emulated_keep_mask(x, y, **arguments)
    device = "cuda" if backend != "cpp" and torch.cuda.is_available() else "cpu"
    move = lambda a: a.to(device) if isinstance(a, torch.Tensor) else a  # noqa: E731
    keep = keep_mask(move(x), move(y), **tree_map(move, arguments), backend=backend)
    return KeepMask(keep.rows.cpu(), keep.cols.cpu(), keep.counts.cpu())


def check(
    backend: str, x: torch.Tensor, y: torch.Tensor, launch: dict[str, int] | None = None, **arguments
) -> KeepMask:
    """The backend's bits and counts are the reference's; launch is for the emulator."""
    arguments = dict(p=0.3, q=0.6, seed=5, layer=2) | arguments
    expected = keep_mask(x, y, **arguments, backend="reference")
    ours = run(backend, x, y, **arguments, **(launch or {} if backend == "emulated" else {}))
    assert torch.equal(ours.rows, expected.rows), arguments
    assert torch.equal(ours.cols, expected.cols), arguments
    assert torch.equal(ours.counts, expected.counts), arguments
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (33, 7), (7, 63), (5, 111), (2, 1000)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_sizes(backend, n_q, n_k, dtype):
    x, y = problem(heads=2, kv_heads=1, n_q=n_q, n_k=n_k, d=[5, 70, 130][n_k % 3], dtype=dtype)
    for scale, p, region in zip(SCALES, (0.2, 0.5, 0.9), ("high", "low", "high"), strict=True):
        check(backend, x, y, bias=special_bias(1, 2, n_q, n_k), scale=scale, p=p, region=region)


@pytest.mark.parametrize("backend", BACKENDS)
def test_broadcast_in_each_dimension(backend):
    x, y = small_problem(heads=2, kv_heads=1, n_q=5, n_k=33)
    for shape in ((1, 1, 1, 1), (2, 1, 1, 33), (1, 2, 1, 33), (5, 1), (33,)):
        check(backend, x, y, bias=special_bias(*shape), scale=0.125)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(backend):
    x, y = small_problem(heads=2, kv_heads=1, n_q=9, n_k=35)
    wide = special_bias(2, 35, 9, 5).permute(0, 3, 2, 1)[:, 1:4:2]
    check(backend, x, y, bias=wide, scale=0.125)
    check(backend, x, y, bias=special_bias(2, 1, 1, 71)[..., 1::2].expand(2, 2, 9, 35), scale=0.125)


@pytest.mark.parametrize("region", ["high", "low"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks(backend, is_causal, region):
    x, y = problem(heads=2, kv_heads=2, n_q=40, n_k=37)
    valid = pack_mask(torch.rand(1, 1, 40, 37) < 0.7)
    bias = special_bias(2, 40, 37)
    check(backend, x, y, bias=bias, scale=0.17677669, valid=valid, is_causal=is_causal, region=region)


@pytest.mark.parametrize("keys", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_types_of_the_bias(backend, dtype, keys):
    x, y = problem(heads=1, kv_heads=1, n_q=6, n_k=40, dtype=dtype)
    for kind in (dtype, torch.float32, torch.float64):
        check(backend, x, y, bias=special_bias(6, 40, dtype=kind), scale=0.17677669, keys=keys)
    check(backend, x.float(), y.float(), bias=special_bias(6, 40, dtype=dtype), scale=-0.3, keys=keys)


@pytest.mark.parametrize("keys", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_go_through_scratch_memory(backend, dtype, keys):
    for n_q, n_k, launch in ((20, 70, {"shared_bytes": 12_000}), (2, 2500, {})):
        x, y = problem(heads=1, kv_heads=1, n_q=n_q, n_k=n_k, d=9, dtype=dtype)
        check(backend, x, y, launch, bias=special_bias(n_q, n_k), scale=0.125, keys=keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [0, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_zeros_are_ranked_by_the_bias(backend, d, dtype):
    x, y = torch.zeros(1, 1, 5, d, dtype=dtype), torch.ones(1, 1, 40, d, dtype=dtype)
    ours = check(backend, x, y, bias=torch.randn(5, 40), scale=0.5, q=1.0)
    assert 0 < int(ours.counts[1]) < 5 * 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_rank(backend):
    for n_q, n_k in ((0, 4), (4, 0)):
        x, y = torch.ones(1, 2, n_q, 3), torch.ones(1, 2, n_k, 3)
        if backend != "emulated":
            check(backend, x, y, bias=torch.ones(n_q, n_k), scale=0.5)
    for p in (0.0, 1.0):
        check(backend, *problem(heads=1, kv_heads=1, n_q=3), p=p, bias=special_bias(3, 63), scale=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_one_nothing_and_nan(backend, dtype):
    x, y = problem(heads=2, kv_heads=1, n_q=20, n_k=45, dtype=dtype)
    q, k = torch.zeros(1, 2, 20, 16, dtype=dtype), torch.zeros(1, 1, 45, 16, dtype=dtype)
    bias = torch.tensor([1.5, 1.5, 1.5, -math.inf, math.nan])[torch.randint(5, (20, 45))]
    weight = AttentionWeight(q, k, torch.full((1, 2, 20), 1.5), 0.25, bias)
    for region in ("high", "low"):
        check(backend, x, y, weight=weight, region=region)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weighting_by_attention_under_a_bias(backend, dtype):
    q, k, x, y = (torch.randn(1, 2, n, 16).to(dtype) for n in (30, 50, 30, 50))
    bias = torch.randn(2, 30, 50)
    lse = torch.logsumexp(q.float() @ k.float().transpose(-1, -2) / 4 + bias, -1)
    arguments = dict(p=0.3, q=1.0, seed=0, weight=(q, k, lse, 0.25, bias))
    ours = unpack_mask(run(backend, x, y, **arguments).rows, 50)
    expected = unpack_mask(keep_mask(x, y, **arguments, backend="reference").rows, 50)
    assert float((ours != expected).float().mean()) < 2e-3
    plain = keep_mask(x, y, p=0.3, q=1.0, seed=0, weight=(q, k, lse, 0.25))
    assert not torch.equal(unpack_mask(plain.rows, 50), ours)


@has("attrdrop._host")
def test_random_float32_gives_the_same_bits_on_cpp_and_cuda():
    x, y, bias = torch.randn(2, 2, 70, 50), torch.randn(2, 2, 90, 50), torch.randn(2, 1, 70, 90)
    arguments = dict(p=0.37, q=0.41, seed=77, bias=bias, scale=50**-0.5)
    ours, expected = emulated_keep_mask(x, y, **arguments), keep_mask(x, y, **arguments, backend="cpp")
    assert torch.equal(ours.rows, expected.rows)


def test_opcheck():
    x, y = small_problem()
    op = torch.ops.attrdrop.keep_mask
    rule = (0.3, 0.3, 7, 1, None, False, False, False, None)
    torch.library.opcheck(op, (x, y, *rule, None, None, None, 0.5, torch.randn(2, 1, 40, 63)))
    q, k = torch.randn(2, 4, 40, 3), torch.randn(2, 2, 63, 3)
    torch.library.opcheck(op, (x, y, *rule, q, k, torch.zeros(2, 4, 40), 0.5, torch.randn(1, 1, 1, 63)))


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
        (dict(scale=0.5), ValueError, "scale must be 1 if no bias is given, got 0.5"),
        (dict(bias=BIAS, weight=(X, X, torch.ones(2, 4, 8), 1.0)), ValueError, "bias must be None if a weight is"),
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
