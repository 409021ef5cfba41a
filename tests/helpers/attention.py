"""Attention problems, their exact solution and error measures, for the tests of masked_attention."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attrdrop import KeepMask, pack_mask

FLOOR = {torch.float32: 2**-22, torch.bfloat16: 2**-8, torch.float16: 2**-10}
"""An error that is always allowed: about the rounding of a result near one."""

YARDSTICKS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Of torch's attention; cuDNN's gives NaN for a row without a column."""


def problem(
    batch=2, heads=4, kv_heads=2, n_q=40, n_k=63, d=16, d_v=None, dtype=torch.float32, density=0.6, device="cpu"
):
    """(q, k, v), a random mask with one empty row, and the same mask as booleans."""
    q = torch.randn(batch, heads, n_q, d)
    k, v = torch.randn(batch, kv_heads, n_k, d), torch.randn(batch, kv_heads, n_k, d_v or d)
    columns = torch.rand(batch, heads, n_q, n_k) < density
    columns[0, 0, min(3, n_q - 1)] = False  # a row without a set bit
    columns = columns.to(device)
    keep = KeepMask.from_rows(pack_mask(columns), n_k)
    return [t.to(device, dtype) for t in (q, k, v)], keep, columns


def exact(q, k, v, columns, bias=None, scale=None):
    """Plain attention over the set columns in float64, by torch's own softmax."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(groups, 1), v.double().repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias.double()
    probability = torch.softmax(scores.masked_fill(~columns, -torch.inf), -1)
    return (torch.where(columns, probability, 0.0) @ v).transpose(1, 2)


def gradients(function, tensors, weight):
    """The result of the function and its gradients under the loss sum(weight result)."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad((out * weight.to(out.dtype)).sum(), leaves)]


def errors(found, expected):
    return [float((a.double() - b.double()).abs().max()) for a, b in zip(found, expected, strict=True)]


def sdpa(q, k, v, mask, **options):
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    with sdpa_kernel(YARDSTICKS, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v, mask, **options).transpose(1, 2)
    assert not out.isnan().any(), "torch's own attention gave NaN, which no error is below"
    return out
