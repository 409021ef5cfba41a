"""An experiment on images."""

from attrdrop.lab.images.report import ImageReport
from attrdrop.lab.images.training import ImageTrainer
from attrdrop.lab.runs.experiment import Experiment


class ImageExperiment(Experiment):
    """Every arm at every seed on images."""

    trainer_type = ImageTrainer
    report_type = ImageReport
