"""Tensors that hold no dense values: nested and sparse ones are refused by name, meta ones get shapes."""

import pytest
import torch
from torch import nn

from attrdrop import (
    KeepMask,
    RelDrop,
    RelDropPoints,
    attention_attribution,
    ball_query,
    draw_images,
    farthest_point_sample,
    fill_blocks,
    group_points,
    keep_mask,
    keep_scores,
    lrp,
    masked_attention,
    occlude_blocks,
    occlude_points,
    pack_mask,
    random_keep_mask,
    relevance_gate,
    transpose_mask,
    unpack_mask,
)

Q, K, V = (torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
MASK, BITS = torch.ones(2, 2, 9, 9, dtype=torch.bool), torch.full((2, 2, 9, 1), 0b101, dtype=torch.int32)
IMAGES, POINTS = torch.randn(2, 3, 8, 8), torch.randn(2, 20, 3)
GROUPS, BOXES = torch.zeros(2, 4, 5, dtype=torch.int64), torch.tensor([[1, 1, 3, 3]] * 2, dtype=torch.int32)
CALLS = {
    "keep_mask": (lambda q, k: keep_mask(q, k, p=0.3, q=0.3, seed=1), Q, K),
    "keep_scores": (lambda scores: keep_scores(scores, p=0.3, q=0.3, seed=1), Q[0]),
    "random_keep_mask": (lambda valid: random_keep_mask(2, 2, 9, 9, p=0.3, q=0.3, seed=1, valid=valid), BITS),
    "masked_attention": (lambda q, k, v, bits: masked_attention(q, k, v, KeepMask.from_rows(bits, 9)), Q, K, V, BITS),
    "plain attention": (lambda q, k, v: masked_attention(q, k, v, None), Q, K, V),
    "attention_attribution": (lambda q, v: attention_attribution(q, v, topk=3), Q, V),
    "pack_mask": (pack_mask, MASK),
    "unpack_mask": (lambda bits: unpack_mask(bits, 9), BITS),
    "transpose_mask": (lambda bits: transpose_mask(bits, 9), BITS),
    "relevance_gate": (lambda z: relevance_gate(z, eps=0.1), IMAGES),
    "occlude_blocks": (lambda images, relevance: occlude_blocks(images, relevance, p=1.0, seed=0), IMAGES, IMAGES),
    "fill_blocks": (fill_blocks, IMAGES, BOXES),
    "occlude_points": (lambda points, relevance: occlude_points(points, relevance, seed=0), POINTS, POINTS),
    "farthest_point_sample": (lambda points: farthest_point_sample(points, 4), POINTS),
    "ball_query": (lambda points, centres: ball_query(points, centres, radius=0.5, k=3), POINTS, POINTS[:, :4]),
    "group_points": (group_points, POINTS, GROUPS),
}
FURTHER = {
    "relevance": (lambda x: lrp.relevance(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), x, "pred"), IMAGES),
    "RelDrop": (lambda x: RelDrop(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))(x, torch.zeros(2).long()), IMAGES),
    "RelDropPoints": (lambda x: RelDropPoints(nn.Sequential(nn.Flatten(), nn.Linear(60, 5)))(x), POINTS),
}
KINDS = {
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "a nested one; pad it"),
    "jagged": (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "a nested one"),
    "sparse": (torch.Tensor.to_sparse, r"one of layout torch.sparse_coo; to_dense\(\)"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*CALLS, *FURTHER])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_and_sparse_tensors_are_refused_by_name(name, kind):
    call, *tensors = {**CALLS, **FURTHER}[name]
    make, message = KINDS[kind]
    for index, tensor in enumerate(tensors):
        given = [*tensors]
        given[index] = make(tensor)
        with pytest.raises(TypeError, match=rf"^[\w.]+ must be a dense tensor, got {message}"):
            call(*given)


@pytest.mark.parametrize("name", CALLS)
def test_meta_tensors_get_the_shapes_of_real_ones(name):
    call, *tensors = CALLS[name]
    real, meta = call(*tensors), call(*(tensor.to("meta") for tensor in tensors))
    if isinstance(real, KeepMask):
        real, meta = vars(real).values(), vars(meta).values()
    elif isinstance(real, torch.Tensor):
        real, meta = [real], [meta]
    for expected, found in zip(real, meta, strict=True):
        assert found.device.type == "meta"
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


def test_gradients_of_meta_tensors():
    q = Q.to("meta").requires_grad_(True)
    masked_attention(q, q, q, KeepMask.from_rows(BITS.to("meta"), 9)).sum().backward()
    assert q.grad.shape == q.shape


def test_sample_ids_need_values():
    with pytest.raises(ValueError, match="sample_ids must hold values for tensors on cpu, got a meta tensor"):
        draw_images(2, 0.5, seed=0, sample_ids=torch.arange(2, device="meta"))
