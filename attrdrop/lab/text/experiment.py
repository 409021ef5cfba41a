"""An experiment on text."""

from attrdrop.lab.runs.experiment import Experiment
from attrdrop.lab.text.report import TextReport
from attrdrop.lab.text.training import Trainer


class TextExperiment(Experiment):
    """Every arm at every seed on text."""

    trainer_type = Trainer
    report_type = TextReport
