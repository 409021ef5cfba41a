"""Transforms of torch.func and forward-mode gradients over the ops that have gradients."""

import pytest
import torch
from torch.autograd import forward_ad

from attrdrop import group_points, keep_mask, masked_attention, relevance_gate, use_backend

Q, K, V = (torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(seed)).double() for seed in range(3))
KEEP = keep_mask(Q, K, p=0.5, q=0.5, seed=1)
INDEX = torch.tensor([[[0, 2], [2, 2]], [[1, 0], [4, 1]]])
POINTS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(4)).double()
CALLS = {
    "attention": (lambda x: masked_attention(x, K, V, KEEP), Q),
    "dropout": (lambda x: masked_attention(x, K, V, KEEP, dropout_p=0.3, seed=5), Q),
    "keys": (lambda x: masked_attention(Q, x, x, KEEP), K),
    "self": (lambda x: masked_attention(x, x, x, KEEP), Q),
    "points": (lambda x: group_points(x, INDEX, POINTS[:, :2]), POINTS),
}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


def test_first_derivatives(call):
    f, x = call
    loss = lambda x: f(x).sin().sum()  # noqa: E731
    leaf = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.func.vjp(loss, x)[1](torch.ones((), dtype=x.dtype))[0], expected)
    direction = torch.cos(x)
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (direction,))[1], (expected * direction).sum())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(tangent, (expected * direction).sum())


def test_single_precision():
    """Outside of transforms the compiled backends serve it."""
    loss = lambda q: masked_attention(q, K.float(), V.float(), KEEP).sin().sum()  # noqa: E731
    leaf = Q.float().requires_grad_(True)
    torch.testing.assert_close(torch.func.grad(loss)(Q.float()), torch.autograd.grad(loss(leaf), leaf)[0])


def test_second_derivatives(call):
    """Also where queries, keys and values are one tensor."""
    f, x = call
    loss = lambda x: f(x).sin().sum()  # noqa: E731
    expected = torch.autograd.functional.hessian(loss, x)
    torch.testing.assert_close(torch.func.hessian(loss)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(loss))(x), expected)


def test_batched(call):
    f, x = call
    several = torch.stack([x, 2 * x, -x])
    torch.testing.assert_close(torch.vmap(f)(several), torch.stack([f(each) for each in several]))


def test_a_backend_that_is_named_serves_or_says_why():
    f = lambda q: masked_attention(q, q, q, KEEP, backend="cpp").sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"backend 'cpp' cannot serve this call: only the reference .* torch.func"):
        torch.func.grad(f)(Q.float())
    with pytest.raises(RuntimeError, match=r"group_points: backend 'cpp' cannot serve this call: .* torch.func"):
        torch.func.grad(lambda x: group_points(x, INDEX, backend="cpp").sum())(POINTS.float())
    with use_backend("reference"):
        assert torch.func.grad(lambda q: masked_attention(q, q, q, KEEP).sum())(Q).isfinite().all()
    with pytest.raises(RuntimeError, match=r"relevance_gate has a custom backward, which transforms of torch.func"):
        torch.func.grad(lambda z: relevance_gate(z, eps=0.1).sum())(Q)
