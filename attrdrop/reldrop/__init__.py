"""RelDrop: occlusion of what a relevance map ranks high, on images and on point clouds."""

from attrdrop.reldrop.images import BlockStatistics, RelCutMix, RelDrop
from attrdrop.reldrop.points import PointStatistics, RelDropPoints

__all__ = ["BlockStatistics", "PointStatistics", "RelCutMix", "RelDrop", "RelDropPoints"]
