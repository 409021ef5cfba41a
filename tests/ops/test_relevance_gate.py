"""relevance_gate and relevance_gate_relu: every backend against the definition, and the definition against the rule."""

import importlib.util

import pytest
import torch
from torch.nn import functional as F

from attrdrop import relevance_gate, relevance_gate_relu
from attrdrop.reference import relevance_gate as reference

HAS_GPU = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None
GPU = [pytest.mark.gpu] if HAS_GPU else []
KERNELS = ["cpp", *([pytest.param("triton", marks=GPU)] if HAS_TRITON else [])]
BACKENDS = ["reference", *KERNELS]
NAMESPACES = ["attrdrop", *([pytest.param("attrdrop_triton", marks=GPU)] if HAS_TRITON else [])]
HALVES = [torch.bfloat16, torch.float16]
EPS = 1e-2

SHAPES = [
    (0, 3), (2, 0, 4), (1,), (7,), (), (7, 1), (63, 7), (3, 111), (2, 1000), (5, 3, 63), (2, 7, 111), (1, 2, 1100),
    (2, 3, 8, 16), (3, 5, 7, 7), (1, 63, 1, 1), (2, 3, 2, 3, 4),
]  # fmt: skip
LAYOUTS = {
    "contiguous": lambda z: z,
    "channels last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
    "permuted": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
    "sliced": lambda z: torch.cat([z, z, z], -1)[..., : 2 * z.shape[-1] : 2],
    "expanded": lambda z: z[:1].expand_as(z),
    "expanded channels": lambda z: z[:, :1].expand_as(z),
}


def device_of(backend):
    return "cuda" if HAS_GPU and "triton" in backend else "cpu"


def sprinkled(shape, dtype=torch.float32):
    """Normal values, a tenth of them 0."""
    return (torch.randn(shape) * (torch.rand(shape) > 0.1)).to(dtype)


def affine(z, scale=True, shift=True):
    """scale and shift for z, as asked for, if it has channels."""
    wanted = [name for name, is_wanted in (("scale", scale), ("shift", shift)) if is_wanted and z.dim() > 1]
    return {name: torch.randn(z.shape[1]) for name in wanted}


def run(backend, z, grad, *, relu=False, surrogate=None, eps=EPS, **affine):
    """y and the gradients of z and of the surrogate, on the CPU."""
    device = device_of(backend)
    z, grad, surrogate, *values = (
        None if x is None else x.detach().to(device) for x in (z, grad, surrogate, *affine.values())
    )
    leaves = [x.requires_grad_() for x in (z, surrogate) if x is not None]
    gate = relevance_gate_relu if relu else relevance_gate
    y = gate(z, eps, surrogate=surrogate, backend=backend, **dict(zip(affine, values, strict=True)))
    found = torch.autograd.grad(y, leaves, grad, allow_unused=True)
    return [None if x is None else x.cpu() for x in (y.detach(), *found)]


