"""occlude_points: every backend against the definition, restated slowly."""

import math

import pytest
import torch
from backends import GPU, on_cpu, on_gpu
from emulated import emulated_occlude_points
from hypothesis import given, settings
from hypothesis import strategies as st

from attrdrop import occlude_points
from attrdrop.reference.philox import philox4x32_10

TYPES = [torch.float16, torch.bfloat16, torch.float32]
NORMS = ["minmax", "rank", "positive"]
MODES = ["threshold", "calibrated"]
BACKENDS = {
    "cpp": on_cpu(occlude_points, "cpp"),
    "emulated": emulated_occlude_points,
    "cuda": on_gpu(occlude_points),
}


@pytest.fixture(params=["cpp", "emulated", GPU])
def occlude(request):
    """occlude_points of a compiled backend."""
    return BACKENDS[request.param]


def words(seed, purpose, sample, points):
    """The word of each point."""
    counter = (torch.arange(points // 4 + 1), *(torch.tensor(c) for c in (2**31 + purpose, 0, sample % 2**32)))
    return torch.stack(philox4x32_10(seed, counter), 1).flatten().tolist()


def r_by_definition(relevance, valid, norm):
    """r of each point of one cloud, from lists."""
    among = [x for x, counts in zip(relevance, valid, strict=True) if counts]
    if not among:
        return [0.0] * len(relevance)
    low, high = min(among), max(among)
    if norm == "rank":
        return [sum(y < x for y in among) / max(len(among) - 1, 1) for x in relevance]
    if norm == "positive":
        return [max(x, 0.0) / high if high > 0 else 0.0 for x in relevance]
    return [(x - low) / (high - low) if high > low else 0.0 for x in relevance]


def dropped_by_definition(relevance, valid, sample, *, alpha=0.5, beta=0.15, mode="calibrated", norm=None, seed):
    """Places of the dropped points of one cloud; relevance: a list, or None."""
    points = len(valid)
    norm = norm or ("minmax" if mode == "threshold" else "rank")
    if relevance is None:
        alpha, relevance = 1.0, [0.0] * points
    r = r_by_definition(relevance, valid, norm)
    drawn = [word / 2**32 for word in words(seed, 3, sample, points)]
    scores = [alpha * u + (1 - alpha) * x for u, x in zip(drawn, r)]  # noqa: B905
    places = [j for j in range(points) if valid[j]]
    if mode == "threshold":
        return [j for j in places if beta > 0 and scores[j] >= 1 - beta]
    narrow = torch.tensor(scores, dtype=torch.float32).tolist()
    order = sorted(places, key=lambda j: (-narrow[j], j))
    return sorted(order[: math.floor(beta * len(places) + 0.5)])


def sources_by_definition(dropped, valid, sample, value, seed):
    """Which point each dropped one becomes."""
    kept = [j for j, counts in enumerate(valid) if counts and j not in dropped]
    if not kept or value == "first":
        return (kept or dropped)[:1] * len(dropped)
    drawn = words(seed, 4, sample, len(valid))
    return [kept[drawn[j] * len(kept) >> 32] for j in dropped]


RULES = [
    dict(),
    dict(mode="threshold"),
    dict(alpha=0.0, beta=0.3, mode="threshold"),
    dict(alpha=0.0, beta=0.5, norm="minmax"),
    dict(alpha=0.3, beta=0.6, mode="threshold", norm="rank"),
    dict(alpha=0.7, beta=0.9, mode="threshold", norm="positive"),
    dict(alpha=1.0, beta=0.4, norm="positive"),
    dict(beta=1.0),
    dict(beta=1.0, mode="threshold"),
    dict(beta=0.0),
    dict(alpha=0.0, beta=0.0, mode="threshold"),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("points", [0, 1, 2, 7, 63])
@pytest.mark.parametrize("guided", [True, False])
def test_the_reference_is_the_definition(points, guided, rule):
    x = torch.randn(5, points, 3)
    relevance = torch.randint(-2, 3, (5, points)).float() if guided else None  # many ties
    valid = torch.rand(5, points) < torch.tensor([1.1, 0.7, 0.5, 0.1, -1.0])[:, None]  # the last has none
    for seed in (3, 2**64 - 5):
        for value in ("origin", "first", "resample", (1.0, 2.0, 3.0)):
            arguments = dict(seed=seed, valid=valid, value=value, **rule)
            out, dropped = occlude_points(x, relevance, backend="reference", **arguments)
            expected = x.clone()
            for n in range(5):
                counts = valid[n].tolist()
                gone = dropped_by_definition(relevance[n].tolist() if guided else None, counts, n, seed=seed, **rule)
                assert dropped[n].nonzero()[:, 0].tolist() == gone
                if value in ("first", "resample"):
                    expected[n, gone] = x[n, sources_by_definition(gone, counts, n, value, seed)]
                else:
                    expected[n, gone] = torch.zeros(3) if value == "origin" else torch.tensor(value)
            assert torch.equal(out, expected)
            assert dropped.dtype == torch.bool


def random_case(seed):
    """Points, relevance and arguments of every kind."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *choices: choices[int(torch.randint(len(choices), (1,), generator=generator))]  # noqa: E731
    n, p, c = draw(0, 1, 2, 3), draw(0, 1, 7, 63, 111, 300), draw(0, 1, 3, 6)
    points = torch.randn(n, p, 2 * c, generator=generator).to(draw(*TYPES))
    layout = draw("contiguous", "channels first", "strided", "expanded")
    points = points[..., ::2] if layout == "strided" else points[..., :c].contiguous()
    if layout == "channels first":
        points = points.mT.contiguous().mT
    if layout == "expanded" and n > 0:
        points = points[:1].expand(n, p, c)
    relevance = draw(
        torch.randint(-9, 10, draw((n, p), (n, p, 3)), generator=generator).to(draw(*TYPES)),
        torch.randn(n, p, generator=generator),
        None,
    )
    if relevance is not None and draw(True, False, False):
        relevance = relevance.transpose(0, 1).contiguous().transpose(0, 1)
    arguments = dict(
        alpha=draw(0.0, 0.3, 0.5, 1.0), beta=draw(0.0, 0.15, 0.5, 1.0), mode=draw(*MODES), norm=draw(None, *NORMS),
        value=draw("origin", "first", "resample", 7.6, [i + 0.3 for i in range(c)], torch.arange(c)), seed=seed,
    )  # fmt: skip
    if draw(True, False):
        arguments["valid"] = torch.rand(p, n, generator=generator).mT < draw(0.2, 0.9)
    if draw(True, False):
        arguments["sample_ids"] = 2**33 + 7 * torch.arange(n)
    return points, relevance, arguments


def test_backends_are_the_reference(occlude):
    for seed in range(150):
        points, relevance, arguments = random_case(seed)
        expected, dropped = occlude_points(points, relevance, backend="reference", **arguments)
        ours, found = occlude(points, relevance, scheduler_seed=seed % 9, **arguments)
        assert torch.equal(found, dropped), (seed, arguments)
        assert torch.equal(ours, expected), (seed, arguments)
        assert ours.stride() == points.clone().stride()


@pytest.mark.parametrize("points", [1000, 1025, 9000])  # one block of threads, two kinds of scratch memory
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", MODES)
def test_larger_clouds(occlude, points, norm, mode):
    x, valid = torch.randn(2, points, 2), torch.rand(2, points) < 0.9
    relevance = torch.randn(2, points)
    relevance[1] = relevance[1].round()  # ties
    arguments = dict(mode=mode, norm=norm, value="resample", beta=0.3, seed=points)
    for guide, real in ((relevance, None), (relevance[..., None].half(), valid)):
        expected, dropped = occlude_points(x, guide, valid=real, backend="reference", **arguments)
        ours, found = occlude(x, guide, valid=real, scheduler_seed=points, **arguments)
        assert torch.equal(found, dropped)
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_a_cloud_of_100000_points(occlude, norm):
    x, relevance = torch.randn(1, 100_000, 3), torch.randn(1, 100_000)
    arguments = dict(mode="calibrated", norm=norm, value="resample", seed=1)
    expected, dropped = occlude_points(x, relevance, backend="reference", **arguments)
    ours, found = occlude(x, relevance, **arguments)
    assert int(found.sum()) == 15_000
    assert torch.equal(found, dropped)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.15), (0.3, 0.6), (0.8, 0.9), (1.0, 0.25), (0.4, 0.4)])
@pytest.mark.parametrize("norm", NORMS)
def test_the_threshold_drops_with_the_released_probability(alpha, beta, norm):
    clouds = 4000
    relevance = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.5, 3.0, 3.1, 3.2, 3.3])
    x = torch.zeros(clouds, 10, 1)
    _, dropped = occlude_points(
        x, relevance.expand(clouds, 10), alpha=alpha, beta=beta, mode="threshold", norm=norm, seed=17
    )
    r = torch.tensor(r_by_definition(relevance.tolist(), [True] * 10, norm))
    expected = ((beta - (1 - alpha) * (1 - r)) / alpha).clamp(0, 1)
    bound = 4 * (expected * (1 - expected) / clouds).sqrt()
    assert ((dropped.double().mean(0) - expected).abs() <= bound).all()
    assert ((expected > 0.02) & (expected < 0.98)).any()


@settings(max_examples=100, deadline=None)
@given(
    beta=st.floats(0, 1), alpha=st.floats(0, 1), norm=st.sampled_from([None, *NORMS]), seed=st.integers(0, 2**64 - 1),
    levels=st.integers(1, 9), points=st.integers(0, 150), share=st.floats(0, 1),
    value=st.sampled_from(["origin", "first", "resample"]),
)  # fmt: skip
def test_calibrated_drops_exactly_beta_n(points, levels, share, beta, **arguments):
    x, relevance = torch.randn(4, points, 3), torch.randint(levels, (4, points)).float()
    valid = torch.rand(4, points) < share
    out, dropped = occlude_points(x, relevance, beta=beta, mode="calibrated", valid=valid, **arguments)
    assert dropped.sum(1).tolist() == [math.floor(beta * n + 0.5) for n in valid.sum(1).tolist()]
    assert not (dropped & ~valid).any()
    assert torch.equal(out[~dropped], x[~dropped])
    again = occlude_points(x, relevance, beta=beta, mode="calibrated", valid=valid, backend="reference", **arguments)
    assert torch.equal(again[1], dropped)
    assert torch.equal(again[0], out)


def test_more_relevance_is_dropped_before_less(occlude):
    relevance = torch.randn(6, 111)
    for norm in (None, "minmax"):
        _, dropped = occlude(torch.zeros(6, 111, 1), relevance, alpha=0.0, mode="calibrated", norm=norm, seed=0)
        for n in range(6):
            assert dropped[n].sum() == 17
            assert relevance[n][dropped[n]].min() > relevance[n][~dropped[n]].max()


def test_ties_of_the_score_go_to_the_lower_index(occlude):
    relevance = torch.tensor([[1.0, -0.0, 0.0, 2.0, -0.0, 0.0, 0.0]])
    arguments = dict(alpha=0.0, mode="calibrated", seed=0)
    for norm in NORMS:
        for drops, places in ((3, [0, 1, 3]), (5, [0, 1, 2, 3, 4])):
            _, dropped = occlude(torch.zeros(1, 7, 1), relevance, beta=drops / 7, norm=norm, **arguments)
            assert dropped[0].nonzero()[:, 0].tolist() == places


@pytest.mark.parametrize("level", [0.0, -3.0, 2.5])
@pytest.mark.parametrize("norm", NORMS)
def test_constant_relevance_guides_nothing(occlude, level, norm):
    x, relevance = torch.randn(8, 63, 3), torch.full((8, 63), level)
    common = dict(mode="threshold", seed=1)
    _, dropped = occlude(x, relevance, alpha=0.6, beta=0.55, norm=norm, **common)
    if norm == "positive" and level > 0:
        _, expected = occlude(x, None, beta=0.55 / 0.6, **common)  # r = 1: score >= 1 - beta: U >= 1 - beta / alpha
    else:
        _, expected = occlude(x, None, beta=1 - 0.45 / 0.6, **common)  # r = 0
    assert torch.equal(dropped, expected)
    assert dropped.any()


def test_no_relevance_is_alpha_one(occlude):
    x = torch.randn(6, 63, 3)
    for mode in MODES:
        expected, dropped = occlude(x, torch.randn(6, 63), alpha=1.0, beta=0.3, mode=mode, seed=1)
        out, found = occlude(x, beta=0.3, mode=mode, seed=1)
        assert torch.equal(found, dropped)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("mode", MODES)
def test_clouds_of_one_point_or_none(occlude, mode):
    for shape in ((3, 1, 3), (3, 0, 3), (0, 9, 3), (0, 0, 3), (3, 9, 0)):
        x = torch.randn(shape)
        for value in ("origin", "first", "resample"):
            arguments = dict(mode=mode, value=value, seed=1)
            out, dropped = occlude(x, torch.randn(shape[:2]), beta=1.0, **arguments)
            assert dropped.shape == shape[:2]
            assert dropped.all()
            assert torch.equal(out, x.clone().zero_() if value == "origin" else x[:, :1].expand(shape))
            _, dropped = occlude(x, torch.randn(shape[:2]), beta=0.0, **arguments)
            assert not dropped.any()


def test_padding_counts_in_nothing(occlude):
    x, relevance = torch.randn(3, 111, 3), torch.randn(3, 111)
    lengths = [111, 40, 0]
    valid = torch.arange(111) < torch.tensor(lengths)[:, None]
    garbage = torch.where(valid, relevance, torch.tensor([math.nan, math.inf, -1e9] * 37))
    for norm in NORMS:
        for mode in MODES:
            arguments = dict(mode=mode, norm=norm, beta=0.4, value="resample", seed=4)
            out, dropped = occlude(x, garbage, valid=valid, **arguments)
            assert torch.equal(out[~valid], x[~valid])
            for n, length in enumerate(lengths):
                alone, gone = occlude(
                    x[n : n + 1, :length], relevance[n : n + 1, :length], sample_ids=torch.tensor([n]), **arguments
                )
                assert torch.equal(dropped[n, :length], gone[0])
                assert torch.equal(out[n, :length], alone[0])
                assert not dropped[n, length:].any()


def test_dropped_points_take_any_that_stays(occlude):
    x = torch.arange(300.0).view(20, 15, 1) + 1
    _, dropped = occlude(x, beta=0.4, mode="calibrated", seed=5)
    first, _ = occlude(x, beta=0.4, mode="calibrated", value="first", seed=5)
    some, same = occlude(x, beta=0.4, mode="calibrated", value="resample", seed=5)
    assert torch.equal(same, dropped)
    ranks = []
    for n in range(20):
        kept = x[n][~dropped[n]][:, 0].tolist()
        assert first[n][dropped[n]].unique().tolist() == kept[:1]
        ranks += [kept.index(value) for value in some[n][dropped[n]][:, 0].tolist()]
    counts = torch.bincount(torch.tensor(ranks), minlength=9)
    assert counts.sum() == 120
    assert counts.min() >= 4  # of 13 on average


def test_numbers_replace_all_channels(occlude):
    x = torch.randn(3, 20, 3)
    for value, expected in ((2.5, [2.5] * 3), ([1, 2.0, 3], [1, 2, 3]), (torch.tensor([4, 5, 6]), [4, 5, 6])):
        out, dropped = occlude(x, beta=0.5, value=value, seed=2)
        assert (out[dropped] == torch.tensor(expected)).all()
    values = x[0, 0]  # of the memory that is written
    out, dropped = occlude(x, beta=0.9, value=values.clone(), seed=2)
    again = x.clone()
    assert torch.equal(occlude_points(again, beta=0.9, value=again[0, 0], seed=2, inplace=True)[0], out)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_relevance_that_is_not_finite_is_an_error_on_the_cpu(backend, wrong, mode):
    x = torch.randn(3, 70, 3)
    before = x.clone()
    for beta in (0.5, 0.0):
        for norm in NORMS:
            relevance, valid = torch.randn(3, 70), torch.ones(3, 70).bool()
            relevance[2, 69] = wrong
            arguments = dict(mode=mode, beta=beta, norm=norm, seed=0, inplace=True, backend=backend)
            for real in (None, valid):
                with pytest.raises(ValueError, match="relevance must be finite"):
                    occlude_points(x, relevance, valid=real, **arguments)
    with pytest.raises(ValueError, match="relevance must be finite"):  # a sum over channels that overflows
        occlude_points(x, torch.full((3, 70, 2), 3e38), seed=0, inplace=True, backend=backend)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["emulated", GPU])
@pytest.mark.parametrize("norm", NORMS)
def test_relevance_that_is_not_finite_counts_as_the_least_on_cuda(name, norm):
    relevance = torch.rand(4, 200) + 0.5
    wrong = torch.rand(4, 200) < 0.3
    relevance[wrong] = torch.tensor([math.nan, math.inf, -math.inf])[torch.randint(3, (int(wrong.sum()),))]
    relevance[3] = math.nan
    for mode in MODES:
        arguments = dict(mode=mode, alpha=0.4, beta=0.55, norm=norm, seed=6)
        _, dropped = BACKENDS[name](torch.zeros(4, 200, 1), relevance, **arguments)
        for n in range(4):
            finite = relevance[n].isfinite()
            least = min(relevance[n][finite].tolist(), default=0.0) if norm == "minmax" else 0.0
            known = torch.where(finite, relevance[n], least).tolist()
            gone = dropped_by_definition(known, [True] * 200, n, **arguments)
            assert dropped[n].nonzero()[:, 0].tolist() == gone


def test_a_batch_may_be_split(occlude):
    x, relevance = torch.randn(9, 40, 3), torch.randn(9, 40)
    arguments = dict(beta=0.4, value="resample", seed=8)
    for mode in MODES:
        whole, dropped = occlude(x, relevance, mode=mode, **arguments)
        for part in (slice(0, 4), slice(4, 9)):
            ids = torch.arange(9)[part]
            out, found = occlude(x[part], relevance[part], sample_ids=ids, mode=mode, **arguments)
            assert torch.equal(found, dropped[part])
            assert torch.equal(out, whole[part])


def test_channels_of_relevance_are_summed_in_order(occlude):
    relevance = torch.randn(3, 63, 5) * torch.tensor([1e4, 1.0, -1e4, 1e-3, 1.0])
    total = relevance[..., 0]
    for channel in range(1, 5):
        total = total + relevance[..., channel]
    for layout in (relevance, relevance.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        _, dropped = occlude(torch.zeros(3, 63, 1), layout, alpha=0.0, mode="calibrated", seed=0)
        assert torch.equal(dropped, occlude(torch.zeros(3, 63, 1), total, alpha=0.0, mode="calibrated", seed=0)[1])


@pytest.mark.parametrize("value", ["origin", "resample"])
def test_in_place_writes_what_the_copy_has(value):
    for occlude in (BACKENDS["cpp"], BACKENDS["emulated"], on_cpu(occlude_points, "reference")):
        for x in (torch.randn(3, 50, 3), torch.randn(3, 50, 6)[..., ::2], torch.randn(3, 4, 50)[:, :3].mT):
            before = x.clone()
            out, dropped = occlude(x, torch.ones(3, 50), beta=0.7, value=value, seed=1)
            assert torch.equal(x, before)
            assert dropped.any()
            same, found = occlude(x, torch.ones(3, 50), beta=0.7, value=value, seed=1, inplace=True)
            assert same is x
            assert torch.equal(x, out)
            assert torch.equal(found, dropped)


@pytest.mark.parametrize("value", ["origin", "first", "resample"])
def test_the_gradient_is_the_mask(value):
    x = torch.randn(3, 30, 4, requires_grad=True)
    out, dropped = occlude_points(x, torch.randn(3, 30), beta=0.5, value=value, seed=1)
    out.sum().backward()
    assert torch.equal(x.grad, (~dropped)[..., None].expand_as(x).float())
    with torch.no_grad():
        assert not occlude_points(x, seed=1)[0].requires_grad


def test_float64_runs_the_reference():
    x, relevance = torch.randn(2, 50, 3), torch.randint(-9, 9, (2, 50)).float()
    for mode in MODES:
        expected, dropped = occlude_points(x, relevance, mode=mode, beta=0.5, seed=0)
        out, found = occlude_points(x.double(), relevance.double(), mode=mode, beta=0.5, seed=0)
        assert out.dtype == torch.float64
        assert torch.equal(out.float(), expected)
        assert torch.equal(found, dropped)
    with pytest.raises(RuntimeError, match="float64 is served by the reference only"):
        occlude_points(x, relevance.double(), seed=0, backend="cpp")


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    x, relevance = torch.randn(4, 9000, 3, device="cuda"), torch.randn(4, 9000, device="cuda")
    occlude_points(x, relevance, seed=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value in ("origin", "resample", (1.0, 2.0, 3.0)):
            for mode in MODES:
                occlude_points(x, relevance, mode=mode, value=value, seed=0, inplace=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
