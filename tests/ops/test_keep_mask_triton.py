"""keep_mask in Triton against the reference and a sort: on a GPU where there is one, else in the interpreter."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from attrdrop import pack_mask, unpack_mask
from attrdrop.reference import keep_mask as reference
from attrdrop.reference.pack_mask import transpose_mask

pytest.importorskip("triton")
from attrdrop.triton_kernels import keep_mask as kernels

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if HAS_GPU else []


class Mask(NamedTuple):
    rows: torch.Tensor
    cols: torch.Tensor
    counts: torch.Tensor


def keep_mask(
    x, y, p=0.3, q=0.4, seed=7, layer=1, valid=None, is_causal=False, low=False, keys="auto", sample_ids=None,
    weight=None, bias=None, function=None,
):  # fmt: skip
    """The kernels unless another function is given."""
    bf16_keys = keys == "bf16" or (keys == "auto" and x.dtype != torch.float32)
    weight = (None, None, None, 1.0) if weight is None else weight
    arguments = (p, q, seed, layer, valid, is_causal, low, bf16_keys, sample_ids, *weight, bias)
    return Mask(*(function or kernels.keep_mask)(x, y, *arguments))


def check(x, y, **options):
    """The kernels' bits and counts are the reference's."""
    ours, expected = keep_mask(x, y, **options), keep_mask(x, y, **options, function=reference.keep_mask)
    assert torch.equal(ours.rows, expected.rows)
    assert torch.equal(ours.cols, expected.cols)
    assert torch.equal(ours.counts, expected.counts)
    return ours


def integers(*shape, dtype=torch.float32):
    """Small integers make every product exact, so bits must agree whatever the order of the sums."""
    return torch.randint(-3, 4, shape).to(DEVICE, dtype)


def problem(batch=1, heads=1, kv_heads=1, n_q=20, n_k=63, d=5, dtype=torch.bfloat16):
    return integers(batch, heads, n_q, d, dtype=dtype), integers(batch, kv_heads, n_k, d, dtype=dtype)


@pytest.mark.parametrize("low", [False, True], ids=["high", "low"])
@pytest.mark.parametrize("n_k", [1, 31, 32, 33, 63, 100, 512, 1000])
def test_short_rows_of_bf16_keys(n_k, low):
    check(*problem(n_q=33 if n_k == 63 else 7, n_k=n_k, d=17), low=low)


@pytest.mark.parametrize("keys", ["bf16", "fp32"])
@pytest.mark.parametrize("n_k", [33, 1500, *((2048, 4096, 8192, 20000, 32768) if HAS_GPU else ())])
def test_rows_that_go_through_the_scratch(n_k, keys):
    check(*problem(n_q=5, n_k=n_k, d=20, dtype=torch.float32), keys=keys, low=n_k == 33)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_keys_of_half_inputs(dtype):
    check(*problem(n_q=9, n_k=70, dtype=dtype), keys="fp32")


@pytest.mark.parametrize("d", [16, 64, 100, 300])
def test_head_widths(d):
    check(*problem(n_q=3, n_k=40, d=d))
    check(*problem(n_q=3, n_k=40, d=d, dtype=torch.float32))


def test_blocks_of_rows_and_heads():
    check(*problem(batch=2, heads=2, kv_heads=1, n_q=70, n_k=40))
    check(*problem(batch=1, heads=2, kv_heads=2, n_q=70, n_k=40, dtype=torch.float32))


def test_little_scratch_takes_small_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "SCRATCH_BYTES", 1 << 14)
    check(*problem(heads=2, n_q=40, n_k=100, dtype=torch.float32))


SPECIAL = torch.tensor(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        math.inf,
        -math.inf,
        math.nan,
        2.0**-130,
        -(2.0**-130),
        2.0**120,
        -(2.0**120),
        0.5,
        1.5,
        -2.5,
    ]
)


def special_rows(dtype):
    """Rows x_i y of special values: ties, both zeros, both infinities, NaN, subnormal and very large numbers."""
    y = SPECIAL[torch.randint(len(SPECIAL), (57,))]
    x = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0, -0.0, 2.0**-6, math.inf, math.nan, 2.0**10])
    tame = torch.where(y.isfinite(), y, 0.25)
    x, y = x.view(1, 1, -1, 1).expand(2, 1, -1, 1), torch.stack([y, tame]).view(2, 1, -1, 1)
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype)


def candidates_by_sort(row, p, low):
    """Candidates of one row of valid values; NaN ranks last."""
    n = len(row)
    rank = int(np.float32(n) * np.float32(p if low else 1.0 - p))
    ordered = sorted(v for v in row if not math.isnan(v)) + [math.nan] * sum(map(math.isnan, row))
    if rank >= n:
        return [low] * n
    if low:
        return [rank > 0 and not v >= ordered[rank] for v in row]
    return [not v < ordered[rank] for v in row]


@pytest.fixture(params=[False, True], ids=["steps", "guesses"])
def search(request, monkeypatch):
    """Both ways to find a threshold; short rows of bfloat16 leave the registers, where there are no guesses."""
    monkeypatch.setattr(kernels, "GUESSED_LOADS", 1 if request.param else 99)
    if request.param:
        monkeypatch.setattr(kernels, "register_tile", lambda *key: None)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("low", [False, True], ids=["high", "low"])
@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
@pytest.mark.parametrize(("dtype", "keys"), [(torch.bfloat16, "bf16"), (torch.float32, "fp32")])
def test_special_values_by_a_sort(dtype, keys, p, low):
    x, y = special_rows(dtype)
    columns = torch.rand(2, 1, 10, 57, device=DEVICE) < torch.linspace(0, 1.2, 10, device=DEVICE).view(1, 1, -1, 1)
    ours = check(x, y, p=p, q=1.0, valid=pack_mask(columns), keys=keys, low=low)
    kept = unpack_mask(ours.rows, 57)
    products = reference.attribution(x, y)
    products = products.bfloat16().float() if keys == "bf16" else products
    for place in np.ndindex(2, 10):
        valid, row = columns[place[0], 0, place[1]], products[place[0], 0, place[1]]
        dropped = torch.tensor(candidates_by_sort(row[valid].tolist(), p, low), dtype=torch.bool)
        expected = torch.ones_like(dropped) if dropped.all() else ~dropped
        assert torch.equal(kept[place[0], 0, place[1]][valid].cpu(), expected), place


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_rows(dtype):
    x, y = problem(n_q=6, n_k=45, dtype=dtype)
    ours = check(x, torch.ones_like(y), q=0.9)
    assert ours.counts[1] == ours.counts[0] == 6 * 45


def test_rows_of_zeros():
    """No gradient reaches most rows of a classifier's last layer; its blocks may be skipped."""
    for low in (False, True):
        x, y = problem(n_q=70, n_k=40)
        x[..., 64:, :] = 0
        check(x, y, low=low, valid=pack_mask(torch.rand(1, 1, 70, 40, device=DEVICE) < 0.9))


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_ragged_lengths(is_causal, dtype):
    x, y = problem(batch=2, n_q=45, n_k=45, dtype=dtype)
    lengths = torch.tensor([45, 17], device=DEVICE).view(2, 1, 1, 1)
    valid = pack_mask(torch.arange(45, device=DEVICE) < lengths)
    ours = check(x, y, p=0.6, q=0.7, valid=valid, is_causal=is_causal)
    assert not (unpack_mask(ours.rows, 45)[1] & (torch.arange(45, device=DEVICE) >= 17)).any()


