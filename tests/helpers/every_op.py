"""Every public operator once, with all its gradients, on tensors of any layout."""

import importlib.util

import pytest
import torch

import attrdrop
from attrdrop import KeepMask, pack_mask
from attrdrop._core import backends
from attrdrop.ops.ranked_attention import KeepRule, ranked_attention

CPP = pytest.param("cpp", marks=pytest.mark.skipif(bool(backends.COMPILED_MISSING), reason="needs the C++ kernels"))
TRITON = pytest.param("triton", marks=pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton"))


def transposed(x):
    order = range(x.dim() - 1, -1, -1)
    return x.permute(*order).contiguous().permute(*order)


def sliced(x):
    larger = x.new_zeros([2 * size for size in x.shape])
    larger[tuple(slice(None, None, 2) for _ in x.shape)] = x
    return larger[tuple(slice(None, None, 2) for _ in x.shape)]


def swapped(x):
    """As heads are that come out of a projection."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() > 2 else x


LAYOUTS = {"contiguous": torch.Tensor.contiguous, "transposed": transposed, "sliced": sliced, "swapped": swapped}


def heads(layout, *shape):
    return layout(torch.randn(shape)).requires_grad_()


def attention(layout, backend, bias=None):
    q, k, v = heads(layout, 2, 4, 16, 8), heads(layout, 2, 2, 33, 8), heads(layout, 2, 2, 33, 8)
    keep = KeepMask.from_rows(pack_mask(torch.rand(2, 4, 16, 33) < 0.7), 33)
    bias = None if bias is None else heads(layout, *bias)
    out = attrdrop.masked_attention(q, k, v, keep, bias=bias, dropout_p=0.1, seed=1, backend=backend)
    out.backward(layout(torch.randn(out.shape)))


class Ranking:
    """For all queries; what it is told is nobody's."""

    def rule(self):
        return KeepRule(0.3, 0.3, 1)

    def is_last(self):
        return False

    def receive(self, grad_out, keep):
        pass


def ranked(layout, backend):
    q, k, v = heads(layout, 2, 4, 16, 8), heads(layout, 2, 2, 33, 8), heads(layout, 2, 2, 33, 8)
    keep = KeepMask.from_rows(pack_mask(torch.rand(2, 4, 16, 33) < 0.7), 33)
    out = ranked_attention(q, k, v, keep, Ranking(), torch.empty((), requires_grad=True), bias=heads(layout, 4, 1, 33))
    out.backward(layout(torch.randn(out.shape)))


def masks(layout, backend):
    bits = attrdrop.pack_mask(layout(torch.rand(3, 5, 40) < 0.5), backend=backend)
    attrdrop.unpack_mask(layout(bits), 40, backend=backend)
    attrdrop.transpose_mask(layout(bits), 40, backend=backend)
    x, y, bias = (layout(torch.randn(shape)) for shape in ((2, 4, 7, 8), (2, 2, 40, 8), (1, 4, 7, 40)))
    valid = layout(pack_mask(torch.rand(2, 4, 7, 40) < 0.9))
    attrdrop.keep_mask(x, y, p=0.3, q=0.3, seed=1, valid=valid, bias=bias, backend=backend)
    attrdrop.keep_scores(x.flatten(2), p=0.3, q=0.3, seed=1, valid=layout(valid[:, 0, :4, :2]), backend=backend)
    attrdrop.random_keep_mask(2, 4, 7, 40, p=0.3, q=0.3, seed=1, valid=valid, backend=backend)
    attrdrop.attention_attribution(x, y, backend=backend)
    attrdrop.attention_attribution(x, y, topk=5, backend=backend)
    attrdrop.attention_attribution(x, y, rows=torch.tensor([1, 3]), backend=backend)
    weight = attrdrop.AttentionWeight(x, y, layout(torch.randn(2, 4, 7)), 0.3, bias)
    attrdrop.attention_attribution(quantity="probability", weight=weight, valid=valid, backend=backend)


def gates(layout, backend):
    for shape in ((3, 6, 5, 4), (3, 6)):
        z, s = heads(layout, *shape), heads(layout, *shape)
        out = attrdrop.relevance_gate_relu(z, 1e-2, scale=torch.ones(6), shift=torch.zeros(6), backend=backend)
        out.backward(layout(torch.randn(shape)))
        attrdrop.relevance_gate(z, 1e-2, surrogate=s, backend=backend).backward(layout(torch.randn(shape)))


def images(layout, backend):
    pixels, relevance = layout(torch.randn(4, 3, 20, 18)), layout(torch.randn(4, 20, 18))
    samples = layout(torch.arange(4))
    attrdrop.ops.draw_images(4, 0.5, seed=1, sample_ids=samples, backend=backend)
    _, boxes = attrdrop.occlude_blocks(pixels, relevance, p=0.5, seed=1, sample_ids=samples, backend=backend)
    attrdrop.fill_blocks(pixels, layout(boxes), backend=backend)


def clouds(layout, backend):
    points, relevance = heads(layout, 2, 50, 5), layout(torch.randn(2, 50))
    attrdrop.occlude_points(points.detach(), relevance, seed=1, backend=backend)
    chosen = attrdrop.farthest_point_sample(points.detach(), 9, backend=backend)
    centres = layout(points.detach().take_along_dim(chosen[..., None], 1)[..., :3])
    index = attrdrop.ball_query(points.detach(), centres, radius=0.5, k=4, backend=backend)
    out = attrdrop.group_points(points, layout(index), centres, backend=backend)
    out.backward(layout(torch.randn(out.shape)))


def biased(shape):
    return lambda layout, backend: attention(layout, backend, shape)


CALLS = {
    "attention": (attention, [CPP, TRITON]),
    "full bias": (biased((2, 4, 16, 33)), [CPP, TRITON]),
    "shared bias": (biased((1, 4, 16, 33)), [CPP, TRITON]),
    "key bias": (biased((2, 1, 1, 33)), [CPP, TRITON]),
    "ranked": (ranked, [CPP]),
    "masks": (masks, [CPP, TRITON]),
    "gates": (gates, [CPP, TRITON]),
    "images": (images, [CPP]),
    "clouds": (clouds, [CPP]),
}


def cases():
    for name, (call, on) in CALLS.items():
        for backend in on:
            values, marks = (backend.values, backend.marks)
            yield pytest.param(call, *values, marks=marks, id=f"{name}-{values[0]}")
