"""attrdrop: attribution-driven regularisation at the speed of plain training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from attrdrop._core.backends import BACKENDS, get_backend, set_backend, use_backend
from attrdrop._version import __version__
from attrdrop.ops import (
    AttentionWeight,
    KeepMask,
    KeptScores,
    TopEntries,
    attention_attribution,
    ball_query,
    draw_images,
    farthest_point_sample,
    fill_blocks,
    group_points,
    keep_mask,
    keep_scores,
    masked_attention,
    occlude_blocks,
    occlude_points,
    pack_mask,
    random_keep_mask,
    relevance_gate,
    relevance_gate_relu,
    transpose_mask,
    unpack_mask,
)

if TYPE_CHECKING:
    from attrdrop import lrp, metrics, schedules
    from attrdrop.addrop import (
        ADDrop,
        ADDropConfig,
        AttentionLayer,
        DropStatistics,
        ExplainedAttention,
        attention_rollout,
        explain_attention,
    )
    from attrdrop.integrations.transformers import ADDropTrainer
    from attrdrop.reldrop import (
        BlockStatistics,
        CacheStatistics,
        PointStatistics,
        RelCutMix,
        RelDrop,
        RelDropPoints,
        RelDropTokens,
        RelMixUp,
        TokenStatistics,
    )

# Imported when first asked for: the Trainer needs transformers, and the ops need none of these.
_LAZY = {
    "ADDrop": "attrdrop.addrop",
    "ADDropConfig": "attrdrop.addrop",
    "AttentionLayer": "attrdrop.addrop",
    "DropStatistics": "attrdrop.addrop",
    "ExplainedAttention": "attrdrop.addrop",
    "attention_rollout": "attrdrop.addrop",
    "explain_attention": "attrdrop.addrop",
    "ADDropTrainer": "attrdrop.integrations.transformers",
    "BlockStatistics": "attrdrop.reldrop",
    "CacheStatistics": "attrdrop.reldrop",
    "RelCutMix": "attrdrop.reldrop",
    "RelDrop": "attrdrop.reldrop",
    "PointStatistics": "attrdrop.reldrop",
    "RelDropPoints": "attrdrop.reldrop",
    "RelDropTokens": "attrdrop.reldrop",
    "RelMixUp": "attrdrop.reldrop",
    "TokenStatistics": "attrdrop.reldrop",
}
_SUBMODULES = ("lrp", "metrics", "schedules")


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"attrdrop.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'attrdrop' has no attribute {name!r}")


__all__ = [
    "BACKENDS",
    "ADDrop",
    "ADDropConfig",
    "ADDropTrainer",
    "AttentionLayer",
    "AttentionWeight",
    "BlockStatistics",
    "CacheStatistics",
    "DropStatistics",
    "ExplainedAttention",
    "KeepMask",
    "KeptScores",
    "PointStatistics",
    "RelCutMix",
    "RelDrop",
    "RelDropPoints",
    "RelDropTokens",
    "RelMixUp",
    "TokenStatistics",
    "TopEntries",
    "__version__",
    "attention_attribution",
    "attention_rollout",
    "ball_query",
    "draw_images",
    "explain_attention",
    "farthest_point_sample",
    "fill_blocks",
    "get_backend",
    "group_points",
    "keep_mask",
    "keep_scores",
    "lrp",
    "masked_attention",
    "metrics",
    "occlude_blocks",
    "occlude_points",
    "pack_mask",
    "random_keep_mask",
    "relevance_gate",
    "relevance_gate_relu",
    "schedules",
    "set_backend",
    "transpose_mask",
    "unpack_mask",
    "use_backend",
]