def test_causal_without_padding():
    check(*problem(n_q=70, n_k=40), p=0.5, is_causal=True)
    check(*problem(n_q=40, n_k=70, dtype=torch.float32), p=0.5, is_causal=True)


def test_broadcast_and_strided_valid_bits():
    x, y = problem(batch=2, heads=2, n_q=20, n_k=70)
    words = pack_mask(torch.rand(2, 2, 20, 70, device=DEVICE) < 0.7)
    wide = torch.full((2, 2, 20, 5), -1, dtype=torch.int32, device=DEVICE)
    wide[..., 1:4] = words
    check(x, y, valid=wide[..., 1:4])
    check(x, y, valid=words[:1, :, :1].expand(2, 2, 20, 3))
    check(x, y, valid=words[:, :1])


def test_stray_valid_bits_beyond_the_last_column():
    x, y = problem(n_k=40)
    ours = check(x, y, valid=torch.full((1, 1, 1, 2), -1, dtype=torch.int32, device=DEVICE))
    assert ours.counts[0] == 20 * 40


def test_grouped_heads_and_strided_inputs():
    x = integers(1, 33, 4, 6, dtype=torch.bfloat16).transpose(1, 2)
    y = integers(1, 2, 6, 40, dtype=torch.bfloat16).transpose(2, 3)
    check(x, y)
    shared = integers(1, 1, 12, 6).expand(1, 4, 12, 6)
    check(shared, integers(1, 40, 2, 6).transpose(1, 2))


