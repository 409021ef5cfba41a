"""keep_scores: against a row-by-row oracle with explicit draws, backends against the reference, and its promises."""

import itertools
import math

import numpy as np
import pytest
import torch
from emulated import emulated_keep_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking import oracle_row, values

from attrdrop import keep_mask, keep_scores, pack_mask, unpack_mask
from attrdrop.reference.philox import philox4x32_10

BACKENDS = ["reference", "cpp"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 7, 31, 32, 33, 63, 111, 1000]


def rows_of(size, kind="normal", dtype=torch.float32, batch=2, n=5):
    scores = torch.randn(batch, n, size, generator=torch.Generator().manual_seed(size))
    if kind == "ties":
        scores = scores.round()
    elif kind == "special":
        scores[torch.rand(scores.shape) < 0.2] = math.nan
        scores[torch.rand(scores.shape) < 0.1] = math.inf
        scores[torch.rand(scores.shape) < 0.1] = -0.0
    elif kind == "equal":
        scores = scores[..., :1].expand(scores.shape)
    return scores.to(dtype)


def drawn(seed, layer, sample, row, column, q):
    """Whether a candidate is dropped: the 16 bits of its number are bits of the words of its place."""
    place = (row, 65535 + 65536 * layer, sample)
    words = [
        word
        for call in range(4)
        for word in philox4x32_10(seed, tuple(torch.tensor([x]) for x in (4 * (column // 32) + call, *place)))
    ]
    number = sum((int(word) >> column % 32 & 1) << bit for bit, word in enumerate(words))
    return number < int(q * 65536 + 0.5)


def assert_same(ours, expected, case=None):
    assert torch.equal(ours.rows, expected.rows), case
    assert torch.equal(ours.counts, expected.counts), case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("region", ["high", "low"])
def test_the_rule_and_the_draws_one_by_one(backend, region):
    scores, ids = rows_of(40, "special", n=3), torch.tensor([7, 2**33 + 1])
    allowed = torch.rand(2, 3, 40) < 0.8
    p, q, seed, layer = 0.4, 0.6, 2**40 + 3, 5
    kept = keep_scores(
        scores, p=p, q=q, seed=seed, layer=layer, sample_ids=ids, region=region, valid=pack_mask(allowed),
        backend=backend,
    )  # fmt: skip
    expected, counts = torch.zeros(2, 3, 40, dtype=torch.bool), [0, 0, 0, 0]
    for sample, row in itertools.product(range(2), range(3)):
        columns = allowed[sample, row].nonzero().flatten().tolist()
        chosen = oracle_row([float(scores[sample, row, j]) for j in columns], p, region == "low")
        candidates = [j for j, is_one in zip(columns, chosen, strict=True) if is_one]
        dropped = {j for j in candidates if drawn(seed, layer, int(ids[sample]) & 0xFFFFFFFF, row, j, q)}
        rescued = bool(columns) and len(dropped) == len(columns)
        expected[sample, row, [j for j in columns if rescued or j not in dropped]] = True
        found = [len(columns), len(candidates), 0 if rescued else len(dropped), rescued]
        counts = [a + b for a, b in zip(counts, found, strict=True)]
    assert torch.equal(unpack_mask(kept.rows, 40), expected)
    assert kept.counts.tolist() == counts


@settings(max_examples=40, deadline=None)
@given(data=st.data(), m=st.integers(1, 60), p=st.floats(0, 1), low=st.booleans())
def test_special_rows_match_the_oracle(data, m, p, low):
    """With q = 1 every candidate is dropped, unless its row would be emptied: such a row is kept whole."""
    rows = data.draw(st.lists(st.lists(values, min_size=m, max_size=m), min_size=9, max_size=9))
    scores = torch.tensor(rows, dtype=torch.float32)[None]
    exact = np.array([oracle_row(row, p, low) for row in scores[0].tolist()])
    rescued = exact.all(-1)
    for backend in BACKENDS:
        kept = keep_scores(scores, p=p, q=1.0, seed=0, region="low" if low else "high", backend=backend)
        assert np.array_equal(unpack_mask(kept.rows, m)[0].numpy(), ~exact | rescued[:, None]), backend
        assert kept.counts.tolist() == [exact.size, exact.sum(), exact[~rescued].sum(), rescued.sum()]


def cases():
    kinds = itertools.product(SIZES, [0.0, 0.3, 1.0], ["high", "low"], ["normal", "ties", "special", "equal"])
    for (m, p, region, kind), dtype in zip(kinds, itertools.cycle(DTYPES), strict=False):
        valid = pack_mask(torch.rand(2, 1, m) < 0.7) if kind == "ties" else None
        yield rows_of(m, kind, dtype), dict(p=p, q=0.4, seed=2**63 + 5, layer=3, region=region, valid=valid)


@pytest.mark.parametrize("run", ["cpp", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_backends_are_the_reference(run):
    for scores, rule in cases():
        if run == "cuda":
            there = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in rule.items()}
            ours = type(keep_scores(scores, **rule))(*(x.cpu() for x in keep_scores(scores.cuda(), **there)))
        else:
            ours = keep_scores(scores, **rule, backend=run)
        assert_same(ours, keep_scores(scores, **rule, backend="reference"), (scores.shape, scores.dtype, rule))


def test_the_cuda_kernel_in_the_emulator_is_the_reference():
    for index, (scores, rule) in enumerate(cases()):
        if index % 5 < 2:  # each size, type and kind still comes several times
            small = dict(shared_bytes=12_000) if index % 2 else {}  # keys go through scratch memory
            ours = emulated_keep_scores(scores, **rule, scheduler_seed=index, **small)
            assert_same(ours, keep_scores(scores, **rule, backend="reference"), (scores.shape, scores.dtype, rule))


@pytest.mark.parametrize("m", [3072, 9000])
def test_long_rows(m):
    scores = rows_of(m, n=2, batch=1)
    expected = keep_scores(scores, p=0.3, q=0.3, seed=1, backend="reference")
    assert_same(keep_scores(scores, p=0.3, q=0.3, seed=1, backend="cpp"), expected)
    assert_same(emulated_keep_scores(scores, p=0.3, q=0.3, seed=1), expected)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(shape, backend):
    kept = keep_scores(torch.zeros(shape), p=0.5, q=0.5, seed=0, backend=backend)
    assert kept.rows.shape == (*shape[:2], (shape[2] + 31) // 32)
    assert not kept.rows.any()
    assert kept.counts.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend):
    scores = rows_of(40)
    expected = keep_scores(scores, p=0.3, q=0.5, seed=1, backend=backend)
    for given_ in (scores.permute(2, 0, 1).contiguous().permute(1, 2, 0), torch.cat([scores] * 2, -1)[..., :40]):
        assert not given_.is_contiguous()
        assert_same(keep_scores(given_, p=0.3, q=0.5, seed=1, backend=backend), expected)
    wide = scores[..., :1].expand(scores.shape)
    ours = keep_scores(wide, p=0.3, q=0.5, seed=1, backend=backend)
    assert_same(ours, keep_scores(wide.contiguous(), p=0.3, q=0.5, seed=1, backend=backend))


def test_float64_ranks_in_float64():
    scores = 1 + torch.arange(8.0, dtype=torch.float64).view(1, 1, 8) * 1e-12  # all equal in float32
    kept = keep_scores(scores, p=0.5, q=1.0, seed=0)
    assert unpack_mask(kept.rows, 8)[0, 0].tolist() == [True] * 4 + [False] * 4
    with pytest.raises(RuntimeError, match="float64 scores are ranked by the reference only"):
        keep_scores(scores, p=0.5, q=1.0, seed=0, backend="cpp")


def test_draws_are_others_than_those_of_attention():
    scores = rows_of(200, batch=1, n=40)
    ours = keep_scores(scores, p=0.5, q=0.5, seed=3, layer=2)
    x, y = torch.zeros(1, 1, 40, 1), torch.zeros(1, 1, 200, 1)
    theirs = keep_mask(x, y, p=0.5, q=0.5, seed=3, layer=2, bias=scores[:, None])
    assert ours.counts[1] == theirs.counts[1]
    both = [unpack_mask(bits, 200) for bits in (ours.rows, theirs.rows[:, 0])]
    shared = (~both[0] & ~both[1]).sum()
    assert abs(int(shared) - 40 * 100 / 4) < 5 * (40 * 100 * 3 / 16) ** 0.5  # as of independent draws of 1/2


def test_bits_do_not_depend_on_the_batch_split():
    scores = rows_of(63)
    whole = keep_scores(scores, p=0.5, q=0.5, seed=3)
    for sample in range(2):
        part = keep_scores(scores[sample : sample + 1], p=0.5, q=0.5, seed=3, sample_ids=torch.tensor([sample]))
        assert torch.equal(part.rows[0], whole.rows[sample])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(scores=[1.0]), TypeError, "scores must be a torch.Tensor, got list"),
        (dict(scores=torch.ones(1, 2, 3).int()), TypeError, "scores must be float32, bfloat16, float16 or float"),
        (dict(scores=torch.ones(2, 3)), ValueError, r"scores must have shape \(batch, rows, columns\), got \(2, 3\)"),
        (dict(p=1.5), ValueError, r"p must lie in \[0, 1\], got 1.5"),
        (dict(q="x"), TypeError, r"q must be a number in \[0, 1\], got str"),
        (dict(region="middle"), ValueError, "region must be one of high, low, got 'middle'"),
        (dict(layer=65536), ValueError, r"layer must lie in \[0, 65536\), got 65536"),
        (dict(sample_ids=torch.arange(3)), ValueError, r"sample_ids must be int64 of shape \(2,\)"),
        (dict(valid=torch.ones(2, 5, 2)), TypeError, "valid must be packed int32 words"),
        (dict(valid=torch.ones(2, 1, 5, 2).int()), ValueError, r"valid must broadcast to \(B, n, words\) = \(2, 5, 2"),
        (dict(valid=torch.ones(2, 4, 2).int()), ValueError, "valid must broadcast to"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, message):
    arguments = dict(scores=torch.randn(2, 5, 40), p=0.3, q=0.3, seed=0) | change
    with pytest.raises(error, match=message):
        keep_scores(arguments.pop("scores"), **arguments)


def test_opcheck_and_compile():
    scores, valid = rows_of(40), pack_mask(torch.rand(2, 1, 40) < 0.8)
    for given_ in ((None, False, None), (valid, True, torch.tensor([4, 9]))):
        torch.library.opcheck(torch.ops.attrdrop.keep_scores, (scores, 0.3, 0.4, 3, 1, *given_))

    def call(scores, seed):
        return keep_scores(scores.square(), p=0.3, q=0.5, seed=seed, valid=valid, layer=2)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for seed in (1, 2, 2**62):
        assert_same(compiled(scores, seed), call(scores, seed))
