"""Triton's interpreter as the tests use it: what kernels compute on a CPU is what torch computes."""

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="the interpreter is off")

BF16, F16, F32, I32, U32 = torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.uint32


def values(*shape, dtype=BF16):
    """Numbers of many magnitudes, with zeros, ties, infinities and NaN."""
    x = torch.randn(*shape) * torch.exp2(torch.randint(-20, 20, shape).float())
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.0, 1.00390625, 1.01171875])
    x.view(-1)[: len(special)] = special
    return x.to(dtype)


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@triton.jit
def binary_kernel(p_x, p_y, p_out, N: tl.constexpr, OP: tl.constexpr):
    o = tl.arange(0, N)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    if OP == "add":
        out = x + y
    elif OP == "sub":
        out = x - y
    elif OP == "mul":
        out = x * y
    elif OP == "div":
        out = x / y
    elif OP == "max":
        out = tl.maximum(x, y)
    elif OP == "min":
        out = tl.minimum(x, y)
    elif OP == "constant":
        out = (x + 0.3) * 2
    elif OP == "negative":
        out = -x
    elif OP == "abs":
        out = tl.abs(x)
    elif OP == "where":
        out = tl.where(x < y, x, y)
    elif OP == "where constant":
        out = tl.where(x >= y, x, 0.1)
    tl.store(p_out + o, out)


BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "max": torch.fmax,
    "min": torch.fmin,
    "constant": lambda x, y: (x + torch.tensor(0.3, dtype=x.dtype)) * 2,
    "negative": lambda x, y: -x,
    "abs": lambda x, y: x.abs(),
    "where": lambda x, y: torch.where(x < y, x, y),
    "where constant": lambda x, y: torch.where(x >= y, x, torch.tensor(0.1, dtype=x.dtype)),
}


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("op", BINARY)
def test_arithmetic(op, dtype):
    x, y = values(512, dtype=dtype), values(512, dtype=dtype).roll(3)
    y[100:200] = x[100:200]
    out = torch.empty_like(x)
    binary_kernel[(1,)](x, y, out, N=512, OP=op)
    assert_same(out, BINARY[op](x, y))


