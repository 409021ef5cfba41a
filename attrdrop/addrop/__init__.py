"""AD-DROP (Yang et al., 2022): attention dropout driven by attribution, as a two-pass training step."""

from attrdrop.addrop.config import ATTRIBUTIONS, ADDropConfig
from attrdrop.addrop.explain import AttentionLayer, ExplainedAttention, attention_rollout, explain_attention
from attrdrop.addrop.statistics import DropStatistics
from attrdrop.addrop.step import ADDrop
from attrdrop.addrop.targets import attribution_target

__all__ = [
    "ATTRIBUTIONS",
    "ADDrop",
    "ADDropConfig",
    "AttentionLayer",
    "DropStatistics",
    "ExplainedAttention",
    "attention_rollout",
    "attribution_target",
    "explain_attention",
]
