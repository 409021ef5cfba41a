"""masked_attention: softmax attention over the set bits of a packed mask."""

from __future__ import annotations

import torch
from torch import Tensor

from attrdrop._core import backends, checks
from attrdrop._core.capture import is_capturing
from attrdrop._core.library import operators, register_fake
from attrdrop.ops.keep_mask import KeepMask
from attrdrop.reference import masked_attention as reference

WIDEST_HALF, WIDEST_SINGLE = 256, 128  # heads of the Triton kernels: what fits into registers


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: KeepMask | None,
    *,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    sample_ids: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """dropout(softmax(q kᵀ scale + bias, over the set bits)) v (AD-DROP, Eq. 1 with a packed M).

    Deterministic; differentiable in q, k, v, and in bias and sinks if they require a gradient. The only n x n object
    kept for the backward is the bits; with create_graph, inside transforms of torch.func and under forward-mode
    gradients, the matrix is materialised as in the reference.

    Args:
        q: (B, H, n_q, d), float32, bfloat16, float16 or float64.
        k, v: (B, H_kv, n_k, d) and (B, H_kv, n_k, d_v), dtype and device of q; H_kv divides H.
        keep: which positions to attend to; its rows may broadcast over samples, heads and queries. The output of a
            query without a set bit is 0. None: plain attention by torch's scaled_dot_product_attention, which then also
            draws the dropout from torch's generator.
        bias: floating point, broadcastable to (B, H, n_q, n_k), added to the scaled scores.
        sinks: attention sinks, floating point, (H,) or broadcastable to (B, H, n_q, 1): a logit that joins the softmax
            of every row and has no value, so that the probabilities of the keys sum to less than 1.
        scale: default d ** -0.5.
        dropout_p: ordinary dropout of the probabilities, in [0, 1], with a resolution of 1/65536; drawn from ``seed``
            by position, so the backward and a checkpointed forward repeat it.
        seed: 64-bit seed of that dropout; by default drawn from torch's generator. Use a different one for each layer.
        sample_ids: int64 (B,), the samples' global indices in the step; default 0 to B - 1.
        return_lse: also return the log-sum-exp of each row, (B, H, n_q), -inf where no bit is set, including sinks.
        backend: one of :data:`attrdrop.BACKENDS`; default, the one in force.

    Returns:
        (B, n_q, H, d_v), contiguous, in q's dtype; with return_lse, a pair.

    Raises:
        TypeError, ValueError: an argument is not as said above; the message names it.
        RuntimeError: the backend asked for cannot serve the call.
    """
    q, k, v, bias, scale, dropout_p = _check_operands(q, k, v, keep, bias, scale, dropout_p)
    if sinks is not None:
        sinks = checks.check_tensor("sinks", sinks)
        batch, heads, n_q, _ = q.shape
        sinks = sinks[:, None, None] if sinks.dim() == 1 and len(sinks) == heads else sinks
        sinks = checks.check_summand("sinks", sinks, (batch, heads, n_q, 1), q.device, "(H,) or (B, H, n_q, 1)")
        k, v, bias, keep = _with_sinks(k, v, bias, keep, sinks)
    if keep is None:
        if return_lse:
            raise ValueError("return_lse needs a keep mask; with keep=None torch's attention does not return it")
        if backend not in (None, "auto") or seed is not None:
            raise ValueError("backend and seed need a keep mask; with keep=None torch's attention chooses and draws")
        out = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            None if bias is None else bias.to(q.dtype),
            dropout_p,
            scale=scale,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        return out.transpose(1, 2).contiguous()
    if seed is None:
        seed = _drawn_seed() if dropout_p > 0 else 0
    arguments, by_key = _masked_arguments(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids)
    chosen = resolve(q, v, backend)
    if chosen == "reference":
        out, lse = reference.masked_attention(*arguments)
    else:
        reads_rows_alone = chosen == "cpp" and q.device.type == "cpu"
        if by_key.shape[3] == 0 and not reads_rows_alone:
            by_key = keep.cols
        out, lse = _MaskedAttention.apply(*arguments, None if reads_rows_alone else by_key, chosen)
    return (out, lse.detach()) if return_lse else out


def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: KeepMask,
    bias: Tensor | None,
    scale: float | None,
    dropout_p: float,
    seed: int,
    sample_ids: Tensor | None,
) -> tuple:
    """The arguments of the operator masked_attention."""
    if keep is None:
        raise TypeError("keep must be a KeepMask (keep_mask, KeepMask.from_rows), got None")
    q, k, v, bias, scale, dropout_p = _check_operands(q, k, v, keep, bias, scale, dropout_p)
    return _masked_arguments(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids)[0]


def _check_operands(
    q, k, v, keep, bias, scale, dropout_p
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float, float]:
    q = checks.check_heads("q", q)
    k = checks.check_heads("k", k, q.dtype, q.device)
    v = checks.check_heads("v", v, q.dtype, q.device)
    batch, heads, n_q, d = q.shape
    n_k = k.shape[2]
    if d == 0:
        raise ValueError(f"q must have a head dimension of at least 1, got shape {tuple(q.shape)}")
    if k.shape[0] != batch or k.shape[3] != d:
        raise ValueError(f"k must have shape ({batch}, H_kv, n_k, {d}) to go with q, got {tuple(k.shape)}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must have shape {tuple(k.shape[:3])} + (d_v,) to go with k, got {tuple(v.shape)}")
    checks.check_groups("k", k.shape[1], heads)
    dropout_p = checks.check_probability("dropout_p", dropout_p)
    bias = checks.check_bias("bias", bias, (batch, heads, n_q, n_k), q.device)
    scale = d**-0.5 if scale is None else float(scale)
    if keep is not None and not isinstance(keep, KeepMask):
        raise TypeError(f"keep must be a KeepMask (keep_mask, KeepMask.from_rows) or None, got {type(keep).__name__}")
    return q, k, v, bias, scale, dropout_p


