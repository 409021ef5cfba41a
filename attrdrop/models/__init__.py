"""Models that the experiments need and no dependency offers."""

from attrdrop.models.resnet import ResNet, resnet10, resnet18, resnet50

__all__ = ["ResNet", "resnet10", "resnet18", "resnet50"]
