"""Clouds coloured by relevance, by several rules side by side."""

import io

from torch import nn

from attrdrop.lab.points.training import PointTrainer
from attrdrop.lab.runs.maps import relevance_by, rules_of
from attrdrop.lab.runs.settings import MapOptions
from attrdrop.lab.runs.training import spaced
from attrdrop.plots import points as point_plots


def drawn(trainer: PointTrainer, model: nn.Module, options: MapOptions) -> bytes:
    """A PNG: validation clouds, each by every rule."""
    x, y = trainer.batch(trainer.watched, spaced(trainer.watched, options.samples))
    maps = {label: relevance_by(model.eval(), x, y, rule).cpu() for label, rule in rules_of(options).items()}
    figure = io.BytesIO()
    titles = [trainer.task.label_names[label] for label in y.tolist()]
    point_plots.compared_clouds(x.cpu(), maps, figure, titles, "relevance of the true class")
    return figure.getvalue()