def check(backend, z, *, relu=False, surrogate=None, **affine):
    """Against the reference: the same bits, or on a GPU, which fuses, within its own distance to float64."""
    grad = torch.randn(z.shape).to(z.dtype)
    given = dict(relu=relu, **affine)
    expected = run("reference", z, grad, surrogate=surrogate, **given)
    found = run(backend, z, grad, surrogate=surrogate, **given)
    if device_of(backend) == "cpu":
        exact = expected
    else:
        wide = dict(given, surrogate=None if surrogate is None else surrogate.double())
        exact = run("reference", z.double(), grad.double(), **wide)
    for ours, theirs, truth in zip(found, expected, exact, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if truth is theirs:
            assert torch.equal(ours, theirs)
        else:
            error, allowed = (x.double().sub(truth).norm() for x in (ours, theirs))
            assert error <= 2 * allowed + 1e-6 * truth.norm()


def slow_forward(z, scale, shift, relu):
    y = torch.empty_like(z)
    for n, c in torch.cartesian_prod(torch.arange(z.shape[0]), torch.arange(z.shape[1])):
        value = scale[c] * z[n, c] + shift[c]
        y[n, c] = max(value, torch.zeros((), dtype=z.dtype)) if relu else value
    return y


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("has_surrogate", [False, True])
def test_reference_is_the_definition(relu, has_surrogate):
    z, grad, scale, shift = sprinkled((4, 6)).double(), torch.randn(4, 6).double(), *torch.randn(2, 6).double()
    surrogate = torch.randn(4, 6).double() if has_surrogate else None
    found = run("reference", z, grad, relu=relu, surrogate=surrogate, scale=scale, shift=shift)
    y = slow_forward(z, scale, shift, relu)
    torch.testing.assert_close(found[0], y, rtol=1e-14, atol=0)
    expected = torch.zeros_like(y)
    for n, c in torch.cartesian_prod(torch.arange(4), torch.arange(6)):
        s = surrogate[n, c] if has_surrogate else y[n, c]
        if y[n, c] != 0:
            sign = 1 if s >= 0 else -1
            expected[n, c] = grad[n, c] * y[n, c] / (s + EPS * sign) * (1 if has_surrogate else scale[c])
    torch.testing.assert_close(found[2] if has_surrogate else found[1], expected, rtol=1e-14, atol=0)
    assert not has_surrogate or found[1] is None


def test_it_is_the_epsilon_rule():
    """R_j = sum_k a_j w_jk R_k / (z_k + eps sign z_k) is a_j times the gradient, where R_k = z_k g_k."""
    a, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    a, weight, bias = (x.double().requires_grad_() for x in (a, weight, bias))
    z = F.linear(a, weight, bias)
    g = torch.randn(3, 5).double()
    (gradient,) = torch.autograd.grad(relevance_gate(z, EPS), a, g)
    relevance = z * g
    stabilised = z + EPS * torch.where(z >= 0, 1.0, -1.0)
    expected = torch.einsum("nj,kj,nk->nj", a, weight, relevance / stabilised)
    torch.testing.assert_close(a * gradient, expected)


def test_it_is_the_zplus_rule():
    """With s = W⁺ a the gradient goes through W⁺, and relevance divides by s; outputs without relevance pass none."""
    a, weight = torch.rand(3, 8).double().requires_grad_(), torch.randn(5, 8).double()
    z, surrogate = F.linear(a, weight), F.linear(a, weight.clamp_min(0))
    y = relevance_gate_relu(z, 0.0, surrogate=surrogate)
    g = torch.rand(3, 5).double()
    (gradient,) = torch.autograd.grad(y, a, g)
    positive = a[:, :, None] * weight.clamp_min(0).mT
    expected = (positive / positive.sum(1, keepdim=True) * (y * g)[:, None]).sum(-1)
    torch.testing.assert_close(a * gradient, expected)
    torch.testing.assert_close((a * gradient).sum(1), (y * g).sum(1))  # nothing is lost


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", KERNELS)
def test_sizes(backend, shape):
    z = sprinkled(shape)
    check(backend, z)
    check(backend, z, relu=True, **affine(z))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 63), (4, 5, 63), (2, 3, 8, 16), (2, 7, 40, 40), (2, 3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("backend", KERNELS)
def test_layouts(backend, shape, layout):
    z = LAYOUTS[layout](sprinkled(shape))
    check(backend, z, relu=True, surrogate=LAYOUTS[layout](torch.rand(shape) - 0.5), **affine(z))
    y = relevance_gate_relu(z.to(device_of(backend)), EPS, backend=backend)
    assert y.stride() == torch.empty_like(z).stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("backend", KERNELS)
def test_parts_of_the_affine_map(backend, layout, scale, shift, relu):
    z = LAYOUTS[layout](sprinkled((2, 7, 40)))
    check(backend, z, relu=relu, **affine(z, scale, shift))
    check(backend, z, relu=relu, surrogate=torch.randn(2, 7, 40), **affine(z, scale, shift))


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("backend", KERNELS)
def test_dtypes(backend, dtype):
    if dtype == torch.float64 and backend == "triton":
        with pytest.raises(RuntimeError, match="float64 is served by the reference and C"):
            relevance_gate(torch.ones(2, 2, dtype=dtype), EPS, backend=backend)
        return
    for layout in ("contiguous", "channels last"):
        z = LAYOUTS[layout](sprinkled((3, 7, 40), dtype))
        for values_dtype in (torch.float32, torch.float64, dtype):
            values = {name: x.to(values_dtype) for name, x in affine(z).items()}
            check(backend, z, relu=True, **values)
            check(backend, z, surrogate=torch.randn(z.shape).to(dtype), **values)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1 + 2**-11, 0.37, 3e-5, 1e-8, 300.0, 1e30])
