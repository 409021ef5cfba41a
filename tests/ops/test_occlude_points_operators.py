"""occlude_points: errors, and the operator under opcheck and torch.compile."""

import math

import pytest
import torch

from attrdrop import occlude_points


def operator_arguments(points, relevance, *, calibrated=False, replacement=0, values=None, valid=None, ids=None):
    return (points, relevance, valid, 0.5, 0.4, calibrated, 1, replacement, 0.5, values, 5, ids)


@pytest.mark.parametrize("kind", ["relevance", "uniform", "all"])
def test_opcheck(kind):
    points, relevance = torch.randn(3, 20, 2), torch.randn(3, 20, 2)
    if kind == "all":
        options = dict(values=torch.ones(2), valid=torch.rand(3, 20) < 0.8, ids=torch.arange(3))
        arguments = operator_arguments(points, relevance, calibrated=True, replacement=2, **options)
    else:
        arguments = operator_arguments(points, None if kind == "uniform" else relevance)
    torch.library.opcheck(torch.ops.attrdrop.occlude_points_, arguments)


@pytest.mark.parametrize(("chosen", "inplace"), [("cpp", False), ("cpp", True), ("reference", False)])
@pytest.mark.parametrize("mode", ["threshold", "calibrated"])
def test_compiles_without_graph_breaks(chosen, inplace, mode):
    points, relevance, valid = torch.rand(4, 30, 3), torch.randn(4, 30), torch.rand(4, 30) < 0.8

    def step(points, relevance, valid):
        arguments = dict(mode=mode, beta=0.4, seed=3, valid=valid, inplace=inplace, backend=chosen)
        out, dropped = occlude_points(2 * points, relevance, value=(1.0, 2.0, 3.0), **arguments)
        again, _ = occlude_points(points + 1, relevance, value="resample", **arguments)
        return out + 1, dropped, again + 1

    expected = step(points, relevance, valid)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(points, relevance, valid)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compiles_for_sizes_and_seeds_unknown():
    def step(points, relevance, seed):
        out, dropped = occlude_points(points, relevance, beta=0.4, seed=seed, inplace=True)
        return out + 1, dropped

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, size, seed in ((3, 8, 1), (4, 9, 2)):
        points, relevance = torch.rand(n, size, 3), torch.rand(n, size)
        expected = step(points.clone(), relevance, seed)
        assert all(torch.equal(a, b) for a, b in zip(compiled(points, relevance, seed), expected, strict=True))


POINTS, RELEVANCE, VALID = torch.ones(2, 8, 3), torch.ones(2, 8), torch.ones(2, 8).bool()
ERRORS = [
    (dict(points=[1]), TypeError, "points must be a torch.Tensor, got list"),
    (dict(points=POINTS.long()), TypeError, "points must be float16, .* got torch.int64"),
    (dict(points=POINTS[0]), ValueError, r"points must have shape \(N, P, C\), got \(8, 3\)"),
    (dict(alpha=1.5), ValueError, r"alpha must lie in \[0, 1\], got 1.5"),
    (dict(beta="half"), TypeError, "beta must be a number"),
    (dict(beta=math.nan), ValueError, r"beta must lie in \[0, 1\], got nan"),
    (dict(mode="share"), ValueError, "mode must be one of threshold, calibrated, got 'share'"),
    (dict(norm="sum"), ValueError, "norm must be one of minmax, rank, positive, got 'sum'"),
    (dict(relevance=RELEVANCE.int()), TypeError, "relevance must be float32, .* got torch.int32"),
    (dict(relevance=RELEVANCE[0]), ValueError, r"relevance must have shape \(2, 8\) or .* got \(8,\)"),
    (dict(relevance=RELEVANCE[:1]), ValueError, r"relevance must have shape \(2, 8\) or .* got \(1, 8\)"),
    (dict(relevance=POINTS[..., :0]), ValueError, r"relevance must have shape .* got \(2, 8, 0\)"),
    (dict(relevance=RELEVANCE.to("meta")), ValueError, "relevance must be on the device of points, cpu, got meta"),
    (dict(relevance=POINTS[..., 0], inplace=True), ValueError, "relevance must not share memory with points"),
    (dict(valid=RELEVANCE), ValueError, r"valid must be bool of shape \(2, 8\) on cpu, got torch.float32"),
    (dict(valid=VALID[0]), ValueError, r"valid must be bool of shape .* of shape \(8,\)"),
    (dict(valid=[True]), TypeError, "valid must be a torch.Tensor, got list"),
    (dict(sample_ids=torch.tensor([1])), ValueError, r"sample_ids must be int64 of shape \(2,\)"),
    (dict(seed=2**64), ValueError, "seed must fit in 64 bits"),
    (dict(value="mean"), ValueError, 'value must be a number, .*, or "origin", "first" or "resample", got \'mean\''),
    (dict(value=None), TypeError, "value must be a number"),
    (dict(value=(1.0, 2.0)), ValueError, "value must have one number for each of the 3 channels, got 2"),
    (dict(value=torch.ones(2)), ValueError, r"value must have shape \(3,\)"),
    (dict(value=math.inf), ValueError, "value must be finite in torch.float32, got inf"),
    (dict(points=POINTS.half(), value=1e5), ValueError, "value must be finite in torch.float16"),
    (dict(points=POINTS.clone().requires_grad_(), inplace=True), ValueError, "points must not require grad"),
    (dict(points=POINTS[:1].expand(2, 8, 3), inplace=True), ValueError, "points must not overlap in memory"),
    (dict(backend="triton"), RuntimeError, "'triton' cannot serve this call: it is not implemented"),
    (dict(backend="fast"), ValueError, "backend must be one of"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_name_the_argument(change, error, message):
    before = POINTS.clone()
    with pytest.raises(error, match=message):
        occlude_points(**{"points": POINTS, "relevance": RELEVANCE, "seed": 0, "inplace": True, "beta": 1.0, **change})
    assert torch.equal(POINTS, before)


def test_the_operator_itself_stays_inside_its_tensors():
    points = POINTS.clone()
    arguments = operator_arguments(points, POINTS)
    call = torch.ops.attrdrop.occlude_points_
    for place, wrong, message in (
        (0, POINTS.long(), "points must be float32, bfloat16 or float16"),
        (1, RELEVANCE, "relevance must have 3 dimensions, got 2"),
        (1, POINTS[:, :7], "relevance must have shape"),
        (1, POINTS[..., :0], "relevance must have shape .* c at least 1"),
        (2, VALID[:1], "valid must be bool, one for each point"),
        (6, 3, "norm and replacement must be 0, 1 or 2"),
        (7, -1, "norm and replacement must be 0, 1 or 2"),
        (9, torch.ones(2), "one number for each channel"),
        (11, torch.arange(3), "sample_ids must be int64, one for each sample"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*arguments[:place], wrong, *arguments[place + 1 :])
    assert torch.equal(points, POINTS)
