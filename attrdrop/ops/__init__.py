"""Public operators: each validates its arguments, chooses a backend, and is differentiable where that makes sense."""

from attrdrop.ops.attention_attribution import TopEntries, attention_attribution
from attrdrop.ops.ball_query import ball_query
from attrdrop.ops.farthest_point_sample import farthest_point_sample
from attrdrop.ops.group_points import group_points
from attrdrop.ops.keep_mask import AttentionWeight, KeepMask, keep_mask, random_keep_mask
from attrdrop.ops.keep_scores import KeptScores, keep_scores
from attrdrop.ops.masked_attention import masked_attention
from attrdrop.ops.occlude_blocks import draw_images, fill_blocks, occlude_blocks
from attrdrop.ops.occlude_points import occlude_points
from attrdrop.ops.pack_mask import pack_mask, transpose_mask, unpack_mask
from attrdrop.ops.relevance_gate import relevance_gate, relevance_gate_relu

__all__ = [
    "AttentionWeight",
    "KeepMask",
    "KeptScores",
    "TopEntries",
    "attention_attribution",
    "ball_query",
    "draw_images",
    "farthest_point_sample",
    "fill_blocks",
    "group_points",
    "keep_mask",
    "keep_scores",
    "masked_attention",
    "occlude_blocks",
    "occlude_points",
    "pack_mask",
    "random_keep_mask",
    "relevance_gate",
    "relevance_gate_relu",
    "transpose_mask",
    "unpack_mask",
]