def test_every_half_is_rounded_as_torch_does(dtype, scale):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, -1)
    scales = torch.full((2**16,), scale)
    found, expected = (relevance_gate(every, EPS, scale=scales, backend=x) for x in ("cpp", "reference"))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.view(torch.int16)[~found.isnan()], expected.view(torch.int16)[~found.isnan()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_infinities_and_nan(backend):
    inf, nan = torch.inf, torch.nan
    z = torch.tensor([0.0, -0.0, 1.0, -1.0, inf, -inf, nan])
    y, to_z = run(backend, z, torch.ones(7), eps=0.0)
    assert torch.equal(y.nan_to_num(), z.nan_to_num())
    assert to_z[:4].tolist() == [0, 0, 1, 1]
    assert to_z[4:].isnan().all()  # inf / inf
    y, to_z = run(backend, z, torch.ones(7), relu=True)
    assert y[:5].tolist() == [0, 0, 1, 0, inf]
    assert y[5] == 0
    assert y[6].isnan()
    assert to_z[[0, 1, 3, 5]].tolist() == [0] * 4
    assert to_z[[4, 6]].isnan().all()
    surrogate = torch.tensor([0.0, 1.0, 0.0, -0.0, 1.0, inf, nan])
    _, _, to_surrogate = run(backend, z, torch.ones(7), surrogate=surrogate, eps=0.0)
    assert to_surrogate[:5].tolist() == [0, 0, inf, -inf, inf]
    assert to_surrogate[5:].isnan().all()


@pytest.mark.parametrize("backend", KERNELS)
def test_a_gradient_in_another_layout(backend):
    z = sprinkled((2, 5, 6, 7))
    grad = torch.randn(2, 7, 6, 5).transpose(1, 3)
    for other in (grad, grad[:, :1, :, :1].expand_as(z)):
        assert torch.equal(run(backend, z, other)[1], run("reference", z, other)[1])


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_eps_0_gives_the_plain_gradient(backend):
    z = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    scale, shift = torch.randn(2, 4, dtype=torch.float64)
    for gate in (relevance_gate, relevance_gate_relu):
        assert torch.autograd.gradcheck(lambda z, gate=gate: gate(z, 0.0, scale=scale, shift=shift, backend=backend), z)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_and_shift_receive_no_gradient(backend):
    z, scale = (torch.ones(shape, device=device_of(backend)) for shape in ((2, 3), (3,)))
    scale.requires_grad_()
    assert not relevance_gate(z, EPS, scale=scale, shift=scale, backend=backend).requires_grad


def test_gradients_of_gradients_are_refused():
    z = torch.randn(2, 3, requires_grad=True)
    (to_z,) = torch.autograd.grad(relevance_gate_relu(z, EPS).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        to_z.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_autocast_layers(backend):
    device = device_of(backend)
    conv, norm = torch.nn.Conv2d(3, 4, 3).to(device), torch.nn.BatchNorm2d(4).to(device).eval()
    x = torch.randn(2, 3, 9, 9, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        z = conv(x)
        y = relevance_gate_relu(z, EPS, scale=norm.weight, shift=norm.bias, backend=backend)
        assert y.dtype == torch.bfloat16
        loss = F.linear(y.flatten(1), torch.ones(1, y[0].numel(), device=device)).sum()
    loss.backward()
    assert x.grad.dtype == torch.float32
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_opcheck(namespace):
    ops, device = getattr(torch.ops, namespace), device_of(namespace)
    for layout in ("contiguous", "channels last", "sliced"):
        z = LAYOUTS[layout](torch.randn(2, 3, 4, 5)).to(device)
        scale, shift = torch.randn(2, 3, device=device)
        torch.library.opcheck(ops.relevance_gate, (z, scale, shift, True))
        torch.library.opcheck(ops.relevance_gate, (z, None, shift, False))
        grad = torch.randn(2, 3, 4, 5, device=device)
        torch.library.opcheck(ops.relevance_gate_backward, (grad, z, None, scale, EPS))
        torch.library.opcheck(ops.relevance_gate_backward, (grad, z, z, None, EPS))


@pytest.mark.parametrize("gate", [relevance_gate, relevance_gate_relu])
def test_compile(gate):
    z, scale = torch.randn(2, 3, 5, requires_grad=True), torch.randn(3)
    eager = gate(z, EPS, scale=scale)
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")(z, EPS, scale=scale)
    assert torch.equal(compiled, eager)
    grad = torch.randn(2, 3, 5)
    (found,), (expected,) = (torch.autograd.grad(y, z, grad) for y in (compiled, eager))
    assert torch.equal(found, expected)


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
@pytest.mark.parametrize("shape", [(2, 3, 5, 60), (2, 300, 50), (700, 3)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_offsets_of_64_bits(shape, layout, monkeypatch):
    from attrdrop.triton_kernels import relevance_gate as kernels

    plain = kernels.layout
    monkeypatch.setattr(kernels, "layout", lambda *sizes: plain(*sizes) | dict(IS_HUGE=True))
    z = LAYOUTS[layout](sprinkled(shape))
    check("triton", z, relu=True, **affine(z))


Z = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(z=[1.0]), TypeError, "z must be a torch.Tensor, got list"),
        (dict(z=Z.int()), TypeError, "z must be float32, bfloat16, float16 or float64, got torch.int32"),
        (dict(eps="1"), TypeError, "eps must be a number, got str"),
        (dict(eps=True), TypeError, "eps must be a number, got bool"),
        (dict(eps=-1.0), ValueError, "eps must be 0 or more and finite, got -1.0"),
        (dict(eps=float("nan")), ValueError, "eps must be 0 or more and finite, got nan"),
        (dict(scale=torch.ones(4)), ValueError, r"scale needs shape \(3,\), the channels of z, got \(4,\)"),
        (dict(shift=torch.ones(1, 3)), ValueError, r"shift needs shape \(3,\)"),
        (dict(z=torch.ones(3), shift=torch.ones(3)), ValueError, "shift needs z to have a dimension of channels"),
        (dict(scale=torch.ones(3).int()), ValueError, "scale must be floating point on cpu, got torch.int32"),
        (dict(shift=torch.ones(3, device="meta")), ValueError, "shift must be floating point on cpu.*on meta"),
        (dict(surrogate=Z[:1]), ValueError, r"surrogate must match z, torch.float32 of shape \(2, 3, 4\)"),
        (dict(surrogate=Z.double()), ValueError, "surrogate must match z.*got torch.float64"),
        (dict(surrogate=1.0), TypeError, "surrogate must be a torch.Tensor, got float"),
        (dict(backend="cuda"), RuntimeError, "relevance_gate.*'cuda' cannot serve.*not implemented"),
    ],
)
@pytest.mark.parametrize("gate", [relevance_gate, relevance_gate_relu])
def test_errors_name_the_argument(gate, arguments, error, message):
    with pytest.raises(error, match=message):
        gate(**{"z": Z, "eps": EPS, **arguments})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ops: ops.relevance_gate(Z, torch.ones(4), None, False), r"scale must have shape \(3,\) and dtype"),
        (lambda ops: ops.relevance_gate(Z, None, torch.ones(3).double(), False), "shift must have shape"),
        (lambda ops: ops.relevance_gate(Z[0, 0], torch.ones(4), None, False), "need a dimension of channels"),
        (lambda ops: ops.relevance_gate(Z.int(), None, None, False), "z must be float32"),
        (lambda ops: ops.relevance_gate_backward(Z[0], Z, None, None, 0.1), "grad must have the shape and dtype of y"),
        (lambda ops: ops.relevance_gate_backward(Z, Z, Z.half(), None, 0.1), "surrogate must have the shape and dtype"),
    ],
)
def test_the_compiled_operator_checks_its_arguments(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.ops.attrdrop)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "permuted"])
@pytest.mark.parametrize("shape", [(8, 64, 56, 56), (64, 512, 7, 7), (37, 3, 61, 59)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_feature_maps_on_a_gpu(shape, layout, dtype):
    z = LAYOUTS[layout](sprinkled(shape, dtype))
    check("triton", z, relu=True, **affine(z))


def test_the_reference_keeps_float64():
    y = torch.tensor([1e-9], dtype=torch.float64)
    assert reference.backward(torch.ones_like(y), y, None, None, 1e-6).item() == 1e-9 / (1e-9 + 1e-6)
