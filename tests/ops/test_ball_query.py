"""ball_query: every backend against the definition, restated slowly."""

import math

import numpy as np
import pytest
import torch
from clouds import COMPILED, TYPES, called, chooser, random_cloud, squared_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from attrdrop import ball_query


def by_definition(points, centre, radius, k, valid=None):
    """The points of one centre, as a list."""
    able = [i for i in range(len(points)) if valid is None or valid[i]]
    if not able:
        return [0] * k
    kind = np.float64 if points.dtype == torch.float64 else np.float32
    distance = {i: squared_distance(points[i], centre) for i in able}
    with np.errstate(over="ignore"):
        limit = kind(radius) * kind(radius)
    found = [i for i in able if distance[i] <= limit][:k]
    rest = found[0] if found else min(able, key=lambda i: (distance[i], i))
    return found + [rest] * (k - len(found))


@pytest.mark.parametrize("size", [1, 7, 30])
@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
def test_the_reference_is_the_definition(size, dtype):
    for seed in range(4):
        draw = chooser(seed)
        points, centres = random_cloud(draw, 2, size, 4, dtype), random_cloud(draw, 2, 5, 3, dtype)
        for valid in (None, torch.rand(2, size) < 0.5):
            for radius, k in ((1.0, 3), (0.3, 1), (1.5, 40), (1e-30, 2), (1e30, 4)):
                index = ball_query(points, centres, radius=radius, k=k, valid=valid, backend="reference")
                assert index.dtype == torch.int64
                assert index.tolist() == [
                    [
                        by_definition(points[i], centre, radius, k, None if valid is None else valid[i])
                        for centre in centres[i]
                    ]
                    for i in range(2)
                ]


@pytest.mark.parametrize("backend", COMPILED)
def test_backends_are_the_reference(backend):
    for seed in range(60):
        draw = chooser(seed)
        n, size, groups, dtype = draw(0, 1, 3), draw(1, 7, 63, 64, 65, 111, 300), draw(0, 1, 7, 20), draw(*TYPES)
        points, centres = (
            random_cloud(draw, n, size, draw(3, 6), dtype),
            random_cloud(draw, n, groups, draw(3, 4), dtype),
        )
        valid = draw(None, torch.rand(n, size) < draw(0.0, 0.1, 0.9))
        scales = draw(
            dict(radius=1.0, k=7),
            dict(radius=0.1, k=1),
            dict(radius=[1.0], k=[33]),
            dict(radius=(0.01, 0.5, 1.0, 9.0), k=(3, 64, 1, 400)),
            dict(radius=[1.0] * 32, k=list(range(1, 33))),
        )
        expected = ball_query(points, centres, valid=valid, backend="reference", **scales)
        ours = called(backend, ball_query, points, centres, scheduler_seed=seed % 9, valid=valid, **scales)
        assert isinstance(ours, tuple) == isinstance(expected, tuple) == isinstance(scales["k"], (tuple, list))
        pairs = zip(ours, expected, strict=True) if isinstance(ours, tuple) else [(ours, expected)]
        assert all(torch.equal(a, b) for a, b in pairs), seed


@pytest.mark.parametrize("backend", COMPILED)
def test_a_thousand_points(backend):
    points = torch.rand(2, 1000, 3)
    for radius in (0.05, 0.2, 2.0):
        centres = points[:, ::50]
        expected = ball_query(points, centres, radius=radius, k=32, backend="reference")
        assert torch.equal(called(backend, ball_query, points, centres, radius=radius, k=32), expected)


@pytest.mark.parametrize("backend", ["reference", *COMPILED])
def test_the_sphere_belongs_to_it_and_the_nearest_fills_where_none_is_inside(backend):
    call = called if backend != "reference" else lambda name, call, *a, **k: call(*a, **k, backend=name)
    points = torch.tensor([[5.0, 0, 0], [0.1, 0, 0], [0, -3, 0], [0, 3, 0]])[None]
    centres = torch.tensor([[0.0, 0, 0], [0, 0, 40], [4.9, 0, 0]])[None]
    ours = call(backend, ball_query, points, centres, radius=0.1, k=3)
    assert ours.tolist() == [[[1, 1, 1], [1, 1, 1], [0, 0, 0]]]
    valid = torch.tensor([[True, False, True, True]])
    assert call(backend, ball_query, points, centres, radius=0.1, k=2, valid=valid)[0, 0].tolist() == [2, 2]


@pytest.mark.parametrize("backend", COMPILED)
def test_distances_that_overflow(backend):
    points = torch.tensor([[0.0, 0, 0], [3e38, 0, 0], [-3e38, 0, 0]])[None]
    valid = torch.tensor([[False, True, True]])
    for radius in (1.0, 1e25, 1e300):
        expected = ball_query(points, -points, radius=radius, k=2, valid=valid, backend="reference")
        assert torch.equal(called(backend, ball_query, points, -points, radius=radius, k=2, valid=valid), expected)
    assert expected.tolist() == [[[1, 2]] * 3]


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_an_error_on_the_cpu(backend, value):
    points, centres = torch.randn(2, 9, 4), torch.randn(2, 5, 4)
    points[..., 3] = centres[..., 3] = value  # no coordinate
    ball_query(points, centres, radius=1.0, k=3, backend=backend)
    for name, tensor in (("points", points), ("centres", centres)):
        before = tensor[1, 4, 2].item()
        tensor[1, 4, 2] = value
        with pytest.raises(ValueError, match=f"{name} must have finite coordinates"):
            ball_query(points, centres, radius=1.0, k=3, backend=backend)
        tensor[1, 4, 2] = before


