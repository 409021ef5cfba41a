"""What RelDrop looks at and what it hides: images, their relevance, and what is left of them.

Digits pasted on photographs, so that everyone can see what tells the class. Needs no download; a minute on a CPU.
Writes reldrop_pictures.png.

python examples/reldrop_pictures.py
"""

import math
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import attrdrop
from attrdrop.lab.images.planted import scenes
from attrdrop.models import ResNet
from attrdrop.plots.images import occlusion_sheet


def main(epochs: int = 12, size: int = 1000, test_size: int = 500, target: Path | None = None) -> float:
    """Train plainly, then draw four test images; returns the accuracy on the test images."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y, _ = scenes(size, seed=0, part=0)
    test_x, test_y, _ = scenes(test_size, seed=1, part=1)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)

    model = ResNet([1, 1, 1], classes=4, width=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * math.ceil(size / 64))
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(size).split(64):
            loss = cross_entropy(model((x[batch] - mean) / std), y[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}, last loss {loss.item():.3f}")

    model.eval()
    with torch.no_grad():
        right = model((test_x - mean) / std).argmax(1) == test_y
    shown = right.nonzero().flatten()[:4]  # of which the model is right
    inputs = (test_x[shown] - mean) / std
    relevance = attrdrop.lrp.relevance(model, inputs, test_y[shown])
    model.train()  # in evaluation RelDrop changes nothing
    occluded = attrdrop.RelDrop(model, p=1.0, alpha=0.0)(inputs, test_y[shown])
    target = target or Path("reldrop_pictures.png")
    occlusion_sheet(test_x[shown], relevance, (occluded * std + mean).clamp(0, 1), target)
    accuracy = right.float().mean().item()
    print(f"accuracy on {test_size} other images {accuracy:.3f}; images, relevance, and what is left: {target}")
    return accuracy


if __name__ == "__main__":
    main()
