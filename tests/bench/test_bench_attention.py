"""The benchmark of masked_attention: shapes, modes, peers, what fits and what ran."""

import pytest
import torch
from bench_setup import CPU, ROOT, compiled_kernels, one_thread  # noqa: F401
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

import attrdrop
from bench import rows, run, timing
from bench.ops import attention, flex, kernels, peers
from bench.ops.registry import REGISTRY
from bench.ops.shapes import FACTORS, NAMED, OVER_N, TOKENS, Shape

TINY = Shape(2, 2, 40, 16)


def test_modes_do_what_they_say():
    calls = []
    leaf = torch.ones(3, requires_grad=True)

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls.append("forward")
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            calls.append("backward")
            return 2 * grad

    inputs = run.Inputs(leaves=(leaf,), grad=torch.ones(3))
    for mode, expected in {
        "forward": ["forward"] * 3,
        "backward": ["forward", *["backward"] * 3],
        "train": ["forward", "backward"] * 3,
    }.items():
        calls.clear()
        variant = run.compete(lambda: Double.apply(leaf), mode, inputs, "torch")
        for _ in range(3):
            result = variant.call()
        assert calls == expected
        assert not result.requires_grad if mode == "forward" else torch.equal(result[0], torch.full((3,), 2.0))


def test_shapes_over_n_hold_the_tokens():
    shapes = OVER_N["cuda"]
    assert shapes[:2] == tuple(NAMED.values())
    assert len({(shape.n, shape.d) for shape in shapes}) == len(shapes) == 14
    assert {shape.n for shape in shapes} == {2**k for k in range(7, 15)} - {256}
    assert all(shape.batch * shape.n == TOKENS for shape in shapes)
    assert all(shape.heads * shape.d == 2048 for shape in shapes[2:])


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ("--shapes S1,S2", 2 * 4),
        ("--n 512,8192 --modes forward", 4),
        ("--shapes S1 --n 4096", 0),
        ("--quick --n 1024", 4),
        ("--shapes S2 --modes backward,train", 2),
        ("", 14 * 4),
    ],
)
def test_groups_are_selected(arguments, count):
    options = run.parse(["masked_attention", *arguments.split()])
    selection = run.Selection(options.shapes, options.n, options.modes, options.peers)
    found = list(run.cases(options.ops, torch.device("cuda"), options.quick, selection))
    assert len(found) == count
    assert all(case.shape.n == 1024 for case in found) or "1024" not in arguments


def test_cases_are_keys():
    assert len(set(run.cases(None, CPU, False))) == sum(
        len(entry.shapes["cpu"]) * len(entry.modes) for entry in REGISTRY.values()
    )


def test_unknown_selections_are_refused(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--modes", "forwards"])
    assert "'forwards' is not one of forward, backward" in capsys.readouterr().err
    assert run.bench(["pack_mask"], selection=run.Selection(n=(7,))) == 2


def test_peers_are_selected():
    case = run.Case(REGISTRY["masked_attention"], TINY, "forward")
    found = run.variants(case, CPU, run.Selection(peers=("eager", "SDPA, m")))
    assert set(found) == {"attrdrop", "SDPA, math", "eager"}


def test_no_group_begins_after_the_limit(tmp_path, capsys):
    output = tmp_path / "rows.csv"
    assert run.bench(["pack_mask"], output, quick=True, limit=-1) == 0
    assert "no time left" in capsys.readouterr().out
    assert not output.exists()


def test_random_bits_have_the_density():
    for n in (40, 256):
        bits = attention.random_bits(Shape(2, 3, n, 16), 0.91, CPU)
        mask = attrdrop.unpack_mask(bits, n)
        assert torch.equal(attrdrop.pack_mask(mask), bits)  # nothing is set behind the last column
        assert abs(mask.float().mean() - 233 / 256) < 5 * (0.09 * 0.91 / mask.numel()) ** 0.5
        assert not torch.equal(mask[0, 0], mask[0, 1])


def test_large_masks_are_random_bits(monkeypatch):
    monkeypatch.setattr(attention, "RANKED", 0)
    inputs = attention.AttentionInputs(TINY, CPU, torch.float32)
    assert inputs.keep.shape == (*TINY[:3], TINY.n)
    assert torch.equal(attrdrop.transpose_mask(inputs.keep.rows, TINY.n), inputs.keep.cols)
    assert torch.equal(inputs.bias == 0, inputs.mask)


def test_what_does_not_fit_is_left_out(monkeypatch, capsys):
    room = {"free": TINY.positions * 4.0}  # for the boolean mask and the additive one, and for little else
    monkeypatch.setattr(attention, "free_memory", lambda device: room["free"])
    found = run.variants(run.Case(REGISTRY["masked_attention"], TINY, "forward"), CPU)
    assert set(found) == {"attrdrop", "SDPA, no mask", "SDPA, bool mask"}
    said = capsys.readouterr().out
    assert "eager: left out" in said
    assert "GB are free" in said


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("n", [128, 200])
def test_flex_reads_booleans_and_bits_alike(n):
    inputs = attention.AttentionInputs(Shape(2, 2, n, 16), CPU, torch.float32)
    q, k, v = (leaf.detach() for leaf in inputs.leaves)
    expected = peers.eager_attention(q, k, v, inputs.bias)
    for modification in (flex.by_bool(inputs.mask), flex.by_bits(inputs.keep.rows)):
        at = torch.meshgrid(*map(torch.arange, inputs.mask.shape), indexing="ij")
        assert torch.equal(modification(*at), inputs.mask)
        blocks = flex.all_blocks(modification, n, CPU)
        assert bool(blocks.to_dense().all())
        assert blocks.shape == (1, 1, n, n)
        torch.testing.assert_close(flex.attend(q, k, v, blocks), expected)


def test_flex_has_no_booleans_beyond_its_index():
    flex.by_bool(torch.empty(2**31, dtype=torch.bool, device="meta"))
    with pytest.raises(RuntimeError, match=r"2\*\*31"):
        flex.by_bool(torch.empty(2**31 + 1, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, cutlass::bfloat16_t>, "
         "false>(pytorch_flash::Flash_fwd_params)", "flash_fwd_kernel"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::Params)",
         "fmha_cutlassF_bf16_aligned_64x64_rf_sm80"),
        ("void at::native::(anonymous namespace)::softmax_warp<float, 4>(int)", "softmax_warp"),
        ("std::enable_if<!(false), void>::type internal::gemvx::kernel<int, 1>(Params)", "kernel"),
        ("triton_tem_fused_flex_attention_0", "triton_tem_fused_flex_attention_0"),
    ],
)  # fmt: skip
def test_kernels_are_named_in_short(name, short):
    assert kernels.shorten(name) == short
    assert len(kernels.shorten(100 * "x")) == kernels.LENGTH


