"""Models that the experiments need and no dependency offers."""

from attrdrop.models.pointnet2 import Neighbours, PointNet, PointNet2, pointnet, pointnet2_msg, pointnet2_ssg
from attrdrop.models.resnet import ResNet, resnet10, resnet18, resnet50

__all__ = [
    "Neighbours",
    "PointNet",
    "PointNet2",
    "ResNet",
    "pointnet",
    "pointnet2_msg",
    "pointnet2_ssg",
    "resnet10",
    "resnet18",
    "resnet50",
]
