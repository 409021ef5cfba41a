"""group_points: every backend against the definition, restated slowly, and its gradients."""

import pytest
import torch
from clouds import COMPILED, TYPES, called, chooser, random_cloud
from torch.overrides import TorchFunctionMode

from attrdrop import ball_query, farthest_point_sample, group_points


def by_definition(points, index, centres=None):
    """Element by element; a difference is rounded once to the type."""
    out = torch.zeros(*index.shape, points.shape[2], dtype=points.dtype)
    for n, s, j in torch.cartesian_prod(*map(torch.arange, index.shape)).tolist():
        out[n, s, j] = points[n, index[n, s, j]]
        if centres is not None:
            out[n, s, j, :3] = points[n, index[n, s, j], :3] - centres[n, s, :3]
    return out


def sums_by_definition(grad, index, size):
    """Row after row, in float32."""
    sums = torch.zeros(grad.shape[0], size, grad.shape[3], dtype=torch.promote_types(grad.dtype, torch.float32))
    for n, s, j in torch.cartesian_prod(*map(torch.arange, index.shape)).tolist():
        sums[n, index[n, s, j]] += grad[n, s, j].to(sums.dtype)
    return sums.to(grad.dtype)


def gradient(points, index, centres, grad, *, backend):
    leaf = points.detach().requires_grad_()
    return torch.autograd.grad(group_points(leaf, index, centres, backend=backend), leaf, grad)[0]


def random_case(seed):
    """Points, index, centres and a gradient of every kind."""
    draw = chooser(seed)
    n, size, groups, k = draw(1, 2, 3), draw(1, 7, 63, 111), draw(1, 5, 17), draw(1, 7, 32)
    dtype = draw(*TYPES)
    is_centred = draw(True, True, False)
    channels = draw(3, 3, 4, 7, 8, 40) if is_centred else draw(1, 2, 3, 16, 64)
    points = random_cloud(draw, n, size, channels, dtype)
    index = torch.randint(size, (n, groups, 2 * k))
    index = draw(index[..., ::2], index[..., :k], index[..., :k].contiguous(), index[:1, :, :k].expand(n, -1, -1))
    centres = random_cloud(draw, n, groups, draw(3, 5), dtype) if is_centred else None
    grad = torch.randn(n, channels, groups, k).to(dtype)
    grad = draw(grad.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1).contiguous(), grad[:1, :, :1].permute(0, 2, 3, 1))
    return points, index, centres, grad.expand(n, groups, k, channels)


@pytest.mark.parametrize("backend", ["reference", *COMPILED])
def test_backends_are_the_definition(backend):
    call = called if backend != "reference" else lambda name, call, *a, scheduler_seed, **k: call(*a, **k, backend=name)
    for seed in range(25):
        points, index, centres, grad = random_case(seed)
        ours = call(backend, group_points, points, index, centres, scheduler_seed=seed % 9)
        assert torch.equal(ours, by_definition(points, index, centres)), seed
        assert ours.is_contiguous()
        sums = call(backend, gradient, points, index, centres, grad, scheduler_seed=seed % 9)
        assert torch.equal(sums, sums_by_definition(grad, index, points.shape[1])), seed


