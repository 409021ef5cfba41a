"""Rivals of the ops in plain PyTorch, each in its best form, written from the published descriptions.

Masks are True where a position may be attended. `lengths` are the valid keys of each sample (padding follows them);
None means all. The peers do not rescue rows whose keys are all dropped, which saves them a pass.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import batch_norm, dropout, one_hot, pad, scaled_dot_product_attention

Lengths = tuple[int, ...] | None


def rank(n: int, p: float) -> int:
    """int(n (1-p)) with the product in float32, at most n-1."""
    return min(int(np.float32(n) * np.float32(1 - p)), n - 1)


@cache
def _ranks(lengths: tuple[int, ...], p: float, device: torch.device, descending: bool) -> Tensor:
    """(B,1,1,1) position of the threshold in each sample's sorted row."""
    ranks = [n - 1 - rank(n, p) if descending else rank(n, p) for n in lengths]
    return torch.tensor(ranks, device=device)[:, None, None, None]


@cache
def padding(lengths: tuple[int, ...], n: int, device: torch.device) -> Tensor:
    """(B,1,1,n) True at the padded keys."""
    return (torch.arange(n, device=device) >= torch.tensor(lengths, device=device)[:, None])[:, None, None]


def _pick(ranked: Tensor, at: Tensor) -> Tensor:
    return ranked.gather(-1, at.expand(*ranked.shape[:-1], 1))


def by_sort(b: Tensor, p: float, lengths: Lengths) -> Tensor:
    """Threshold of each row (B,H,n,1) from a full sort."""
    n = b.shape[-1]
    if lengths is None:
        return b.sort(dim=-1).values[..., rank(n, p), None]
    ranked = b.masked_fill(padding(lengths, n, b.device), torch.inf).sort(dim=-1).values
    return _pick(ranked, _ranks(lengths, p, b.device, False))


def by_topk(b: Tensor, p: float, lengths: Lengths) -> Tensor:
    """Threshold of each row as the smallest of its candidates, the top n - int(n (1-p))."""
    n = b.shape[-1]
    count = n - rank(n, p)
    if lengths is None:
        return b.topk(count, sorted=False).values.amin(-1, keepdim=True)
    ranked = b.masked_fill(padding(lengths, n, b.device), -torch.inf).topk(count).values
    return _pick(ranked, _ranks(lengths, p, b.device, True))


def by_kthvalue(b: Tensor, p: float, lengths: Lengths) -> Tensor:
    """Threshold of each row by quick-select; it takes one rank a call, hence one call a sample where lengths differ."""
    if lengths is None:
        return b.kthvalue(rank(b.shape[-1], p) + 1, keepdim=True).values
    rows = [x[..., :n].kthvalue(rank(n, p) + 1, keepdim=True).values for x, n in zip(b, lengths, strict=True)]
    return torch.stack(rows)


def by_rand(like: Tensor, probability: float) -> Tensor:
    """True with `probability`: a uniform float and a comparison."""
    return torch.rand(like.shape, device=like.device) < probability


def by_bernoulli(like: Tensor, probability: float) -> Tensor:
    """True with `probability`: torch's own Bernoulli fill."""
    return torch.empty(like.shape, dtype=torch.bool, device=like.device).bernoulli_(probability)


def eager_mask(
    x: Tensor,
    y: Tensor,
    p: float,
    q: float,
    lengths: Lengths = None,
    select: Callable[[Tensor, float, Lengths], Tensor] = by_topk,
    draw: Callable[[Tensor, float], Tensor] = by_rand,
) -> Tensor:
    """Eq. 5-7 in a handful of kernels: bmm, the threshold alone, compare, draw. bool (B,H,n,n)."""
    return eager_scores(x @ y.mT, p, q, lengths, select, draw)


def eager_scores(
    b: Tensor,
    p: float,
    q: float,
    lengths: Lengths = None,
    select: Callable[[Tensor, float, Lengths], Tensor] = by_topk,
    draw: Callable[[Tensor, float], Tensor] = by_rand,
) -> Tensor:
    """Eq. 6 and 7 of what is there to be ranked."""
    keep = b < select(b, p, lengths)
    keep |= draw(b, 1 - q)
    return keep if lengths is None else keep & ~padding(lengths, b.shape[-1], b.device)


SELECTIONS = {"topk": by_topk, "kthvalue": by_kthvalue, "sort": by_sort}
EAGER_MASKS, EAGER_SCORES = (
    {
        f"{name}+{draw}": partial(make, select=select, draw=globals()[f"by_{draw}"])
        for name, select in SELECTIONS.items()
        for draw in ("rand", "bernoulli")
    }
    for make in (eager_mask, eager_scores)
)


