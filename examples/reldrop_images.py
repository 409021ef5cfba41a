"""RelDrop, then RelCutMix, in a plain PyTorch loop: a narrow ResNet on scikit-learn's 8x8 digits.

Needs no download; half a minute on a CPU. Writes what the model was shown to reldrop_images.png.

python examples/reldrop_images.py
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

import attrdrop
from attrdrop.models import ResNet
from attrdrop.plots.images import contact_sheet


def load(size: int, test_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test digits in [0, 1], enlarged to 16x16, with their labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    images = interpolate(images, scale_factor=2, mode="bilinear")
    order = torch.randperm(len(images))[: size + test_size]
    x, y = images[order], torch.from_numpy(labels)[order]
    return x[:size], y[:size], x[size:], y[size:]


def main(epochs: int = 6, size: int = 1000, test_size: int = 500, target: Path | None = None) -> float:
    """Train with RelDrop in the first half and RelCutMix in the second; returns the accuracy on the test split."""
    torch.set_num_threads(1)  # so small a model gains nothing from more
    torch.manual_seed(0)
    x, y, test_x, test_y = load(size, test_size)
    mean, std = x.mean(), x.std()

    model = ResNet([1, 1, 1], classes=10, width=8, channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    reldrop = attrdrop.RelDrop(model, p=0.5, alpha=0.5)
    mix = attrdrop.RelCutMix(model, num_classes=10, p=0.5, alpha=0.5)

    for epoch in range(1, epochs + 1):
        model.train()
        transform = reldrop if 2 * epoch <= epochs else mix
        transform.reset_statistics()
        for batch in torch.randperm(len(x)).split(50):
            images, labels = (x[batch] - mean) / std, y[batch]
            if transform is reldrop:
                images = reldrop(images, labels)  # the last step before the model
            else:
                images, labels = mix(images, labels)  # labels are shares now
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found = transform.statistics()
        print(
            f"epoch {epoch}, {type(transform).__name__}: last loss {loss.item():.3f}, {found.occluded} of "
            f"{found.images} images occluded on {found.area:.1%} of their area, {found.attributed} attributed"
        )

    always = attrdrop.RelDrop(model, p=1.0, alpha=0.0)
    shown = always((x[:32] - mean) / std, y[:32])
    target = target or Path("reldrop_images.png")
    contact_sheet((shown * std + mean).clamp(0, 1), target, titles=[f"{label}" for label in y[:32].tolist()])

    model.eval()
    with torch.no_grad():
        accuracy = (model((test_x - mean) / std).argmax(1) == test_y).float().mean().item()
    print(f"accuracy on {len(test_y)} other digits {accuracy:.3f}; what RelDrop shows to the model: {target}")
    return accuracy


if __name__ == "__main__":
    main()
