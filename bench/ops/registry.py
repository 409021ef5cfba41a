"""One entry per op: its inputs, the call, its peers, the shapes and what the arithmetic costs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial, wraps

import torch
from torch import Tensor

import attrdrop
from bench.ops import attention, images, peers, points, sampling
from bench.ops.shapes import (
    DTYPES,
    ELEMENTWISE,
    FACTORS,
    FEATURE_SHAPES,
    IMAGE_SHAPES,
    OCCLUDED_SHAPES,
    OVER_N,
    POINT_DTYPES,
    POINT_SHAPES,
    RANKED_OVER_N,
    SEED,
    SHAPES,
    AnyShape,
    Cost,
    Forms,
    ImageShape,
    Inputs,
    P,
    Q,
    Shape,
    heads,
)

TOP = 16
EPS = 1e-3


@dataclass(frozen=True)
class Entry:
    """An op under measurement.

    `call(inputs, backend)` is ours; a peer is one or more forms of one method, of which the fastest is timed.
    `agree` takes a result (or gradient) of ours and a peer's and says whether they are the same; without it, results
    are random and tests/bench/test_bench.py compares them.
    """

    name: str
    make: Callable[..., Inputs]  # of (shape, device, type)
    call: Callable[[Inputs, str | None], object]
    peers: Callable[[Inputs], Mapping[str, Forms]]
    cost: Callable[..., Cost]  # of (shape, bytes of an element)
    stem: str = ""  # of its files where it is not the name
    modes: tuple[str, ...] = ("forward",)  # of FACTORS; train: forward and backward; dropout: inputs.dropout is DROPOUT
    shapes: Mapping[str, tuple[AnyShape, ...]] = field(default_factory=lambda: SHAPES, hash=False)  # by device
    factors: Mapping[str, Cost] = field(default_factory=lambda: FACTORS, hash=False)  # by mode
    dtypes: Mapping[str, torch.dtype] = field(default_factory=lambda: DTYPES, hash=False)  # by device
    agree: Callable[[object, object], bool] | None = None
    unlike: tuple[str, ...] = ()  # peers that do less than the op, timed for comparison

    @property
    def tests(self) -> str:
        """What runs before it is timed: a file of the repository."""
        return f"tests/ops/test_{self.stem or self.name}.py"


def _gradient_and_values(shape: Shape, device: torch.device, dtype: torch.dtype) -> Inputs:
    return Inputs(x=heads(shape, device, dtype, 1), y=heads(shape, device, dtype, 2), shape=shape)


def _mask(shape: Shape, device: torch.device, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator(device).manual_seed(3)
    b, h, n, _ = shape
    mask = torch.rand(b, h, n, n, generator=generator, device=device) > P * Q
    return Inputs(mask=mask, bits=attrdrop.pack_mask(mask), n=n)


def _pack_peers(i: Inputs) -> Mapping[str, Forms]:
    forms = {"shifts": lambda: peers.shift_pack(i.mask)}
    if not i.mask.is_cuda:
        forms["packbits"] = lambda: peers.numpy_pack(i.mask)
    return {"torch or numpy": forms}


def _unpack_peers(i: Inputs) -> Mapping[str, Forms]:
    forms = {"shifts": lambda: peers.shift_unpack(i.bits, i.n)}
    if not i.bits.is_cuda:
        forms["unpackbits"] = lambda: peers.numpy_unpack(i.bits, i.n)
    return {"torch or numpy": forms}


def _transpose_peers(i: Inputs) -> Mapping[str, Forms]:
    return {"torch": {"shifts": lambda: peers.shift_pack(peers.shift_unpack(i.bits, i.n).mT)}}


def _mask_peers(i: Inputs) -> Mapping[str, Forms]:
    """The whole op in two ways, and the step of finding the thresholds alone, in dO Vᵀ that is there already."""

    def fitting(bytes_per_position: float, call: Callable[[], object]) -> Callable[[], object]:
        @wraps(call)
        def guarded() -> object:
            attention.require(i.shape.positions * bytes_per_position, i.x.device)
            return call()

        return guarded

    size = i.x.dtype.itemsize
    product = cache(fitting(2 * size, lambda: i.x @ i.y.mT))
    eager = {name: fitting(16, partial(make, i.x, i.y, P, Q)) for name, make in peers.EAGER_MASKS.items()}
    found = {"eager": eager, "sorted": {"sort": fitting(40, partial(peers.sorted_mask, i.x, i.y, P, Q))}}
    for name, select in peers.SELECTIONS.items():
        found[f"{name} alone"] = {name: lambda select=select: select(product(), P, None)}
    return found


def _random_peers(i: Inputs) -> Mapping[str, Forms]:
    like = i.x[..., :1].expand(*i.x.shape[:3], i.y.shape[2])
    draws = {"rand": peers.by_rand, "bernoulli": peers.by_bernoulli}
    return {"eager": {name: partial(draw, like, 1 - P * Q) for name, draw in draws.items()}}


def _random(i: Inputs, backend: str | None) -> object:
    b, h, n, _ = i.shape
    return attrdrop.random_keep_mask(b, h, n, n, p=P, q=Q, seed=SEED, device=i.x.device, backend=backend)


def _units(shape: Shape, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Scores of the units of a feed-forward block four times as wide as the model, by token."""
    b, h, n, d = shape
    generator = torch.Generator(device).manual_seed(1)
    return Inputs(scores=torch.randn(b, n, 4 * h * d, generator=generator, device=device, dtype=dtype).abs_())