def sort_and_drop(b: Tensor, p: float, q: float, lengths: Lengths = None) -> Tensor:
    """The published procedure on B. (B,H,n,n) int64.

    Padded keys are raised by 100 so that they sort last; every row is sorted in full; a one-hot vector per row picks
    its threshold; the integers of "below the threshold" and of a Bernoulli draw are added.
    """
    n = b.shape[-1]
    ranks = _ranks((n,) * len(b) if lengths is None else lengths, p, b.device, False)
    raised = b if lengths is None else b + 100.0 * padding(lengths, n, b.device)
    picked = one_hot(ranks.expand(*b.shape[:3], 1).squeeze(-1), n)
    threshold = (raised.sort(dim=-1).values * picked).sum(-1, keepdim=True)
    keep = (raised < threshold).long() + torch.bernoulli(torch.full_like(b, 1 - q)).long()
    keep = (keep > 0).long()
    return keep if lengths is None else keep * (~padding(lengths, n, b.device)).long()


def sorted_mask(x: Tensor, y: Tensor, p: float, q: float) -> Tensor:
    """The published procedure from dO and V, ending in the stack of the layers' masks: here of one layer."""
    return torch.stack([sort_and_drop(x @ y.mT, p, q)])[0]


class EagerGate(torch.autograd.Function):
    """scale z + shift and perhaps ReLU, with the gradient damped: the fewest passes that eager torch allows."""

    @staticmethod
    def forward(ctx, z: Tensor, scale: Tensor, shift: Tensor, eps: float, relu: bool) -> Tensor:
        y = torch.addcmul(shift, z, scale)
        if relu:
            y.relu_()
        ctx.save_for_backward(y, scale)
        ctx.eps, ctx.relu = eps, relu
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        y, scale = ctx.saved_tensors
        if ctx.relu:  # no value is negative, and 0 / eps is 0
            damped = y + ctx.eps
            torch.div(y, damped, out=damped)
        else:
            size = y.abs()
            damped = size.div_(size + ctx.eps)
        return damped.mul_(grad).mul_(scale), None, None, None, None


class Damping(torch.autograd.Function):
    """Identity with a damped gradient, written with where."""

    @staticmethod
    def forward(ctx, y: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.eps = eps
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        (y,) = ctx.saved_tensors
        return grad * torch.where(y == 0, 0, y / torch.where(y < 0, y - ctx.eps, y + ctx.eps)), None


def separate_gate(z: Tensor, scale: Tensor, shift: Tensor, eps: float, relu: bool) -> Tensor:
    """BatchNorm with the statistics of evaluation, ReLU and damping, one after the other."""
    y = batch_norm(z, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, training=False, eps=0.0)
    return Damping.apply(y.relu() if relu else y, eps)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where attended, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_p: float = 0.0) -> Tensor:
    """dropout(softmax(q kᵀ scale + mask)) v with all matrices in memory; `mask` is additive. (B,n,H,d)."""
    weights = (q @ k.mT * q.shape[-1] ** -0.5 + mask).softmax(-1)
    return (dropout(weights, dropout_p) @ v).transpose(1, 2).contiguous()


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float = 0.0, backend: SDPBackend | None = None
) -> Tensor:
    """torch's attention, its kernel pinned where `backend` is given. (B,n,H,d) contiguous, as a model needs it."""
    with sdpa_kernel(backend) if backend is not None else nullcontext():
        return scaled_dot_product_attention(q, k, v, mask, dropout_p).transpose(1, 2).contiguous()


SDPA_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def shift_pack(mask: Tensor) -> Tensor:
    """Pack 32 booleans into an int32 by a weighted sum."""
    words = pad(mask, (0, -mask.shape[-1] % 32)).unflatten(-1, (-1, 32))
    weights = torch.ones(32, dtype=torch.int32, device=mask.device) << torch.arange(32, device=mask.device).int()
    return (words * weights).sum(-1, dtype=torch.int32)


def numpy_pack(mask: Tensor) -> Tensor:
    """np.packbits, on the host."""
    padded = pad(mask, (0, -mask.shape[-1] % 32)) if mask.shape[-1] % 32 else mask
    return torch.from_numpy(np.packbits(padded.numpy(), axis=-1, bitorder="little").view(np.int32))


def shift_unpack(bits: Tensor, n: int) -> Tensor:
    """Unpack by shift and mask."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).bool().flatten(-2)[..., :n]


def numpy_unpack(bits: Tensor, n: int) -> Tensor:
    """np.unpackbits, on the host."""
    data = bits.contiguous().numpy().view(np.uint8)
    return torch.from_numpy(np.unpackbits(data, axis=-1, count=n, bitorder="little").view(np.bool_))