def test_the_kernel_with_the_most_time_ran():
    def event(name, microseconds, device=DeviceType.CUDA, note=False):
        return FunctionEvent(0, name, 0, 0, microseconds, device_type=device, is_user_annotation=note)

    kernels_of_the_call = [event("often", 30), event("once", 50), event("often", 30)]
    others = [event("Memcpy HtoD", 900), event("region", 900, note=True), event("aten::mm", 900, DeviceType.CPU)]
    assert kernels.longest(kernels_of_the_call + others) == "often"
    assert kernels.longest(others) == ""


def test_memory_held_for_the_backward(monkeypatch):
    allocated = iter([1 << 20, 4 << 20, 0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    assert timing.cuda_held(lambda: None, CPU) == 3

    def too_much():
        raise torch.OutOfMemoryError

    assert timing.cuda_held(too_much, CPU) is None


def test_peers_on_a_gpu_are_pinned():
    inputs = attention.AttentionInputs(TINY, CPU, torch.float32)
    inputs.device = torch.device("cuda")  # the forms are made without a call
    found = attention.rivals(inputs)
    pinned = {"SDPA flash, no mask", "SDPA cudnn, no mask"} | {
        f"SDPA {kernel}, {kind} mask" for kernel in ("efficient", "cudnn") for kind in ("bool", "additive")
    }
    flexible = {"FlexAttention, bool mask", "FlexAttention, bits"}
    without_dropout = flexible | ({"attrdrop, unmasked"} if attrdrop._core.backends.TRITON_MISSING is None else set())
    assert set(found) == pinned | without_dropout | {"SDPA, math", "eager"}
    inputs.dropout = 0.1
    assert set(attention.rivals(inputs)) == set(found) - without_dropout


def test_what_only_a_gpu_tells(monkeypatch):
    monkeypatch.setattr(kernels, "ran", lambda call: call())
    monkeypatch.setattr(timing, "cuda_peak", lambda call, device: 1.0)
    monkeypatch.setattr(timing, "cuda_held", lambda call, device: 2.0)
    variant = run.Variant(lambda: "attention_kernel", "flash", None)
    columns = {"backend": "flash: attention_kernel", "peak_mb": 1.0, "saved_mb": 2.0}
    assert run.seen_on_cuda(variant, "backward", CPU) == columns
    assert run.seen_on_cuda(variant, "forward", CPU) == columns | {"saved_mb": None}
    assert run.seen_on_cuda(variant._replace(call=lambda: ""), "train", CPU)["backend"] == "flash"


@pytest.mark.gpu
@pytest.mark.parametrize("mode", list(FACTORS))
def test_rows_of_a_gpu_name_the_kernel_and_the_memory(mode):
    case = run.Case(REGISTRY["masked_attention"], Shape(2, 2, 256, 64), mode)
    found = {
        row.variant: row for row in run.measure(case, torch.device("cuda"), 0, run.Selection(peers=("SDPA", "eager")))
    }
    assert {"SDPA flash, no mask", "SDPA efficient, bool mask", "SDPA efficient, additive mask", "eager"} <= set(found)
    for row in found.values():
        assert ": " in row.backend
        assert row.peak_mb > 0
        assert (row.saved_mb is None) == (mode == "forward")
        assert rows.tflops(row) > 0
    assert "flash" in found["SDPA flash, no mask"].backend.split(": ")[1]
