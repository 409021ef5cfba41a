"""masked_attention in Triton: on a GPU where there is one, else in the interpreter."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from attention import FLOOR, errors, exact, gradients, problem, sdpa
from models import batch as make_batch
from models import build

from attrdrop import ADDrop, KeepMask, masked_attention, pack_mask, unpack_mask, use_backend
from attrdrop._core import backends

pytest.importorskip("triton")
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if HAS_GPU else []

attend = partial(masked_attention, backend="triton")


class Case(NamedTuple):
    n_q: int
    n_k: int
    heads: int
    kv_heads: int
    d: int
    d_v: int
    scale: float | None = None


CASES = {
    "one": Case(1, 1, 1, 1, 16, 16),
    "short_keys": Case(63, 7, 2, 1, 64, 64),
    "short_queries": Case(7, 63, 2, 2, 32, 32),
    "odd": Case(111, 111, 1, 1, 24, 24),
    "grouped": Case(33, 130, 4, 2, 16, 16),
    "other_values": Case(40, 65, 1, 1, 40, 72),
    "wide": Case(5, 200, 1, 1, 256, 256),
    "narrow": Case(20, 33, 1, 1, 3, 5),
    "negative_scale": Case(30, 70, 1, 1, 16, 16, -0.3),
    "zero_scale": Case(30, 70, 1, 1, 16, 16, 0.0),
    "long": Case(3, 1000, 1, 1, 16, 16),
    "tall": Case(1000, 3, 1, 1, 16, 16),
}


def on_device(*tensors):
    return [t.to(DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_error_is_at_most_twice_that_of_torch(case, dtype):
    n_q, n_k, heads, kv_heads, d, d_v, scale = case
    if d > 128 and dtype == torch.float32:
        pytest.skip("float32 heads are up to 128 wide in Triton")
    qkv, keep, columns = problem(1, heads, kv_heads, n_q, n_k, d, d_v, dtype, device=DEVICE)
    (weight,) = on_device(torch.randn(1, n_q, heads, d_v))
    expected = gradients(lambda q, k, v: exact(q, k, v, columns, scale=scale), [t.double() for t in qkv], weight)
    ours = gradients(lambda q, k, v: attend(q, k, v, keep, scale=scale), qkv, weight)
    torchs = gradients(lambda q, k, v: sdpa(q, k, v, columns, scale=scale), qkv, weight)
    for mine, theirs, value in zip(errors(ours, expected), errors(torchs, expected), expected, strict=True):
        assert mine <= 2 * theirs + FLOOR[dtype] * max(1.0, float(value.abs().max()))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 2, 40, 70),
        pytest.param((1, 2, 40, 70), marks=pytest.mark.slow),
        (2, 1, 1, 70),
        pytest.param((40, 70), marks=pytest.mark.slow),
        (1, 1, 40, 1),
    ],
)
@pytest.mark.parametrize(("dtype", "dropout_p"), [(torch.float32, 0.0), (torch.bfloat16, 0.0), (torch.float32, 0.3)])
def test_bias_and_its_gradient(shape, dtype, dropout_p):
    qkv, keep, columns = problem(2, 2, 1, 40, 70, dtype=dtype, device=DEVICE)
    bias, weight = on_device(torch.randn(shape).to(dtype), torch.randn(2, 40, 2, 16))
    options = dict(dropout_p=dropout_p, seed=3)

    def run(tensors, backend):
        call = partial(masked_attention, backend=backend, **options)
        return gradients(lambda q, k, v, b: call(q, k, v, keep, bias=b), tensors, weight)

    expected = run([t.double() for t in (*qkv, bias)], "reference")
    ours = run([*qkv, bias], "triton")
    if dropout_p:
        plain = run([*qkv, bias], "reference")
    else:
        masked = lambda b: b.expand(2, 2, 40, 70).masked_fill(~columns, -torch.inf)  # noqa: E731
        plain = gradients(lambda q, k, v, b: sdpa(q, k, v, masked(b)), [*qkv, bias], weight)
    # The backward reads lse rounded to float32: beyond 4 by up to 2^-22, and once more in units of log2.
    floor = FLOOR[dtype] + 2**-22
    for mine, theirs, value in zip(errors(ours, expected), errors(plain, expected), expected, strict=True):
        assert mine <= 2 * theirs + floor * max(1.0, float(value.abs().max()))


@pytest.mark.parametrize("dropout_p", [0.1, 1.0])
@pytest.mark.parametrize("sample_ids", [None, [3, 2**31 + 9]])
def test_dropout_is_the_reference_bit_for_bit(dropout_p, sample_ids):
    qkv, keep, _ = problem(2, 2, 1, 33, 100, device=DEVICE)
    (weight,) = on_device(torch.randn(2, 33, 2, 16))
    ids = None if sample_ids is None else torch.tensor(sample_ids, device=DEVICE)
    options = dict(dropout_p=dropout_p, seed=2**63 + 42, sample_ids=ids, scale=0.3)

    def run(backend):
        return gradients(lambda q, k, v: masked_attention(q, k, v, keep, backend=backend, **options), qkv, weight)

    for mine, theirs in zip(run("triton"), run("reference"), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=2e-5)


def test_rows_without_a_set_bit_give_zero():
    qkv, keep, _ = problem(1, 2, 1, device=DEVICE)
    leaves = [t.requires_grad_() for t in qkv]
    out, lse = attend(*leaves, keep, return_lse=True)
    assert out[0, 3, 0].eq(0).all()
    assert lse[0, 0, 3] == -torch.inf
    out.sum().backward()  # its gradient is expanded: all strides 0
    assert leaves[0].grad[0, 0, 3].eq(0).all()
    assert all(t.grad.isfinite().all() for t in leaves)
    expected = masked_attention(*qkv, keep, return_lse=True, backend="reference")[1]
    torch.testing.assert_close(lse, expected.detach(), atol=1e-5, rtol=1e-5)


def blocks(n_q, n_k, pattern):
    """Booleans of 64 x 64 blocks."""
    return torch.tensor(pattern).bool().repeat_interleave(64, 0).repeat_interleave(64, 1)[:n_q, :n_k]


@pytest.mark.parametrize(
    "columns",
    [
        torch.ones(150, 200).tril().bool(),
        torch.ones(150, 200).triu(70).bool(),
        blocks(150, 200, [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]]),
        blocks(150, 200, [[0, 0, 0, 0]] * 3),
    ],
    ids=["causal", "upper", "holes", "nothing"],
)
def test_blocks_without_a_set_bit_are_skipped(columns):
    qkv, _, _ = problem(1, 1, 1, 150, 200, device=DEVICE)
    columns, weight = on_device(columns.expand(1, 1, 150, 200), torch.randn(1, 150, 1, 16))
    keep = KeepMask.from_rows(pack_mask(columns), 200)
    ours = gradients(lambda q, k, v: attend(q, k, v, keep), qkv, weight)
    expected = gradients(lambda q, k, v: exact(q, k, v, columns), [t.double() for t in qkv], weight)
    assert max(errors(ours, [torch.nan_to_num(e) for e in expected])) < 1e-5


def test_skipped_blocks_are_not_read():
    (q, k, v), _, _ = problem(1, 1, 1, 64, 192, device=DEVICE)
    columns = blocks(64, 192, [[1, 0, 1]]).expand(1, 1, 64, 192).to(DEVICE)
    keep = KeepMask.from_rows(pack_mask(columns), 192)
    v[:, :, 64:128] = torch.nan  # 0 * NaN would show
    assert attend(q, k, v, keep).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 1, 1, 70), (1, 2, 1, 70), (1, 1, 40, 70), (2, 1, 40, 70), (1, 1, 1, 70)])
def test_masks_that_broadcast(shape):
    qkv, _, _ = problem(2, 2, 1, 40, 70, device=DEVICE)
    columns, weight = on_device(torch.rand(shape) < 0.7, torch.randn(2, 40, 2, 16))
    keep = KeepMask.from_rows(pack_mask(columns), 70)
    whole = KeepMask.from_rows(pack_mask(columns.expand(2, 2, 40, 70)), 70)
    a, b = (gradients(lambda q, k, v, m=m: attend(q, k, v, m), qkv, weight) for m in (keep, whole))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_unused_bits_do_not_count():
    qkv, _, _ = problem(1, 1, 1, 5, 40, device=DEVICE)
    ones = torch.full((1, 1, 5, 2), -1, dtype=torch.int32, device=DEVICE)
    keep = KeepMask.from_rows(ones, 40)
    expected = exact(*qkv, torch.ones(1, 1, 5, 40, dtype=torch.bool, device=DEVICE))
    assert errors([attend(*qkv, keep)], [expected])[0] < 1e-5


def test_strides():
    (q, k, v), keep, _ = problem(1, 2, 2, device=DEVICE)
    views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    views[0] = torch.stack([q, q], -1).flatten(-2)[..., ::2]  # not unit stride
    views[1] = torch.cat([k, k], -1)[..., :16]
    weight = torch.stack([torch.randn(1, 16, 40, 2)] * 2).to(DEVICE)[1].permute(0, 2, 3, 1)  # a gradient likewise
    a, b = (gradients(lambda q, k, v: attend(q, k, v, keep), tensors, weight) for tensors in ((q, k, v), views))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert b[0].is_contiguous()
    assert b[0].shape == (1, 40, 2, 16)


def test_addresses_beyond_32_bits(tmp_path):
    if HAS_GPU:
        memory = torch.zeros(2**31 + 2**12, dtype=torch.float16, device="cuda")
    else:  # a sparse file: only what is touched takes space
        memory = torch.from_numpy(np.memmap(tmp_path / "far", np.float16, "w+", shape=2**31 + 2**12))
    far = memory.as_strided((2, 1, 8, 16), (2**31, 0, 16, 1))
    far.copy_(torch.randn(2, 1, 8, 16))
    near = far.clone()
    keep = KeepMask.from_rows(pack_mask(torch.ones(1, 1, 8, 8, dtype=torch.bool, device=DEVICE)), 8)
    assert torch.equal(attend(far, far, far, keep), attend(near, near, near, keep))


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize(("batch", "n_q", "n_k"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_empty_input(dropout_p, batch, n_q, n_k):
    qkv = [torch.ones(batch, 2, n, 8, requires_grad=True, device=DEVICE) for n in (n_q, n_k, n_k)]
    keep = KeepMask.from_rows(pack_mask(torch.ones(batch, 2, n_q, n_k, dtype=torch.bool, device=DEVICE)), n_k)
    bias = torch.ones(1, 1, n_q, n_k, requires_grad=True, device=DEVICE)
    out = attend(*qkv, keep, bias=bias, dropout_p=dropout_p, seed=0)
    assert out.shape == (batch, n_q, 2, 8)
    assert out.eq(0).all()
    out.sum().backward()
    assert all(t.grad.eq(0).all() for t in (*qkv, bias))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nan_is_not_hidden_and_stays_in_its_row(poison):
    (q, k, v), _, _ = problem(2, 1, 1, device=DEVICE)
    keep = KeepMask.from_rows(pack_mask(torch.ones(1, 1, 40, 63, dtype=torch.bool, device=DEVICE)), 63)
    q[1, 0, 5] = poison
    out = attend(q, k, v, keep)
    assert out[1, 5].isnan().all()
    assert out[0].isfinite().all()
    assert out[1, :5].isfinite().all()


def test_dropped_scores_may_be_huge():
    (q, k, v), _, _ = problem(1, 1, 1, device=DEVICE)
    columns = torch.ones(1, 1, 40, 63, dtype=torch.bool, device=DEVICE)
    columns[..., 7] = False
    k[:, :, 7] = 1e30
    keep = KeepMask.from_rows(pack_mask(columns), 63)
    expected = exact(q, torch.where(k > 1e20, 0.0, k), v, columns)
    assert errors([attend(q, k, v, keep)], [expected])[0] < 1e-5


def test_two_runs_are_bitwise_equal():
    qkv, keep, _ = problem(1, 2, 1, 100, 130, dtype=torch.bfloat16, device=DEVICE)
    (weight,) = on_device(torch.randn(1, 100, 2, 16))
    a, b = (gradients(lambda q, k, v: attend(q, k, v, keep), qkv, weight) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_opcheck():
    qkv, keep, _ = problem(1, 2, 1, 8, 8, device=DEVICE)
    bias, ids = on_device(torch.randn(1, 1, 8, 8), torch.tensor([3]))
    ops = torch.ops.attrdrop_triton
    for options in ((None, 0.25, 0.0, 0, None), (bias, 0.25, 0.3, 7, ids)):
        torch.library.opcheck(ops.masked_attention, (*qkv, keep.rows, *options))
        out, lse = ops.masked_attention(*qkv, keep.rows, *options)
        torch.library.opcheck(
            ops.masked_attention_backward,
            (torch.randn_like(out), *qkv, out, lse, keep.rows, keep.cols, *options, options[0] is not None),
        )


def test_compiles_without_graph_breaks():
    qkv, keep, _ = problem(1, 2, 1, device=DEVICE)
    leaves = [t.requires_grad_() for t in qkv]

    def step(q, k, v, keep):
        return attend(q, k, v, keep, dropout_p=0.2, seed=9).square().sum()

    expected = torch.autograd.grad(step(*leaves, keep), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves, keep), leaves), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_does_not_lower_the_precision_inside():
    qkv, keep, _ = problem(1, 1, 1, device=DEVICE)
    plain = attend(*qkv, keep)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(attend(*qkv, keep), plain)


@pytest.mark.slow
def test_a_step_of_addrop_equals_the_cpu_path():
    """Masks and both passes through the kernels, dropout and padding included."""
    model = build("bert").train().to(DEVICE)
    inputs = {name: tensor.to(DEVICE) for name, tensor in make_batch("bert").items()}
    runs = []
    for backend in ("reference", "triton"):
        torch.manual_seed(0)
        model.zero_grad()
        addrop = ADDrop(model, p=0.4, q=0.5, cross_tuning=False, pass1="eval")
        with use_backend(backend):
            loss = addrop(**inputs).loss
        loss.backward()
        assert addrop.statistics().dropped > 0
        runs.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


Q = torch.ones(2, 4, 8, 16, device=DEVICE)
KEEP = KeepMask.from_rows(pack_mask(torch.ones(2, 4, 8, 8, dtype=torch.bool, device=DEVICE)), 8)
WIDE = torch.ones(2, 4, 8, 300, device=DEVICE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(q=WIDE, k=WIDE), RuntimeError, "float32 heads must be 1 to 128 wide, got 300 of q and 16 of v"),
        (dict(q=Q.double(), k=Q.double(), v=Q.double()), RuntimeError, "float64 is served by the reference only"),
        (dict(keep=KeepMask(KEEP.rows, KEEP.cols[:, :, :4], KEEP.counts)), ValueError, "keep.cols must broadcast"),
        (dict(keep=KeepMask(KEEP.rows.float(), KEEP.cols, KEEP.counts)), TypeError, "keep.rows must be packed int32"),
        (dict(keep=KeepMask(KEEP.rows.to("meta"), KEEP.cols, KEEP.counts)), ValueError, "keep.rows must be on"),
        (dict(k=Q.to("meta"), v=Q.to("meta")), ValueError, "k must be on the device of the other inputs"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        attend(**{"q": Q, "k": Q, "v": Q, "keep": KEEP, **arguments})


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    monkeypatch.setattr(backends, "TRITON_INTERPRETED", False)
    keep = KeepMask.from_rows(KEEP.rows.cpu(), 8)
    with pytest.raises(RuntimeError, match="it needs a cuda tensor, got one on cpu"):
        attend(Q.cpu(), Q.cpu(), Q.cpu(), keep)


@pytest.mark.gpu
def test_capture_in_a_cuda_graph():
    qkv, keep, _ = problem(2, 4, 2, 100, 130, dtype=torch.bfloat16, device="cuda")
    leaves = [t.requires_grad_() for t in qkv]

    def step():
        out = attend(*leaves, keep, dropout_p=0.1, seed=5)
        return out, *torch.autograd.grad(out.float().square().sum(), leaves)

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a synchronisation of the host would raise
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.gpu
def test_on_a_side_stream():
    qkv, keep, _ = problem(2, 4, 2, 500, 500, dtype=torch.bfloat16, device="cuda")
    expected = attend(*qkv, keep)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = attend(*qkv, keep)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.gpu
def test_on_the_last_device():
    device = f"cuda:{torch.cuda.device_count() - 1}"  # not the current one where there are several
    qkv, keep, columns = problem(device=device)
    assert errors([attend(*qkv, keep)], [exact(*qkv, columns)])[0] < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_shapes_for_the_sanitizer(dtype):
    qkv, keep, columns = problem(1, 2, 1, 100, 75, 24, dtype=dtype, device="cuda")
    bias = torch.randn(1, 1, 100, 75, device="cuda")
    weight = torch.randn(1, 100, 2, 24, device="cuda")
    found = gradients(lambda q, k, v, b: attend(q, k, v, keep, bias=b), [*qkv, bias], weight)
    expected = gradients(lambda q, k, v, b: exact(q, k, v, columns, b), [t.double() for t in (*qkv, bias)], weight)
    assert max(errors(found, expected)) < (1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.gpu
@pytest.mark.slow
def test_more_than_two_to_the_31_positions():
    n, heads = 16384, 16
    q = torch.randn(1, heads, n, 16, dtype=torch.bfloat16, device="cuda")
    rows = torch.randint(-(2**31), 2**31 - 1, (1, heads, n, n // 32), dtype=torch.int32, device="cuda")
    out = attend(q, q, q, KeepMask.from_rows(rows, n))
    picked = torch.tensor([0, 5000, n - 1], device="cuda")
    columns = unpack_mask(rows[:, :, picked], n)
    expected = exact(q[:, :, picked], q, q, columns)
    assert errors([out[:, picked]], [expected])[0] < 2e-2
