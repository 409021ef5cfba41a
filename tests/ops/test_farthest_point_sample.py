"""farthest_point_sample: every backend against the definition, restated slowly."""

import math

import pytest
import torch
from clouds import COMPILED, TYPES, called, chooser, random_cloud, squared_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from attrdrop import farthest_point_sample


def by_definition(points, n, valid=None, start=None):
    """One cloud (P, C), as lists."""
    able = [i for i in range(len(points)) if valid is None or valid[i]]
    if not able or n == 0:
        return [0] * n
    chosen = [start if start in able else able[0]]
    while len(chosen) < n:
        nearest = {i: min(squared_distance(points[i], points[j]) for j in chosen) for i in able}
        chosen.append(max(able, key=lambda i: (nearest[i], -i)))
    return chosen


@pytest.mark.parametrize("size", [1, 2, 7, 20])
@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
def test_the_reference_is_the_definition(size, dtype):
    for seed in range(4):
        points = random_cloud(chooser(seed), 3, size, 4, dtype)
        valid = torch.rand(3, size) < 0.7
        start = torch.randint(size, (3,))
        for mask, begin in ((None, None), (valid, None), (valid, start)):
            chosen = farthest_point_sample(points, 9, valid=mask, start=begin, backend="reference")
            assert chosen.dtype == torch.int64
            assert chosen.tolist() == [
                by_definition(points[i], 9, None if mask is None else mask[i], None if begin is None else int(begin[i]))
                for i in range(3)
            ]


@pytest.mark.parametrize("backend", COMPILED)
def test_backends_are_the_reference(backend):
    for seed in range(60):
        draw = chooser(seed)
        n, size = draw(0, 1, 2, 3), draw(1, 7, 63, 64, 65, 111, 300)
        points = random_cloud(draw, n, size, draw(3, 3, 5, 64), draw(*TYPES))
        arguments = dict(valid=draw(None, torch.rand(n, size) < draw(0.0, 0.1, 0.9)))
        arguments["start"] = draw(None, torch.randint(size, (n,)))
        count = draw(0, 1, 2, 33, 70)
        expected = farthest_point_sample(points, count, backend="reference", **arguments)
        ours = called(backend, farthest_point_sample, points, count, scheduler_seed=seed % 9, **arguments)
        assert torch.equal(ours, expected), seed
        assert ours.is_contiguous()


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("size", [1000, 2048, 2049, 5000, 8192, 8193, 20000])
def test_larger_clouds(backend, size):
    points = torch.randn(2, size, 3)
    points[1] = points[1, torch.arange(size) // 2]  # pairs that tie
    count = 12 if backend == "emulated" else 200
    expected = farthest_point_sample(points, count, backend="reference")
    assert torch.equal(called(backend, farthest_point_sample, points, count, scheduler_seed=3), expected)


@pytest.mark.parametrize("backend", ["reference", *COMPILED])
def test_the_lowest_valid_index_repeats_when_all_are_chosen(backend):
    points = torch.tensor([[9.0, 9, 9], [1, 0, 0], [0, 0, 0], [1, 0, 0]])[None]
    valid = torch.tensor([[False, True, True, True]])
    call = called if backend != "reference" else lambda name, call, *a, **k: call(*a, **k, backend=name)
    assert call(backend, farthest_point_sample, points, 6, valid=valid).tolist() == [[1, 2, 1, 1, 1, 1]]


@pytest.mark.parametrize("backend", COMPILED)
def test_distances_that_overflow_are_the_largest(backend):
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3e38, 0, 0], [-3e38, 0, 0]])[None]
    expected = farthest_point_sample(points, 4, backend="reference")
    assert expected.tolist() == [[0, 2, 3, 1]]
    assert torch.equal(called(backend, farthest_point_sample, points, 4), expected)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_error_on_the_cpu(backend, value):
    points = torch.randn(3, 20, 4)
    points[..., 3] = value  # no coordinate
    farthest_point_sample(points, 3, backend=backend)
    for channel in range(3):
        wrong = points.clone()
        wrong[2, 19, channel] = value
        with pytest.raises(ValueError, match="points must have finite coordinates"):
            farthest_point_sample(wrong, 3, backend=backend)
        valid = torch.ones(3, 20, dtype=torch.bool)
        valid[2, 19] = False
        expected = farthest_point_sample(points, 3, valid=valid, backend=backend)
        assert torch.equal(farthest_point_sample(wrong, 3, valid=valid, backend=backend), expected)


@pytest.mark.parametrize("backend", ["emulated", COMPILED[2]])
@pytest.mark.parametrize("size", [40, 9000])
def test_what_is_not_finite_is_padding_on_cuda(backend, size):
    points = torch.randn(2, size, 3)
    is_wrong = torch.rand(2, size) < 0.3
    wrong = points.clone()
    wrong[..., 1][is_wrong] = math.nan
    expected = farthest_point_sample(points, 8, valid=~is_wrong, backend="reference")
    assert torch.equal(called(backend, farthest_point_sample, wrong, 8), expected)