@pytest.mark.parametrize("backend", ["emulated", COMPILED[2]])
def test_what_is_not_finite_is_padding_on_cuda(backend):
    points, centres = torch.randn(2, 90, 3), torch.randn(2, 5, 3)
    is_wrong = torch.rand(2, 90) < 0.3
    is_wrong[:, 0] = True
    expected = ball_query(points, centres, radius=1.0, k=8, valid=~is_wrong, backend="reference")
    points[..., 1][is_wrong] = math.inf
    assert torch.equal(called(backend, ball_query, points, centres, radius=1.0, k=8), expected)
    centres[:, 2, 1] = math.nan
    expected[:, 2] = 0
    assert torch.equal(called(backend, ball_query, points, centres, radius=1.0, k=8), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5])] * 3), min_size=1, max_size=70),
    st.lists(st.tuples(st.floats(0.1, 3.0), st.integers(1, 80)), min_size=1, max_size=4),
)
def test_properties(rows, scales):
    points = torch.tensor(rows)[None]
    radius, k = zip(*scales, strict=True)
    together = ball_query(points, points, radius=radius, k=k)
    for index, r, most in zip(together, radius, k, strict=True):
        assert torch.equal(index, ball_query(points, points, radius=r, k=most))
        assert torch.equal(index, ball_query(points, points, radius=r, k=most, backend="reference"))
        steps = index.diff(dim=-1)
        assert ((steps > 0) | (index[..., 1:] == index[..., :1])).all()
        assert ((points[0][index[0]] - points[0][:, None]).norm(dim=-1) <= r + 1e-5).all()


def test_there_is_no_gradient_and_float64_runs_the_reference():
    points = torch.randn(2, 9, 3, requires_grad=True)
    assert not ball_query(points, points, radius=1.0, k=3).requires_grad
    with pytest.raises(RuntimeError, match="float64 is served by the reference only"):
        ball_query(points.double(), points.double(), radius=1.0, k=3, backend="cpp")
    assert ball_query(points.double(), points.double(), radius=1.0, k=3).shape == (2, 9, 3)


def test_opcheck():
    for valid in (None, torch.rand(2, 9) < 0.5):
        arguments = (torch.randn(2, 9, 4), torch.randn(2, 5, 3), [0.5, 1.0], [3, 4], valid)
        torch.library.opcheck(torch.ops.attrdrop.ball_query, arguments)


@pytest.mark.parametrize(("backend", "is_dynamic"), [("cpp", False), ("cpp", True), ("reference", False)])
def test_compiles_without_graph_breaks(backend, is_dynamic):
    def step(points):
        index = ball_query(points, points[:, ::2], radius=1.0, k=4, backend=backend)
        small, large = ball_query(points, points[:, ::2], radius=(0.5, 1.0), k=(3, 5), backend=backend)
        return index + 1, small - 1, large

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=is_dynamic)
    for size in (8, 11):
        points = torch.randn(2, size, 3)
        assert all(torch.equal(a, b) for a, b in zip(compiled(points), step(points), strict=True))


POINTS = torch.randn(2, 9, 3)
ERRORS = [
    (dict(points=POINTS[..., :2]), ValueError, "points must have shape .* with C at least 3"),
    (dict(centres=POINTS.half()), ValueError, "centres must have the dtype and device of points, torch.float32 on cpu"),
    (dict(centres=POINTS[:1]), ValueError, r"centres must have shape \(2, S, C\) with C at least 3, got \(1, 9, 3\)"),
    (dict(centres=POINTS[..., :2]), ValueError, "centres must have shape"),
    (dict(valid=torch.ones(2, 8).bool()), ValueError, "valid must be bool"),
    (dict(radius=0.0), ValueError, "radius must be positive and finite, got 0"),
    (dict(radius=math.inf), ValueError, "radius must be positive and finite, got inf"),
    (dict(radius=math.nan), ValueError, "radius must be positive and finite, got nan"),
    (dict(radius="1"), TypeError, "radius and k must be two numbers or two sequences, got str and int"),
    (dict(radius=None), TypeError, "radius must be a number, got NoneType"),
    (dict(k=0), ValueError, "k must be at least 1, got 0"),
    (dict(k=2.0), TypeError, "k must be an int, got float"),
    (dict(k=[3]), TypeError, "radius and k must be two numbers or two sequences, got float and list"),
    (dict(radius=[1.0, 2.0], k=[3]), ValueError, "radius and k must have the same length, 1 to 32 numbers"),
    (dict(radius=[], k=[]), ValueError, "radius and k must have the same length, 1 to 32"),
    (dict(radius=[1.0] * 33, k=[3] * 33), ValueError, "radius and k must have the same length, 1 to 32"),
    (dict(backend="triton"), RuntimeError, "'triton' cannot serve this call"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        ball_query(**{"points": POINTS, "centres": POINTS, "radius": 1.0, "k": 3, **change})


def test_the_operator_itself_stays_inside_its_tensors():
    for change in (dict(k=[3, 0]), dict(k=[3]), dict(centres=POINTS[..., :2]), dict(centres=POINTS[:1])):
        arguments = {"points": POINTS, "centres": POINTS, "radius": [1.0, 2.0], "k": [3, 4], "valid": None} | change
        with pytest.raises(RuntimeError, match="must"):
            torch.ops.attrdrop.ball_query(*arguments.values())


def test_nothing_to_find():
    for backend in ("cpp", "reference"):
        for n, size, groups in ((0, 0, 3), (0, 4, 3), (2, 4, 0)):
            points, centres = torch.empty(n, size, 3).zero_(), torch.empty(n, groups, 3).zero_()
            assert ball_query(points, centres, radius=1.0, k=5, backend=backend).shape == (n, groups, 5)