def _unit_peers(i: Inputs) -> Mapping[str, Forms]:
    return {"eager": {name: partial(make, i.scores, P, Q) for name, make in peers.EAGER_SCORES.items()}}


def _attribution_peers(i: Inputs) -> Mapping[str, Forms]:
    return {"eager": {"bmm+topk": lambda: (i.x @ i.y.mT).flatten(2).topk(TOP, sorted=True)}}


def _maps(shape: ImageShape, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Feature maps (N, C, height, width) and the affine map of a BatchNorm."""
    generator = torch.Generator(device).manual_seed(SEED)
    z, grad = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(2))
    scale, shift = torch.randn(2, shape.channels, generator=generator, device=device)
    z.requires_grad_()
    return Inputs(z=z, leaves=(z,), grad=grad, scale=scale.abs() + 0.5, shift=shift)


def _gate(gate: Callable[..., Tensor], i: Inputs, backend: str | None) -> Tensor:
    return gate(i.z, EPS, scale=i.scale, shift=i.shift, backend=backend)


def _gate_peers(relu: bool, i: Inputs) -> Mapping[str, Forms]:
    by_channel = [x.to(i.z.dtype).view(-1, 1, 1) for x in (i.scale, i.shift)]
    return {
        "eager": {"addcmul": lambda: peers.EagerGate.apply(i.z, *by_channel, EPS, relu)},
        "separate": {"batch_norm": lambda: peers.separate_gate(i.z, i.scale, i.shift, EPS, relu)},
    }


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours, theirs)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = 1e-4 if ours.dtype == theirs.dtype == torch.float32 else 2e-2
    ours, theirs = ours.float(), theirs.float()
    return bool((ours - theirs).norm() <= tolerance * theirs.norm())


ENTRIES = (
    Entry(
        "pack_mask",
        _mask,
        lambda i, backend: attrdrop.pack_mask(i.mask, backend=backend),
        _pack_peers,
        lambda s, size: Cost(0, s.positions * (1 + 1 / 8)),
        agree=_same,
    ),
    Entry(
        "unpack_mask",
        _mask,
        lambda i, backend: attrdrop.unpack_mask(i.bits, i.n, backend=backend),
        _unpack_peers,
        lambda s, size: Cost(0, s.positions * (1 + 1 / 8)),
        stem="pack_mask",
        agree=_same,
    ),
    Entry(
        "transpose_mask",
        _mask,
        lambda i, backend: attrdrop.transpose_mask(i.bits, i.n, backend=backend),
        _transpose_peers,
        lambda s, size: Cost(0, s.positions / 4),
        stem="pack_mask",
        agree=_same,
    ),
    Entry(
        "keep_mask",
        _gradient_and_values,
        lambda i, backend: attrdrop.keep_mask(i.x, i.y, p=P, q=Q, seed=SEED, backend=backend),
        _mask_peers,
        lambda s, size: Cost(2 * s.positions * s.d, 2 * s.values * size + s.positions / 4),
        shapes=RANKED_OVER_N,
        unlike=tuple(f"{name} alone" for name in peers.SELECTIONS),
    ),
    Entry(
        "keep_scores",
        _units,
        lambda i, backend: attrdrop.keep_scores(i.scores, p=P, q=Q, seed=SEED, backend=backend),
        _unit_peers,
        lambda s, size: Cost(0, 4 * s.values * (size + 1 / 8)),
    ),
    Entry(
        "random_keep_mask",
        _gradient_and_values,
        _random,
        _random_peers,
        lambda s, size: Cost(0, s.positions / 4),
        stem="keep_mask",
    ),
    Entry(
        "masked_attention",
        attention.AttentionInputs,
        lambda i, backend: attrdrop.masked_attention(i.q, i.k, i.v, i.keep, dropout_p=i.dropout, backend=backend),
        attention.rivals,
        lambda s, size: Cost(4 * s.positions * s.d, 4 * s.values * size + s.positions / 8),
        modes=tuple(FACTORS),
        shapes=OVER_N,
        agree=_close,
        unlike=attention.UNLIKE,
    ),
    Entry(
        "attention_attribution",
        _gradient_and_values,
        lambda i, backend: attrdrop.attention_attribution(i.x, i.y, topk=TOP, backend=backend),
        _attribution_peers,
        lambda s, size: Cost(2 * s.positions * s.d, 2 * s.values * size),
        agree=lambda ours, theirs: _close(ours[0], theirs[0]),
    ),
    *(
        Entry(
            gate.__name__,
            _maps,
            partial(_gate, gate),
            partial(_gate_peers, gate is attrdrop.relevance_gate_relu),
            lambda s, size: Cost(0, 2 * s.values * size),
            stem="relevance_gate",
            modes=tuple(ELEMENTWISE),
            shapes=FEATURE_SHAPES,
            factors=ELEMENTWISE,
            agree=_close,
        )
        for gate in (attrdrop.relevance_gate, attrdrop.relevance_gate_relu)
    ),
    Entry(
        "occlude_blocks",
        images.BlockInputs,
        lambda i, backend: attrdrop.occlude_blocks(i.images, i.relevance, seed=SEED, backend=backend),
        images.occlusion_peers,
        lambda s, size: Cost(0, 2 * (3 * size + 4) * s.batch * s.n),
        shapes=IMAGE_SHAPES,
        agree=images.same_images,
    ),
    Entry(
        "fill_blocks",
        images.BlockInputs,
        lambda i, backend: attrdrop.fill_blocks(i.images, i.boxes, backend=backend),
        images.fill_peers,
        lambda s, size: Cost(0, 2 * s.values * size),
        stem="occlude_blocks",
        shapes=IMAGE_SHAPES,
        agree=_same,
    ),
    Entry(
        "occlude_points",
        points.PointInputs,
        lambda i, backend: attrdrop.occlude_points(i.points, i.relevance, mode="threshold", seed=SEED, backend=backend),
        points.peers,
        lambda s, size: Cost(0, 2 * s.values * size + 5 * s.batch * s.n),
        shapes=OCCLUDED_SHAPES,
    ),
    Entry(
        "draw_images",
        lambda shape, device, dtype: Inputs(n=shape.batch),
        lambda i, backend: attrdrop.draw_images(i.n, P, seed=SEED, backend=backend),
        lambda i: {"torch": {"rand": lambda: torch.rand(i.n) < P}},
        lambda s, size: Cost(0, 9 * s.batch),
        stem="occlude_blocks",
        shapes=IMAGE_SHAPES,
        unlike=("torch",),
    ),
    Entry(
        "farthest_point_sample",
        sampling.GroupInputs,
        lambda i, backend: attrdrop.farthest_point_sample(i.points, i.count, backend=backend),
        sampling.sample_peers,
        lambda s, size: Cost(4 * s.batch * s.n * s.n, (3 * size + 4) * s.batch * s.n),
        shapes=POINT_SHAPES,
        dtypes=POINT_DTYPES,
        agree=_same,
    ),
    Entry(
        "ball_query",
        sampling.GroupInputs,
        lambda i, backend: attrdrop.ball_query(
            i.points, i.centres, radius=sampling.RADIUS, k=sampling.NEIGHBOURS, backend=backend
        ),
        sampling.query_peers,
        lambda s, size: Cost(4 * s.batch * s.n * s.n, (4.5 * size + 4 * sampling.NEIGHBOURS) * s.batch * s.n),
        shapes=POINT_SHAPES,
        dtypes=POINT_DTYPES,
        agree=sampling.mostly_same,
    ),
    Entry(
        "group_points",
        sampling.GroupInputs,
        lambda i, backend: attrdrop.group_points(i.points, i.index, i.centres, backend=backend),
        sampling.group_peers,
        lambda s, size: Cost(0, sampling.NEIGHBOURS / 2 * (s.values * size + 8 * s.batch * s.n) + s.values * size),
        modes=tuple(sampling.GATHERED),
        shapes=POINT_SHAPES,
        factors=sampling.GATHERED,
        dtypes=POINT_DTYPES,
        agree=_close,
    ),
)
REGISTRY = {entry.name: entry for entry in ENTRIES}