@pytest.mark.parametrize(("p", "q"), [(0.0, 1.0), (1.0, 0.5), (0.4, 0.0), (0.4, 1.0), (1.0, 1.0), (1e-9, 0.5)])
def test_extreme_rates(p, q):
    for low in (False, True):
        check(*problem(n_q=9, n_k=40), p=p, q=q, low=low)


def test_rows_that_would_lose_all_keys_keep_them():
    valid = pack_mask(torch.rand(1, 1, 40, 63, device=DEVICE) < 0.05)
    ours = check(*problem(n_q=40), p=0.9, q=0.95, valid=valid)
    assert 5 < int(ours.counts[3]) < 40


@pytest.mark.parametrize(("batch", "n_q", "n_k", "d"), [(0, 4, 4, 2), (2, 0, 4, 2), (2, 4, 0, 2), (1, 4, 40, 0)])
def test_empty_input(batch, n_q, n_k, d):
    for dtype in (torch.float32, torch.bfloat16):
        check(*problem(batch=batch, n_q=n_q, n_k=n_k, d=d, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_zero_scores_weigh_by_one(dtype):
    x, y = problem(heads=2, n_q=20, n_k=50, dtype=dtype)
    q, k = (torch.zeros(1, n, 20 if n == 2 else 50, 3, dtype=dtype, device=DEVICE) for n in (2, 1))
    plain = check(x, y)
    ours = check(x, y, weight=(q, k, torch.zeros(1, 2, 20, device=DEVICE), 0.5))
    assert torch.equal(ours.rows, plain.rows)


def few_differ(x, y, share, **options):
    """Bits differ only where a key lies at its row's threshold, as far as its rounding may reach."""
    n_k = y.shape[2]
    ours, expected = (
        unpack_mask(keep_mask(x, y, p=0.3, q=1.0, function=f, **options).rows, n_k) for f in (None, reference.keep_mask)
    )
    differs = ours != expected
    assert float(differs.double().mean()) <= share
    return differs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_random_floats_differ_only_at_keys_that_round_differently(dtype):
    x, y = (torch.randn(1, 2, n, 64).to(DEVICE, dtype) for n in (60, 200))
    differs = few_differ(x, y, 2e-3 if dtype == torch.bfloat16 else 1e-5)
    exact = x.double() @ y.double().transpose(-1, -2)
    threshold = exact.sort(-1).values[..., int(np.float32(200) * np.float32(0.7)), None]
    magnitude = x.double().abs() @ y.double().abs().transpose(-1, -2)
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24
    slack = 4 * (64 * 2.0**-24 * magnitude + unit * exact.abs())
    assert bool(((exact - threshold).abs() <= slack)[differs].all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weighting_by_attention(dtype):
    x, y, q, k = (torch.randn(1, 2, n, 16).to(DEVICE, dtype) for n in (30, 50, 30, 50))
    lse = torch.logsumexp(q.float() @ k.float().transpose(-1, -2) / 4, -1)
    few_differ(x, y, 2e-3, weight=(q, k, lse, 0.25))
    few_differ(x, y, 2e-3, weight=(q, k, lse, 0.25), low=True)


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63 - 1])
def test_seeds_and_layers(seed):
    check(*problem(n_q=3), seed=seed, layer=65535 if seed else 0, p=0.8)


def test_draws_depend_on_the_sample_alone():
    x, y = problem(batch=2)
    whole = keep_mask(x, y)
    part = check(x[1:], y[1:], sample_ids=torch.tensor([1], device=DEVICE))
    assert torch.equal(part.rows[0], whole.rows[1])
    far = torch.tensor([2**40 + 1], device=DEVICE)  # its low 32 bits count
    assert torch.equal(keep_mask(x[1:], y[1:], sample_ids=far).rows, part.rows)


def test_the_same_bits_run_to_run():
    x, y = (torch.randn(1, 2, 70, 40).to(DEVICE, torch.bfloat16) for _ in range(2))
    first, second = keep_mask(x, y), keep_mask(x, y)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("keys", ["bf16", "fp32"])
@pytest.mark.parametrize("spread", [1.0, 1e18, "tails"])
def test_guesses_give_the_same_bits(spread, keys, monkeypatch):
    x, y = torch.randn(1, 1, 5, 8, device=DEVICE), torch.randn(1, 1, 300, 8, device=DEVICE)
    y *= torch.randn_like(y).exp() ** 4 if spread == "tails" else spread  # 1e18: squares overflow
    monkeypatch.setattr(kernels, "register_tile", lambda *key: None)
    for p in (0.3, 0.97):
        masks = []
        for loads in (1, 99):
            monkeypatch.setattr(kernels, "GUESSED_LOADS", loads)
            masks.append(keep_mask(x * (spread if spread == 1e18 else 1), y, p=p, keys=keys))
        assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
        assert 0 < masks[0].counts[1] < masks[0].counts[0]


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_random_keep_mask(is_causal):
    valid = pack_mask(torch.rand(2, 1, 1, 100, device=DEVICE) < 0.8)
    ids = torch.tensor([3, 9], device=DEVICE)
    arguments = (valid, 2, 2, 70, 100, 0.2, 8, 2, valid, is_causal, ids)
    ours, expected = Mask(*kernels.random_keep_mask(*arguments)), Mask(*reference.random_keep_mask(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (31, 33), (64, 128), (100, 70), (0, 5), (5, 0)])
def test_transpose_mask(n_q, n_k):
    rows = pack_mask(torch.rand(3, n_q, n_k, device=DEVICE) < 0.5)
    assert torch.equal(kernels.transpose_mask(rows, n_k), transpose_mask(rows, n_k))
    wide = torch.full((3, n_q, rows.shape[2] + 2), -1, dtype=torch.int32, device=DEVICE)
    wide[..., : rows.shape[2]] = rows
    assert torch.equal(kernels.transpose_mask(wide[..., : rows.shape[2]], n_k), transpose_mask(rows, n_k))


@pytest.mark.parametrize("isa", [0, 80, 90])
@pytest.mark.parametrize("halves", [1, 2])
def test_layouts_hold_whole_rows(isa, halves):
    assert kernels.is_guessed(kernels.scratch_layout(isa or 90, 4096, halves)[2], False)
    assert not kernels.is_guessed(kernels.scratch_layout(isa or 90, 4096, halves)[2], True)
    for n_k in (1, 128, 129, 1024, 4097, 24577, 32768):
        rows, columns, loads = kernels.scratch_layout(isa, n_k, halves)
        assert columns * loads >= n_k
        assert isa == 0 or rows * columns // halves % 1024 == 0  # four keys for each lane of 8 warps
        for width in (16, 64, 128, 256, 512):
            tile = kernels.register_tile(isa, width, n_k)
            assert tile is None or n_k <= 1024


def test_rows_too_long_are_refused():
    x = torch.zeros(1, 1, 1, 1, device=DEVICE)
    with pytest.raises(RuntimeError, match="up to 32768 keys, got 32769"):
        keep_mask(x, x.expand(1, 1, 32769, 1))
