"""Ops that draw, in a CUDA graph: sample ids that the graph counts on make each replay draw anew."""

import pytest
import torch
from captured import capturing, run_and_capture

from attrdrop import (
    KeepMask,
    fill_blocks,
    keep_mask,
    keep_scores,
    masked_attention,
    occlude_blocks,
    occlude_points,
    random_keep_mask,
)
from attrdrop._core.backends import COMPILED_MISSING, TRITON_INTERPRETED

SAMPLES = 2
FIRST = 2**33 + 5  # of a long training; 32 bits of it are looked at


def ranked(device, backend):
    x, y = torch.randint(-4, 5, (2, SAMPLES, 1, 9, 8), generator=torch.Generator().manual_seed(0)).float().to(device)
    return lambda ids: keep_mask(x, y, p=0.5, q=0.5, seed=3, layer=2, sample_ids=ids, backend=backend).rows


def scored(device, backend):
    scores = torch.randn(SAMPLES, 9, 40, generator=torch.Generator().manual_seed(0)).to(device)
    return lambda ids: keep_scores(scores, p=0.5, q=0.5, seed=3, layer=2, sample_ids=ids, backend=backend).rows


def random(device, backend):
    return lambda ids: (
        random_keep_mask(SAMPLES, 1, 9, 8, p=0.7, q=0.7, seed=3, sample_ids=ids, device=device, backend=backend).rows
    )


def attention(device, backend):
    q, k, v = torch.randn(3, SAMPLES, 1, 9, 8, device=device).unbind()
    keep = KeepMask.from_rows(torch.full((1, 1, 9, 1), 0xFF, dtype=torch.int32, device=device), 8)
    k, v = k[:, :, :8].requires_grad_(), v[:, :, :8]

    def call(ids):
        out = masked_attention(q, k, v, keep, dropout_p=0.4, seed=3, sample_ids=ids, backend=backend)
        return torch.cat([out.flatten(), *(g.flatten() for g in torch.autograd.grad(out.square().sum(), k))]).detach()

    return call


def blocks(device, backend):
    images = torch.randn(SAMPLES, 2, 8, 9, device=device)  # without relevance, which is looked at on the CPU
    return lambda ids: occlude_blocks(images, p=0.9, value="random", seed=3, sample_ids=ids, backend=backend)[0]


def fill(device, backend):
    images = torch.zeros(SAMPLES, 2, 8, 9, device=device)
    boxes = torch.tensor([[1, 1, 3, 4]] * SAMPLES, dtype=torch.int32, device=device)
    return lambda ids: fill_blocks(images, boxes, value="random", seed=3, sample_ids=ids, backend=backend)


def points(device, backend):
    clouds = torch.randn(SAMPLES, 20, 3, device=device)
    return lambda ids: occlude_points(clouds, beta=0.4, value="resample", seed=3, sample_ids=ids, backend=backend)[0]


ALL = (ranked, scored, random, attention, blocks, fill, points)
ON = {
    "cpu": {"reference": ALL, "cpp": ALL, "triton": ALL[:4]},
    "cuda": {"reference": ALL, "triton": ALL[:4], "cuda": (ranked, scored, random, blocks, fill, points)},
}
MARKS = {
    "triton": [pytest.mark.slow, pytest.mark.skipif(not TRITON_INTERPRETED, reason="no interpreter")],
    "cpp": [pytest.mark.skipif(COMPILED_MISSING is not None, reason="nothing was compiled")],
}
CASES = [
    pytest.param(
        device,
        backend,
        make,
        marks=[pytest.mark.gpu] if device == "cuda" else MARKS.get(backend, []),
        id=f"{device}-{backend}-{make.__name__}",
    )
    for device, served in ON.items()
    for backend, makes in served.items()
    for make in makes
]


@pytest.mark.parametrize(("device", "backend", "make"), CASES)
def test_replays_draw_for_later_samples(device, backend, make):
    call = make(device, backend)
    seen = torch.tensor(FIRST, device=device)

    def step():
        ids = seen + torch.arange(SAMPLES, device=device)
        seen.add_(SAMPLES)
        return call(ids)

    call(torch.arange(SAMPLES, device=device))  # compiles, where there is something to compile
    result, replay = run_and_capture(step, device)
    found = [result.clone()]
    for _ in range(2):
        replay()
        found.append(result.clone())
    for index, got in enumerate(found):
        expected = call(torch.arange(FIRST + SAMPLES * index, FIRST + SAMPLES * (index + 1), device=device))
        assert torch.equal(got, expected), index
        assert not any(torch.equal(got, other) for other in found[:index])


def test_later_samples_compile_nothing_anew():
    x = torch.randn(SAMPLES, 2, 9, 8)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(seen):
        ids = seen + torch.arange(SAMPLES)
        keep = keep_mask(x, x, p=0.5, q=0.5, seed=3, sample_ids=ids)
        return masked_attention(x, x, x, keep, dropout_p=0.3, seed=4, sample_ids=ids), keep.rows

    results = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for first in (0, SAMPLES, FIRST):
            results.append(step(torch.tensor(first)))
    expected = keep_mask(x, x, p=0.5, q=0.5, seed=3, sample_ids=torch.arange(SAMPLES, 2 * SAMPLES)).rows
    assert torch.equal(results[1][1], expected)
    assert not torch.equal(results[0][0], results[1][0])


def test_dropout_needs_a_seed_in_a_graph():
    x = torch.randn(1, 1, 4, 8)
    keep = KeepMask.from_rows(torch.ones(1, 1, 4, 1, dtype=torch.int32), 4)
    masked_attention(x, x, x, keep, dropout_p=0.5)
    with capturing():
        masked_attention(x, x, x, keep)
        with pytest.raises(ValueError, match="seed must be given during a CUDA graph capture"):
            masked_attention(x, x, x, keep, dropout_p=0.5)
