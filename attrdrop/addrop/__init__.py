"""AD-DROP (Yang et al., 2022): attention dropout driven by attribution, as a two-pass training step."""

from attrdrop.addrop.step import ATTRIBUTIONS, ADDrop, ADDropConfig, DropStatistics
from attrdrop.addrop.targets import attribution_target

__all__ = ["ATTRIBUTIONS", "ADDrop", "ADDropConfig", "DropStatistics", "attribution_target"]
