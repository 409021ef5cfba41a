"""attrdrop from the hub of kernels: masked attention and AD-DROP in Triton, and in plain PyTorch on the CPU."""

import torch

from ._core.backends import BACKENDS, TRITON_MISSING, get_backend, set_backend, use_backend
from ._version import __version__
from .addrop import ADDrop, ADDropConfig, DropStatistics, attention_rollout, explain_attention
from .addrop.interface import attention_forward as flash_attn_forward
from .ops import (
    AttentionWeight,
    KeepMask,
    KeptScores,
    TopEntries,
    attention_attribution,
    keep_mask,
    keep_scores,
    masked_attention,
    pack_mask,
    random_keep_mask,
    relevance_gate,
    relevance_gate_relu,
    transpose_mask,
    unpack_mask,
)


def supports_flash_attn(device: torch.device) -> bool:
    """Whether the Triton kernels serve tensors there. transformers asks only whether the name is there."""
    return device.type == "cuda" and TRITON_MISSING is None


__all__ = [
    "BACKENDS",
    "ADDrop",
    "ADDropConfig",
    "AttentionWeight",
    "DropStatistics",
    "KeepMask",
    "KeptScores",
    "TopEntries",
    "__version__",
    "attention_attribution",
    "attention_rollout",
    "explain_attention",
    "flash_attn_forward",
    "get_backend",
    "keep_mask",
    "keep_scores",
    "masked_attention",
    "pack_mask",
    "random_keep_mask",
    "relevance_gate",
    "relevance_gate_relu",
    "set_backend",
    "supports_flash_attn",
    "transpose_mask",
    "unpack_mask",
    "use_backend",
]
