"""An experiment on images: what tells one task from another, and what is drawn of a trained model."""

import io
from typing import Any

from torch import nn

from attrdrop.lab.images.data import ImageTask
from attrdrop.lab.images.report import OCCLUDED_FIGURE, ImageReport, maps_figure
from attrdrop.lab.images.settings import RELDROP
from attrdrop.lab.images.training import ImageTrainer
from attrdrop.lab.runs.experiment import ArmExperiment
from attrdrop.plots import images as image_plots


class ImageExperiment(ArmExperiment):
    """Every arm at every seed on images."""

    trainer_type = ImageTrainer
    report_type = ImageReport

    def _facts(self, task: ImageTask) -> dict[str, Any]:
        return {"pixels": [task.channels, *task.size]}

    def _drawn(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Relevance on test images, and for RelDrop what it shows to the model."""
        figure = io.BytesIO()
        images, relevance, titles = self.trainer.maps(model)
        image_plots.heat_maps(images, relevance, figure, titles)
        figures = {maps_figure(arm): figure.getvalue()}
        if arm == RELDROP:
            figure = io.BytesIO()
            image_plots.contact_sheet(self.trainer.occluded(model), figure)
            figures[OCCLUDED_FIGURE] = figure.getvalue()
        return figures
