"""A classifier trained on images whose object is known exactly, digits pasted on photographs.

``python tests/helpers/planted_truth.py`` trains it anew (a minute on two cores) and writes its weights to
tests/data/planted_truth.npz.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attrdrop.lab.images import planted
from attrdrop.models import ResNet

WEIGHTS = Path(__file__).parents[1] / "data" / "planted_truth.npz"


def images(count: int, seed: int, part: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images (count, 3, 32, 32), labels, and masks of the digits' ink (count, 32, 32)."""
    x, labels, masks = planted.scenes(count, seed, part)
    return (x - 0.45) / 0.25, labels, masks


def classifier(is_trained: bool = True) -> nn.Module:
    """A narrow residual network of three stages."""
    model = ResNet([1, 1, 1], planted.CLASSES, width=12)
    if is_trained:
        with np.load(WEIGHTS) as arrays:
            model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return model


def train(model: nn.Module, epochs: int = 12, batch: int = 50) -> None:
    x, labels, _ = images(3000, seed=0, part=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * len(x) // batch)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(batch):
            functional.cross_entropy(model(x[chosen]), labels[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


if __name__ == "__main__":
    torch.manual_seed(0)
    model = classifier(is_trained=False)
    train(model)
    WEIGHTS.parent.mkdir(exist_ok=True)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(
        WEIGHTS, **{name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in arrays.items()}
    )
    x, labels, _ = images(400, seed=1, part=1)
    print(f"accuracy {(model.eval()(x).argmax(1) == labels).float().mean():.3f}, {WEIGHTS.stat().st_size} bytes")
