"""Pictures of relevance by several rules side by side."""

import io

from torch import nn

from attrdrop import metrics
from attrdrop.lab.images.training import ImageTrainer
from attrdrop.lab.runs.maps import relevance_by, rules_of
from attrdrop.lab.runs.settings import MapOptions
from attrdrop.lab.runs.training import spaced
from attrdrop.plots import images as image_plots


def drawn(trainer: ImageTrainer, model: nn.Module, options: MapOptions) -> bytes:
    """A PNG: validation images, each beside its relevance by every rule, with rank accuracy where it is known."""
    examples = trainer.watched
    indices = spaced(examples, options.samples)
    x, y = trainer.batch(examples, indices)
    masks, names = examples.objects(indices), trainer.task.label_names
    maps, scores = {}, {}
    for label, rule in rules_of(options).items():
        maps[label] = relevance_by(model.eval(), x, y, rule).cpu()
        if masks is not None:
            accuracy = metrics.relevance_rank_accuracy(maps[label], masks)
            scores[label] = ["" if value != value else f"RRA {100 * value:.0f}\u00a0%" for value in accuracy.tolist()]
    figure = io.BytesIO()
    pictures = examples.pixels(indices, "none", None)
    titles = [names[label] for label in y.tolist()]
    image_plots.compared_maps(pictures, maps, figure, titles, scores, "relevance of the true class")
    return figure.getvalue()
