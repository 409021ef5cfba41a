"""An experiment on point clouds."""

from attrdrop.lab.points.report import PointReport
from attrdrop.lab.points.training import PointTrainer
from attrdrop.lab.runs.experiment import Experiment


class PointExperiment(Experiment):
    """Every arm at every seed on point clouds."""

    trainer_type = PointTrainer
    report_type = PointReport