def _masked_arguments(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids) -> tuple[tuple, Tensor]:
    """The arguments of the operator, and the mask by key, of no words where none were made."""
    batch, heads, n_q, _ = q.shape
    n_k = k.shape[2]
    rows = checks.check_rows("keep.rows", keep.rows, (batch, heads, n_q, checks.word_count(n_k)), q.device)
    by_key = checks.check_tensor("keep.cols", keep.by_key)
    words = 0 if by_key.shape[-1:] == (0,) else checks.word_count(keep.rows.shape[2])
    by_key = checks.check_rows("keep.cols", by_key, (batch, heads, n_k, words), q.device)
    sample_ids = checks.check_sample_ids(sample_ids, batch, q.device)
    return (q, k, v, rows, bias, scale, dropout_p, checks.check_seed(seed), sample_ids), by_key


def _drawn_seed() -> int:
    if is_capturing():
        raise ValueError(
            "seed must be given during a CUDA graph capture, because every replay would repeat a seed drawn now; "
            "pass sample_ids that the graph itself advances"
        )
    return int(torch.randint(2**62, ()))


def _with_sinks(
    k: Tensor, v: Tensor, bias: Tensor | None, keep: KeepMask | None, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor, KeepMask | None]:
    """One more key, always attended to, whose score is the sink and whose value is 0."""
    n_k = k.shape[2]
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
    bias = sinks.new_zeros(1, 1, 1, n_k) if bias is None else bias
    shape = torch.broadcast_shapes(bias.shape[:3], sinks.shape[:3])
    bias = torch.cat([bias.expand(*shape, n_k), sinks.expand(*shape, 1)], -1)
    if keep is not None:
        words = checks.word_count(n_k)
        rows = torch.nn.functional.pad(keep.rows, (0, checks.word_count(n_k + 1) - words))
        bit = torch.zeros(rows.shape[-1], dtype=torch.int32, device=rows.device)
        bit[n_k // 32] = 1 << n_k % 32 if n_k % 32 < 31 else -(1 << 31)
        keep = KeepMask.from_rows(rows | bit, n_k + 1)
    return k, v, bias, keep


class _MaskedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, rows, bias, scale, dropout_p, seed, sample_ids, by_key, backend):
        out, lse = operators(backend).masked_attention(q, k, v, rows, bias, scale, dropout_p, seed, sample_ids)
        ctx.save_for_backward(q, k, v, out, lse, rows, rows if by_key is None else by_key, bias, sample_ids)
        ctx.constants = scale, dropout_p, seed
        ctx.backend = backend
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)  # zeros for lse, which nobody reads
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, _grad_lse):
        if grad_out is None:
            return (None,) * 11
        *saved, bias, sample_ids = ctx.saved_tensors
        needs_grad_bias = bias is not None and ctx.needs_input_grad[4]
        if torch.is_grad_enabled():  # create_graph: gradients that have gradients are those of the definition
            q, k, v, _, _, rows, _ = saved
            q, k, v = (x.view_as(x) for x in (q, k, v))  # they may be one tensor, of which each has a share
            out, _ = reference.masked_attention(q, k, v, rows, bias, *ctx.constants, sample_ids)
            wanted = [x if needed else None for x, needed in zip((q, k, v, bias), _first_needs(ctx), strict=True)]
            found = iter(torch.autograd.grad(out, [x for x in wanted if x is not None], grad_out, create_graph=True))
            grads = [None if x is None else next(found) for x in wanted]
            return *grads[:3], None, grads[3], *(None,) * 6
        *grads, grad_bias = operators(ctx.backend).masked_attention_backward(
            grad_out, *saved, bias, *ctx.constants, sample_ids, needs_grad_bias
        )
        return *grads, None, grad_bias if needs_grad_bias else None, *(None,) * 6


def _first_needs(ctx) -> tuple[bool, ...]:
    """Whether q, k, v and the bias need a gradient."""
    return *ctx.needs_input_grad[:3], ctx.needs_input_grad[4]


def resolve(q: Tensor, v: Tensor, backend: str | None) -> str:
    """The backend that serves masked_attention on q and v, as :func:`attrdrop._core.backends.resolve` tells it."""
    cpp, triton = backends.COMPILED_MISSING, backends.TRITON_MISSING
    if q.dtype == torch.float64:
        triton = cpp = "float64 is served by the reference only"
    else:
        widest = WIDEST_SINGLE if q.dtype == torch.float32 else WIDEST_HALF
        if not all(1 <= width <= widest for width in (q.shape[-1], v.shape[-1])):
            triton = f"{q.dtype} heads must be 1 to {widest} wide, got {q.shape[-1]} of q and {v.shape[-1]} of v"
    if backends.is_transformed():
        triton = cpp = backends.TRANSFORMED
    return backends.resolve("masked_attention", q, backend, {"triton": triton, "cpp": cpp})


@register_fake("masked_attention")
def _(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids):
    batch, heads, n_q, _ = q.shape
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty((batch, n_q, heads, v.shape[-1])), q.new_empty((batch, heads, n_q), dtype=lse_dtype)


@register_fake("masked_attention_backward")
def _(grad_out, q, k, v, out, lse, keep, keep_cols, bias, scale, dropout_p, seed, sample_ids, needs_grad_bias):
    grads = (torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format) for t in (q, k, v))
    grad_bias = bias.new_empty(bias.shape) if needs_grad_bias else q.new_empty(0)
    return *(grad.transpose(1, 2) for grad in grads), grad_bias
