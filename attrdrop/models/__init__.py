"""Models that the experiments need and no dependency provides."""

from attrdrop.models.pointnet2 import Neighbours, PointNet, PointNet2, pointnet, pointnet2_msg, pointnet2_ssg
from attrdrop.models.resnet import ResNet, from_torchvision, resnet10, resnet18, resnet34, resnet50, resnet101

__all__ = [
    "Neighbours",
    "PointNet",
    "PointNet2",
    "ResNet",
    "from_torchvision",
    "pointnet",
    "pointnet2_msg",
    "pointnet2_ssg",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
]