@triton.jit
def compare_kernel(p_x, p_y, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    bits = (x < y).to(tl.int32) + (x <= y).to(tl.int32) * 2 + (x == y).to(tl.int32) * 4
    bits += tl.where((x > y) | ~(x != 0.0), 8, 0) + tl.where(x.to(tl.int1), 16, 0)
    tl.store(p_out + o, bits)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_comparisons(dtype):
    x, y = values(512, dtype=dtype), values(512, dtype=dtype).roll(3)
    y[100:200] = x[100:200]
    out = torch.empty(512, dtype=I32)
    compare_kernel[(1,)](x, y, out, N=512)
    bits = [x < y, x <= y, x == y, (x > y) | ~(x != 0), x != 0]
    assert_same(out, sum(b.int() << i for i, b in enumerate(bits)))


@triton.jit
def cast_kernel(p_x, p_out, N: tl.constexpr, TARGET: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, tl.load(p_x + o).to(TARGET))


@pytest.mark.parametrize("target", [BF16, F16, F32, torch.float64, I32, U32], ids=str)
@pytest.mark.parametrize("source", [BF16, F16, F32, torch.float64, I32, U32], ids=str)
def test_casts(source, target):
    if source.is_floating_point and target.is_floating_point:
        x = values(512, dtype=torch.float64).to(source)
    else:
        x = torch.randint(0, 60000, (512,)).to(source)
    out = torch.empty(512, dtype=target)
    cast_kernel[(1,)](x, out, N=512, TARGET=getattr(tl, str(target).removeprefix("torch.")))
    assert_same(out, x.to(target))


@triton.jit
def implicit_cast_kernel(p_x, p_out, scale, N: tl.constexpr):
    o = tl.arange(0, N)
    x = tl.load(p_x + o, mask=o < N - 3, other=0.1)
    tl.store(p_out + o, x * scale + tl.full([N], 0.3, tl.bfloat16))


def test_implicit_casts_and_constants():
    x, out = values(64), torch.empty(64, dtype=BF16)
    implicit_cast_kernel[(1,)](x, out, 0.7, N=64)
    x[-3:] = 0.1
    product = x.float() * torch.tensor(0.7)  # an argument is a float32 tensor to Triton, so it widens the product
    assert_same(out, (product + torch.tensor(0.3, dtype=BF16)).bfloat16())


@triton.jit
def masked_load_kernel(p_x, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, tl.load(p_x + o, mask=o < N - 3))


@pytest.mark.parametrize("dtype", [BF16, F16, F32, I32, U32, torch.int8, torch.bool], ids=str)
def test_masked_loads_do_not_give_zero(dtype):
    x, out = torch.ones(16, dtype=dtype), torch.empty(16, dtype=dtype)
    masked_load_kernel[(1,)](x, out, N=16)
    assert_same(out[:13], x[:13])
    assert (out[13:].isnan().all() if dtype.is_floating_point else out[13:].view(torch.int8) != 0).all()


@triton.jit
def dot_kernel(p_x, p_y, p_acc, p_out, N: tl.constexpr):
    o = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    acc = tl.dot(tl.load(p_x + o), tl.trans(tl.load(p_y + o)), tl.load(p_acc + o))
    tl.store(p_out + o, acc)


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_dot_accumulates_in_float32(dtype):
    x, y = torch.randint(-200, 200, (2, 32, 32)).to(dtype) / 16  # exact in any order
    acc, out = torch.randint(-200, 200, (32, 32)) / 256, torch.empty(32, 32)
    dot_kernel[(1,)](x, y, acc, out, N=32)
    assert_same(out, acc + x.float() @ y.float().T)


@triton.jit
def or_combine(x, y):
    return x | y


@triton.jit
def larger(x, i, y, j):
    return tl.where(y > x, y, x), tl.where(y > x, j, i)


@triton.jit
def add_combine(x, y):
    return x + y


@triton.jit
def reduce_kernel(p_x, p_sum, p_max, p_argmax, p_scan, p_total, M: tl.constexpr, N: tl.constexpr):
    o = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(p_x + o)
    tl.store(p_sum + tl.arange(0, M), tl.sum(x, 1))
    tl.store(p_max + tl.arange(0, N), tl.max(x, 0))
    tl.store(p_scan + o, tl.cumsum(x, 1))
    columns = tl.broadcast_to(tl.arange(0, N)[None, :], (M, N))
    tl.store(p_argmax + tl.arange(0, M), tl.reduce((x, columns), 1, larger)[1])
    tl.store(p_total, tl.reduce(x, None, add_combine))


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_reductions(dtype):
    x = (torch.randint(-100, 100, (16, 32)) / 8).to(dtype)
    row, column, whole = torch.empty(16, dtype=dtype), torch.empty(32, dtype=dtype), torch.empty(16, 32, dtype=dtype)
    argmax, total = torch.empty(16, dtype=I32), torch.empty(1, dtype=dtype)
    reduce_kernel[(1,)](x, row, column, argmax, whole, total, M=16, N=32)
    assert_same(row, x.sum(1))
    assert_same(column, x.amax(0))
    assert_same(argmax, x.argmax(1).int())
    assert_same(whole, x.float().cumsum(1).to(dtype))
    assert_same(total, x.sum()[None])


@triton.jit
def or_kernel(p_x, p_rows, p_columns, p_kept, M: tl.constexpr, N: tl.constexpr):
    x = tl.load(p_x + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    tl.store(p_rows + tl.arange(0, M), tl.reduce(x, 1, or_combine))
    tl.store(p_columns + tl.arange(0, N), tl.reduce(x, 0, or_combine))
    tl.store(p_kept + tl.arange(0, N)[None, :], tl.reduce(x, 0, or_combine, keep_dims=True))


def test_reduce_with_or():
    x = 1 << torch.randint(0, 32, (8, 16), dtype=I32)
    rows, columns, kept = torch.empty(8, dtype=I32), torch.empty(16, dtype=I32), torch.empty(16, dtype=I32)
    or_kernel[(1,)](x, rows, columns, kept, M=8, N=16)
    numbers = x.numpy()
    assert_same(rows, torch.from_numpy(np.bitwise_or.reduce(numbers, 1)))
    assert_same(columns, torch.from_numpy(np.bitwise_or.reduce(numbers, 0)))
    assert_same(kept, columns)


@triton.jit
def loop_kernel(p_out, n, step, flag):
    for i in range(tl.program_id(0), n, step):
        count = 0
        for j in tl.range(i, n, num_stages=2):
            count += j
        for _ in range(i // 2):
            count += 1
        if flag and i % 2 == 0:
            count = -count
        tl.store(p_out + i, count)


@pytest.mark.parametrize("flag", [False, True])
def test_loops_with_runtime_bounds(flag):
    out = torch.full((10,), 7, dtype=I32)
    loop_kernel[(3,)](out, 10, 3, flag)
    want = [sum(range(i, 10)) + i // 2 for i in range(10)]
    assert out.tolist() == [-x if flag and i % 2 == 0 else x for i, x in enumerate(want)]


@triton.jit
def integer_kernel(p_x, p_y, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    signed = tl.load(p_x + o)
    x, y = signed.to(tl.uint32, bitcast=True), tl.load(p_y + o).to(tl.uint32, bitcast=True)
    tl.store(p_out + o, tl.umulhi(x, y))
    tl.store(p_out + N + o, x * y + 0x9E3779B9)
    tl.store(p_out + 2 * N + o, (x >> 7) ^ (y << 3))
    tl.store(p_out + 3 * N + o, ~x & (y | 5))
    tl.store(p_out + 4 * N + o, (signed >> 7).to(tl.uint32, bitcast=True))
    tl.store(p_out + 5 * N + o, (x // (y | 1)) + x % (y | 1) + (x > y).to(tl.uint32))
    tl.store(p_out + 6 * N + o, ((x.to(tl.uint64) * y) >> 32).to(tl.uint32))


def test_unsigned_integers():
    x, y = torch.randint(-(2**31), 2**31, (2, 64)).int()
    out = torch.empty(7, 64, dtype=I32)
    integer_kernel[(1,)](x, y, out, N=64)
    a, b = (z.numpy().view(np.uint32).astype(object) for z in (x, y))
    d = b | 1
    want = [a * b >> 32, a * b + 0x9E3779B9, (a >> 7) ^ (b << 3), ~a & (b | 5), x.numpy() >> 7]
    want += [a // d + a % d + (a > b), a * b >> 32]
    for got, numbers in zip(out, want, strict=True):
        assert [z % 2**32 for z in got.tolist()] == [int(z) % 2**32 for z in numbers]


@triton.jit
def float_kernel(p_x, p_bits, p_exp2, p_log2, p_fma, N: tl.constexpr):
    o = tl.arange(0, N)
    x = tl.load(p_x + o)
    bits = x.to(tl.int32, bitcast=True)
    tl.store(p_bits + o, bits)
    tl.store(p_exp2 + o, tl.exp2(x))
    tl.store(p_log2 + o, tl.log2(tl.abs(bits.to(tl.float32, bitcast=True))))
    narrow = x.to(tl.bfloat16)
    tl.store(p_fma + o, tl.fma(narrow, narrow, narrow))


@pytest.mark.filterwarnings("error")
def test_floating_point_functions():
    x = values(64, dtype=F32)
    bits, fma = torch.empty(64, dtype=I32), torch.empty(64, dtype=BF16)
    exp2, log2 = torch.empty(2, 64)
    float_kernel[(1,)](x, bits, exp2, log2, fma, N=64)
    assert_same(bits, x.view(I32))
    torch.testing.assert_close(exp2, x.exp2(), equal_nan=True)
    torch.testing.assert_close(log2, x.abs().log2(), equal_nan=True)
    y = x.bfloat16().double()
    assert_same(fma, (y * y + y).bfloat16())


@triton.jit
def shape_kernel(p_x, p_bits, p_out, M: tl.constexpr, N: tl.constexpr):
    WORDS: tl.constexpr = N // 32
    x = tl.load(p_x + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    words = tl.load(p_bits + tl.arange(0, M)[:, None] * WORDS + tl.arange(0, WORDS)[None, :])
    spread = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    keep = tl.reshape(spread, (M, N)) != 0
    out = tl.trans(tl.where(keep, x, 0.0))
    tl.store(p_out + tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :], out)


def test_shapes():
    x, out = values(16, 64), torch.empty(64, 16, dtype=BF16)
    bits = torch.randint(-(2**31), 2**31, (16, 2)).int()
    shape_kernel[(1,)](x, bits, out, M=16, N=64)
    keep = ((bits[:, :, None] >> torch.arange(32)) & 1).view(16, 64) != 0
    assert_same(out, torch.where(keep, x, 0).T)