@pytest.mark.parametrize("backend", ["emulated", COMPILED[2]])
def test_a_start_out_of_range_is_moved_into_range_on_cuda(backend, monkeypatch):
    points = torch.randn(2, 40, 3)
    expected = farthest_point_sample(points, 8, start=torch.tensor([0, 39]))
    monkeypatch.setattr("attrdrop._core.checks.check_index", lambda *_: None)  # the emulator's tensors are on the CPU
    assert torch.equal(called(backend, farthest_point_sample, points, 8, start=torch.tensor([-9, 45])), expected)


def test_there_is_no_gradient():
    points = torch.randn(2, 9, 3, requires_grad=True)
    assert not farthest_point_sample(points, 3).requires_grad


def test_float64_runs_the_reference():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1 - 1e-12, 0, 0]], dtype=torch.float64)[None]
    assert farthest_point_sample(points, 2).tolist() == [[0, 2]]
    assert farthest_point_sample(points.float(), 2).tolist() == [[0, 1]]
    with pytest.raises(RuntimeError, match="float64 is served by the reference only"):
        farthest_point_sample(points, 2, backend="cpp")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5])] * 3), min_size=1, max_size=40), st.integers(0, 50))
def test_properties(rows, n):
    points = torch.tensor(rows)[None]
    chosen = farthest_point_sample(points, n)
    assert torch.equal(chosen, farthest_point_sample(points, n, backend="reference"))
    distinct = len(set(rows))
    head, tail = chosen[0, :distinct], chosen[0, distinct:]
    assert len(set(map(tuple, points[0, head].tolist()))) == min(n, distinct)
    assert not tail.any()


def test_opcheck():
    for valid, start in ((None, None), (torch.rand(2, 9) < 0.5, torch.tensor([3, 8]))):
        torch.library.opcheck(torch.ops.attrdrop.farthest_point_sample, (torch.randn(2, 9, 4), 5, valid, start))


@pytest.mark.parametrize(("backend", "is_dynamic"), [("cpp", False), ("cpp", True), ("reference", False)])
def test_compiles_without_graph_breaks(backend, is_dynamic):
    def step(points, valid):
        return farthest_point_sample(2 * points, points.shape[1] // 2, valid=valid, backend=backend) + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=is_dynamic)
    for size in (8, 11):
        points, valid = torch.randn(2, size, 3), torch.rand(2, size) < 0.8
        assert torch.equal(compiled(points, valid), step(points, valid))


POINTS = torch.randn(2, 9, 3)
ERRORS = [
    (dict(points=[1]), TypeError, "points must be a torch.Tensor, got list"),
    (dict(points=POINTS.long()), TypeError, "points must be float32, .* got torch.int64"),
    (dict(points=POINTS[0]), ValueError, r"points must have shape \(N, P, C\) with C at least 3, got \(9, 3\)"),
    (dict(points=POINTS[..., :2]), ValueError, "with C at least 3"),
    (dict(points=POINTS[:, :0]), ValueError, "points must have a point in each cloud"),
    (dict(n=-1), ValueError, "n must not be negative, got -1"),
    (dict(n=2.0), TypeError, "n must be an int, got float"),
    (dict(valid=torch.ones(2, 9)), ValueError, r"valid must be bool of shape \(2, 9\) on cpu, got torch.float32"),
    (dict(valid=torch.ones(2, 8).bool()), ValueError, r"got torch.bool of shape \(2, 8\)"),
    (dict(start=torch.tensor([1])), ValueError, r"start must be int64 of shape \(2,\)"),
    (dict(start=torch.tensor([1, 9])), ValueError, r"start must lie in \[0, 9\), got 9"),
    (dict(backend="triton"), RuntimeError, "'triton' cannot serve this call: it is not implemented"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        farthest_point_sample(**{"points": POINTS, "n": 3, **change})


def test_the_operator_itself_stays_inside_its_tensors():
    run = torch.ops.attrdrop.farthest_point_sample
    with pytest.raises(RuntimeError, match=r"start must lie in \[0, 9\), got -1"):
        run(POINTS, 3, None, torch.tensor([0, -1]))
    with pytest.raises(RuntimeError, match="valid must be bool"):
        run(POINTS, 3, torch.ones(2, 8).bool(), None)
    with pytest.raises(RuntimeError, match="points must have at least 3 channels"):
        run(POINTS[..., :2], 3, None, None)


def test_no_cloud_at_all():
    for backend in ("cpp", "reference"):
        assert farthest_point_sample(torch.empty(0, 0, 3), 4, backend=backend).shape == (0, 4)
        assert farthest_point_sample(torch.empty(0, 5, 3), 4, backend=backend).shape == (0, 4)
