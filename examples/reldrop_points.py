"""RelDrop on point clouds in a plain PyTorch loop: a narrow PointNet++ on the shipped furniture shapes.

Needs no download; a minute on a CPU. Writes what was dropped to reldrop_points.png.

python examples/reldrop_points.py
"""

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import attrdrop
from attrdrop import metrics
from attrdrop.lab.points.data import Augmentation, furniture
from attrdrop.lab.points.readers import Reading
from attrdrop.models import pointnet2_ssg
from attrdrop.plots.points import dropped_clouds


def main(epochs: int = 8, points: int = 128, test_size: int = 109, target: Path | None = None) -> float:
    """Train with RelDrop; returns the accuracy on the test split."""
    torch.set_num_threads(1)  # so small a model gains nothing from more
    torch.manual_seed(0)
    task, augmentation = furniture(Reading(points)).limited(None, test_size), Augmentation()
    order = torch.Generator().manual_seed(0)

    model = pointnet2_ssg(len(task.label_names), points=points, width=0.25)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    reldrop = attrdrop.RelDropPoints(model, alpha=0.5, beta=0.2)

    for epoch in range(1, epochs + 1):
        model.train()
        reldrop.reset_statistics()
        for batch in torch.randperm(len(task.train.labels), generator=order).split(16)[:-1]:
            clouds, labels = task.batch(task.train, batch, augmentation, order), task.train.labels[batch]
            loss = cross_entropy(model(reldrop(clouds, labels)), labels)  # the last step before the model
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found = reldrop.statistics()
        print(f"epoch {epoch}: last loss {loss.item():.3f}, {found.dropped / found.points:.1%} of the points dropped")

    shown = reldrop(clouds[:8], labels[:8])
    target = target or Path("reldrop_points.png")
    dropped_clouds(clouds[:8], (shown != clouds[:8]).any(2), target, [task.label_names[i] for i in labels[:8].tolist()])

    test = task.batch(task.test, torch.arange(len(task.test.labels)), None, None)
    curve = metrics.point_loss_curve(model, test, task.test.labels, fractions=[0.0, 0.5], repeats=3)
    accuracy, halved = curve.scores.mean(0).tolist()
    print(f"accuracy {accuracy:.3f}, with half of the points {halved:.3f}; what was dropped: {target}")
    return accuracy


if __name__ == "__main__":
    main()
