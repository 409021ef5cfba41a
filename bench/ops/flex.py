"""FlexAttention under a random mask for each head: the mask is captured as booleans or as packed bits."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
Modification = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def by_bool(mask: Tensor) -> Modification:
    """A mask_mod that reads bool (B,H,n,n).

    Raises:
        RuntimeError: FlexAttention computes such an index in 32 bits, and would read elsewhere.
    """
    if mask.numel() > 2**31:
        raise RuntimeError(f"the captured mask has {mask.numel()} elements, FlexAttention's index ends at 2**31")
    return lambda b, h, i, j: mask[b, h, i, j]


def by_bits(rows: Tensor) -> Modification:
    """A mask_mod that reads packed int32 (B,H,n,n/32): bit j % 32 of word j // 32."""
    return lambda b, h, i, j: ((rows[b, h, i, j >> 5] >> (j & 31)) & 1) != 0


def all_blocks(modification: Modification, n: int, device: torch.device) -> BlockMask:
    """Every block is partly masked, as create_block_mask finds it for a random mask, without its n x n booleans."""
    blocks = -(-n // BLOCK)
    counts = torch.full((1, 1, blocks), blocks, dtype=torch.int32, device=device)
    indices = torch.arange(blocks, dtype=torch.int32, device=device).expand(1, 1, blocks, blocks).contiguous()
    return BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=BLOCK, mask_mod=modification, seq_lengths=(n, n))


def compiled() -> Callable[..., Tensor]:
    """FlexAttention compiled for one shape.

    Earlier shapes are forgotten, or torch would turn to symbolic sizes and, after eight of them, to no compilation.
    """
    torch.compiler.reset()
    torch._functorch.config.donated_buffer = False  # or a graph could be walked back only once
    return torch.compile(flex_attention, dynamic=False)


def attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask, attention: Callable[..., Tensor] = flex_attention
) -> Tensor:
    """(B,n,H,d) contiguous, as a model needs it; `attention` is flex_attention or its compiled form."""
    return attention(q, k, v, block_mask=blocks).transpose(1, 2).contiguous()
