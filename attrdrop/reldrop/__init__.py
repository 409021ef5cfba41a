"""RelDrop: occlusion of what a relevance map ranks high, on images, on point clouds and on text."""

from attrdrop.reldrop.cache import CacheStatistics
from attrdrop.reldrop.images import BlockStatistics, RelDrop
from attrdrop.reldrop.mixing import RelCutMix, RelMixUp
from attrdrop.reldrop.points import PointStatistics, RelDropPoints
from attrdrop.reldrop.tokens import RelDropTokens, TokenStatistics

__all__ = [
    "BlockStatistics",
    "CacheStatistics",
    "PointStatistics",
    "RelCutMix",
    "RelDrop",
    "RelDropPoints",
    "RelDropTokens",
    "RelMixUp",
    "TokenStatistics",
]
