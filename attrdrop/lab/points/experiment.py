"""An experiment on point clouds: what tells one task from another, and what is drawn of a trained model."""

import io
from typing import Any

from torch import nn

from attrdrop.lab.points.data import PointTask
from attrdrop.lab.points.report import DROPPED_FIGURE, PointReport, relevance_figure
from attrdrop.lab.points.settings import RELDROP
from attrdrop.lab.points.training import PointTrainer
from attrdrop.lab.runs.experiment import ArmExperiment
from attrdrop.plots import points as point_plots


class PointExperiment(ArmExperiment):
    """Every arm at every seed on point clouds."""

    trainer_type = PointTrainer
    report_type = PointReport

    def _facts(self, task: PointTask) -> dict[str, Any]:
        return {"points": [task.points, task.channels]}

    def _drawn(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Relevance on test clouds, and for RelDrop what it takes away."""
        figure = io.BytesIO()
        points, relevance, titles = self.trainer.maps(model)
        point_plots.relevance_clouds(points, relevance, figure, titles)
        figures = {relevance_figure(arm): figure.getvalue()}
        if arm == RELDROP:
            figure = io.BytesIO()
            points, dropped, titles = self.trainer.dropped(model)
            point_plots.dropped_clouds(points, dropped, figure, titles)
            figures[DROPPED_FIGURE] = figure.getvalue()
        return figures
