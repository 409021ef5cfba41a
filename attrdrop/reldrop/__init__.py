"""RelDrop: occlusion of what a relevance map ranks high, on images and on point clouds."""

from attrdrop.reldrop.cache import CacheStatistics
from attrdrop.reldrop.images import BlockStatistics, RelDrop
from attrdrop.reldrop.mixing import RelCutMix, RelMixUp
from attrdrop.reldrop.points import PointStatistics, RelDropPoints

__all__ = ["BlockStatistics", "CacheStatistics", "PointStatistics", "RelCutMix", "RelDrop", "RelDropPoints", "RelMixUp"]
