"""The pieces of the Triton kernels, each alone: random words, bits, bitmaps of blocks, and the choice of tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attrdrop import pack_mask, unpack_mask
from attrdrop.reference import philox as reference

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from attrdrop.triton_kernels import launch  # noqa: E402
from attrdrop.triton_kernels.bits import (  # noqa: E402
    MINUS_INFINITY_BITS,
    active_blocks,
    load_words,
    lowest_bit,
    set_bits,
    transpose_words,
    upper_bounds,
)
from attrdrop.triton_kernels.dropout_words import dropout_words  # noqa: E402

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if HAS_GPU else []


@triton.jit
def expand_kernel(p_words, p_set, p_bounds, n, minus_inf, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    o_row = tl.arange(0, ROWS)
    b_words = load_words(p_words, o_row, o_row < ROWS, COLUMNS // 32, 1, 0, n, COLUMNS)
    o_place = o_row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(p_set + o_place, set_bits(b_words, ROWS, COLUMNS).to(tl.int8))
    b_scores = o_place.to(tl.float32)
    tl.store(p_bounds + o_place, tl.minimum(b_scores, upper_bounds(b_words, minus_inf, ROWS, COLUMNS)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 96))
def test_bits_become_booleans_and_bounds(seed, n):
    words = torch.randint(-(2**31), 2**31, (16, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.int64)
    words = words.to(DEVICE, torch.int32)
    found = torch.full((16, 128), 7, dtype=torch.int8, device=DEVICE)
    bounded = torch.empty(16, 128, device=DEVICE)
    expand_kernel[(1,)](words, found, bounded, n, MINUS_INFINITY_BITS, 16, 128)
    expected = unpack_mask(words, 128)
    expected[:, n:] = False  # bits beyond the last column do not count
    assert torch.equal(found.bool(), expected)
    scores = torch.arange(16 * 128, device=DEVICE).view(16, 128).float()
    assert torch.equal(bounded, scores.masked_fill(~expected, -torch.inf))


@triton.jit
def transpose_kernel(p_rows, p_cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    b_rows = tl.load(p_rows + tl.arange(0, ROWS)[:, None] * WORDS + tl.arange(0, WORDS)[None, :])
    o_place = tl.arange(0, 32 * WORDS)[:, None] * (ROWS // 32) + tl.arange(0, ROWS // 32)[None, :]
    tl.store(p_cols + o_place, transpose_words(b_rows, ROWS, WORDS))


@pytest.mark.parametrize(("rows", "words"), [(32, 1), (64, 4), (128, 2)])
def test_transpose(rows, words):
    mask = torch.rand(rows, 32 * words, device=DEVICE) < 0.5
    cols = torch.empty(32 * words, rows // 32, dtype=torch.int32, device=DEVICE)
    transpose_kernel[(1,)](pack_mask(mask), cols, rows, words)
    assert torch.equal(unpack_mask(cols, rows), mask.T)


@triton.jit
def blocks_kernel(p_words, p_out, words, n_rows, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    bitmap, count = active_blocks(p_words, 0, n_rows, words, 1, 0, n, ROWS, COLUMNS)
    tl.store(p_out + 32, count)
    for i in range(count):
        tl.store(p_out + i, lowest_bit(bitmap))
        bitmap &= bitmap - 1


@pytest.mark.parametrize("active", [[], [0], [31], [0, 5, 6, 30, 31], list(range(32))])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_active_blocks_are_listed_in_order(active, width):
    n = 32 * width - 5
    mask = torch.zeros(70, n, dtype=torch.bool, device=DEVICE)
    for block in active:
        mask[torch.randint(70, ()), min(block * width + int(torch.randint(width, ())), n - 1)] = True
    words = pack_mask(mask)
    out = torch.full((33,), -1, dtype=torch.int32, device=DEVICE)
    blocks_kernel[(1,)](words, out, words.shape[1], 70, n, 128, width)
    assert out.tolist() == [*active, *[-1] * (32 - len(active)), len(active)]


@pytest.mark.parametrize("rate", [0.0, 1 / 65536, 0.1, 0.77, 1.0])
@pytest.mark.parametrize("seed", [0, 2**40 + 5, -3])
def test_draws_are_those_of_the_contract(rate, seed):
    keep = torch.full((1, 1, 1, 3), -1, dtype=torch.int32, device=DEVICE)
    ids = torch.tensor([0, 2**31 + 7], device=DEVICE)
    threshold = reference.drop_threshold(rate)
    rows, cols = dropout_words(keep, 2, 70, 96, threshold, seed, ids, True)
    dropped = reference.bernoulli(seed, 0, ids, 2, 70, 96, rate)
    assert torch.equal(unpack_mask(rows, 96), ~dropped)
    assert torch.equal(unpack_mask(cols, 70), ~dropped.transpose(-1, -2))


def test_every_chip_has_tiles_for_every_kernel():
    for kind, kernel in launch.TILES:
        for capability in (80, 90, 100):
            for width in launch.TILES[kind, kernel][80]:
                for flags in ((False, False), (False, True), (True, False), (True, True)):
                    tile = launch.choose(kernel, kind, width, capability, *flags)
                    assert max(tile.queries, tile.keys) <= launch.LARGEST_BLOCK
                    assert tile.keys % 32 == 0
                    assert kernel != "grad_key_value" or tile.queries % 32 == 0


def test_the_chip_of_a_device(monkeypatch):
    launch.chip.cache_clear()
    for capability, chip in {(8, 0): 80, (8, 6): 80, (8, 9): 80, (9, 0): 90, (10, 0): 100, (12, 0): 80}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert launch.chip.__wrapped__(torch.device("cuda")) == chip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RuntimeError, match=r"need compute capability 8\.0 or later, cuda has 7\.5"):
        launch.chip.__wrapped__(torch.device("cuda"))


def test_the_fastest_tile_is_kept_and_what_does_not_fit_is_passed_over(monkeypatch):
    times = {}

    def run(tile):
        if tile.stages == 4:
            raise triton.runtime.errors.OutOfResources(300, 200, "shared memory")
        times[tile] = tile.queries + tile.stages

    def do_bench(call, **options):
        call()
        return list(times.values())[-1]

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    variants = launch._variants("half", "forward")
    best = launch._fastest(run, launch.Tile(128, 64, 4, 3), variants)
    assert best.queries + best.stages == min(times.values())
    assert {tile.stages for tile in variants} == {1, 2, 3, 4}
    assert all(tile.stages < 4 for tile in times)