@pytest.mark.parametrize("backend", COMPILED)
def test_thousands_of_rows(backend):
    points, index = torch.randn(2, 1000, 5), torch.randint(1000, (2, 63, 32))
    index[:, :9] = 0  # many in one place
    grad = torch.randn(2, 63, 32, 5)
    expected = gradient(points, index, points[:, :63], grad, backend="reference")
    assert torch.equal(called(backend, gradient, points, index, points[:, :63], grad), expected)
    ours = called(backend, group_points, points, index, points[:, :63])
    assert torch.equal(ours, group_points(points, index, points[:, :63], backend="reference"))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_sums_do_not_depend_on_threads(threads):
    points, index, grad = torch.randn(3, 50, 70), torch.randint(50, (3, 20, 8)), torch.randn(3, 20, 8, 70)
    expected = sums_by_definition(grad, index, 50)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(gradient(points, index, None, grad, backend="cpp"), expected)
        assert torch.equal(gradient(points[:1], index[:1], None, grad[:1], backend="cpp"), expected[:1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", TYPES)
def test_nan_and_infinity_are_data(backend, dtype):
    points = torch.tensor([[float("nan"), float("inf"), 1.0, 65504.0], [1.0, -float("inf"), 2.0, 3.0]]).to(dtype)[None]
    index, centres = torch.tensor([[[0, 1, 1]]]), torch.tensor([[[1.0, float("inf"), -65504.0]]]).to(dtype)
    expected = by_definition(points, index, centres)
    found = called(backend, group_points, points, index, centres)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("is_centred", [False, True])
def test_gradients_in_float64(is_centred):
    points = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    index, centres = torch.randint(5, (2, 3, 4)), torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    call = lambda x: group_points(x, index, centres if is_centred else None)  # noqa: E731
    assert torch.autograd.gradcheck(call, points)
    assert torch.autograd.gradgradcheck(call, points)
    call(points).sum().backward()
    assert centres.grad is None


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradients_of_gradients(backend):
    points = torch.randn(2, 5, 4, requires_grad=True)
    index = torch.randint(5, (2, 3, 4))
    grouped = group_points(points, index, backend=backend)
    (first,) = torch.autograd.grad(grouped.square().sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), points)
    counts = sums_by_definition(torch.ones(2, 3, 4, 4), index, 5)
    assert torch.equal(second, 2 * counts)


def test_a_pipeline_as_in_pointnet():
    points = torch.rand(2, 100, 6)
    chosen = farthest_point_sample(points, 10)
    centres = group_points(points, chosen[..., None])[:, :, 0, :3]
    index = ball_query(points, centres, radius=0.3, k=8)
    grouped = group_points(points, index, centres)
    assert grouped.shape == (2, 10, 8, 6)
    assert (grouped[..., :3].norm(dim=-1) <= 0.3 + 1e-6).all()


class Watch(TorchFunctionMode):
    """Notes the names of the functions that it sees."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_torch_function_mode_sees_the_call():
    points, index = torch.randn(2, 9, 3), torch.randint(9, (2, 4, 2))
    for centres in (None, points[:, :4]):
        with Watch() as watch:
            seen = group_points(points, index, centres)
        assert watch.names.count("group_points") == 1
        assert torch.equal(seen, group_points(points, index, centres))


def test_opcheck():
    points, index = torch.randn(2, 9, 4), torch.randint(9, (2, 5, 3))
    for centres in (None, torch.randn(2, 5, 3)):
        torch.library.opcheck(torch.ops.attrdrop.group_points, (points, index, centres))
    torch.library.opcheck(torch.ops.attrdrop.scatter_points, (torch.randn(2, 5, 3, 4), index, 9, None, None))


@pytest.mark.parametrize(("backend", "is_dynamic"), [("cpp", False), ("cpp", True), ("reference", False)])
def test_compiles_without_graph_breaks(backend, is_dynamic):
    def step(points, index, centres):
        return (group_points(2 * points, index, centres, backend=backend) ** 2).sum((1, 2))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=is_dynamic)
    for size in (8, 11):
        index, centres = torch.randint(size, (2, 5, 3)), torch.randn(2, 5, 3)
        plain = torch.randn(2, size, 4, requires_grad=True)
        traced = plain.detach().clone().requires_grad_()
        expected, found = step(plain, index, centres), compiled(traced, index, centres)
        assert torch.equal(found, expected)
        expected.sum().backward()
        found.sum().backward()
        assert torch.equal(traced.grad, plain.grad)


POINTS, INDEX = torch.randn(2, 9, 4), torch.randint(9, (2, 5, 3))
ERRORS = [
    (dict(points=None), TypeError, "points must be a torch.Tensor, got NoneType"),
    (dict(points=POINTS.int()), TypeError, "points must be float32, .* got torch.int32"),
    (dict(points=POINTS[0]), ValueError, r"points must have shape \(N, P, C\), got \(9, 4\)"),
    (dict(points=POINTS[:, :0]), ValueError, "points must have a point in each cloud"),
    (dict(index=INDEX.int()), ValueError, r"index must be int64 of shape \(2, S, k\), got torch.int32"),
    (dict(index=INDEX[:1]), ValueError, r"index must be int64 of shape \(2, S, k\)"),
    (dict(index=INDEX[..., 0]), ValueError, "index must be int64"),
    (dict(index=INDEX.to("meta")), ValueError, "index must be on the device of points, cpu, got meta"),
    (dict(centres=POINTS[:, :4]), ValueError, "centres must be one for each of the 5 groups, got 4"),
    (dict(centres=POINTS[:, :5].half()), ValueError, "centres must have the dtype and device of points"),
    (dict(centres=POINTS[:, :5, :2]), ValueError, "centres must have shape"),
    (dict(points=POINTS[..., :2], centres=POINTS[:, :5]), ValueError, "with C at least 3"),
    (dict(backend="triton"), RuntimeError, "'triton' cannot serve this call"),
    (dict(points=POINTS.double(), backend="cpp"), RuntimeError, "float64 is served by the reference only"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        group_points(**{"points": POINTS, "index": INDEX, **change})


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("outside", [-1, 9, 2**40, -(2**63)])
def test_an_index_out_of_range_is_an_error_on_the_cpu(backend, outside):
    index = INDEX.clone()
    index[1, 4, 2] = outside
    with pytest.raises(ValueError, match=rf"index must lie in \[0, 9\), got {outside}$"):
        group_points(POINTS, index, backend=backend)


@pytest.mark.parametrize("backend", ["emulated", COMPILED[2]])
def test_an_index_out_of_range_is_moved_into_range_on_cuda(backend):
    index, grad = INDEX.clone(), torch.randn(2, 5, 3, 4)
    index[1, 4, 2], index[0, 0, 0] = 2**40, -7
    inside = index.clamp(0, 8)
    assert torch.equal(called(backend, group_points, POINTS, index), by_definition(POINTS, inside))
    assert torch.equal(called(backend, gradient, POINTS, index, None, grad), sums_by_definition(grad, inside, 9))


def test_the_operators_themselves_stay_inside_their_tensors():
    group, scatter = torch.ops.attrdrop.group_points, torch.ops.attrdrop.scatter_points
    with pytest.raises(ValueError, match=r"index must lie in \[0, 9\), got 9"):
        group(POINTS, INDEX * 0 + 9, None)
    with pytest.raises(RuntimeError, match="centres must be one for each row of index"):
        group(POINTS, INDEX, POINTS)
    with pytest.raises(ValueError, match=r"index must lie in \[0, 2\), got"):
        scatter(torch.randn(2, 5, 3, 4), INDEX.clamp(min=2), 2, None, None)
    with pytest.raises(RuntimeError, match="grad must have a row for each index"):
        scatter(torch.randn(2, 5, 2, 4), INDEX, 9, None, None)


@pytest.mark.parametrize("backend", ["reference", *COMPILED])
@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5, 3), (2, 5, 0), (2, 5, 3)])
def test_nothing_to_group(backend, shape):
    call = called if backend != "reference" else lambda name, call, *a, **k: call(*a, **k, backend=name)
    for groups, k in ((0, 4), (3, 0)) if shape == (2, 5, 3) else ((3, 4),):
        points, index = torch.ones(shape), torch.zeros(shape[0], groups, k, dtype=torch.int64)
        grad = torch.ones(*index.shape, shape[2])
        assert call(backend, group_points, points, index).shape == grad.shape
        sums = call(backend, gradient, points, index, None, grad)
        assert sums.shape == shape
        assert not sums.any()


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    points = torch.rand(2, 500, 6, device="cuda", requires_grad=True)
    valid = torch.rand(2, 500, device="cuda") < 0.9
    centres = points.detach()[:, :20]
    torch.cuda.set_sync_debug_mode("error")
    try:
        farthest_point_sample(points, 20, valid=valid, start=valid.long().argmax(1))
        index = ball_query(points, centres, radius=0.3, k=8, valid=valid)
        group_points(points, index, centres).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
