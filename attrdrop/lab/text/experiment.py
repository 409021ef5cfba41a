"""Every arm at every seed, with results on disk after each run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from attrdrop.lab.errors import RunError
from attrdrop.lab.runs.results import check_output, described, in_turn, unwritable
from attrdrop.lab.text.models import quiet
from attrdrop.lab.text.report import Report
from attrdrop.lab.text.settings import Settings
from attrdrop.lab.text.tasks import Task
from attrdrop.lab.text.training import Trainer


class Experiment:
    """Validates everything at construction and writes nothing until `run`."""

    def __init__(self, settings: Settings, task: Task, output: Path, overwrite: bool = False) -> None:
        check_output(output, overwrite)
        self.settings, self.output = settings, output
        quiet()
        self.trainer = Trainer(settings, task)
        self.trainer.check()
        self.report = Report(_header(settings, task, self.trainer), runs=[])

    @property
    def planned(self) -> list[tuple[int, str]]:
        """The order of arms turns from seed to seed, so that a slow minute of the machine hits all of them."""
        return in_turn(self.settings.arms, self.settings.seed_list)

    def work(self, arm: str) -> float:
        """Rough cost of one run, in the units that `run` reports."""
        return self.trainer.work(arm)

    def run(self, starting: Callable[[str, int], None], advance: Callable[[float], None]) -> None:
        """Do every run, announcing each; whatever ends this early, the finished runs are on disk."""
        self._save()
        try:
            for seed, arm in self.planned:
                starting(arm, seed)
                self.report.runs.append(self._run_one(arm, seed, advance))
                self._save()
            self.report.header["complete"] = True
        finally:
            self._save()

    def _run_one(self, arm: str, seed: int, advance: Callable[[float], None]) -> dict[str, Any]:
        try:
            return dataclasses.asdict(self.trainer.run(arm, seed, advance))
        except (RunError, torch.OutOfMemoryError) as error:
            advice = "; try a smaller --batch-size." if isinstance(error, torch.OutOfMemoryError) else ""
            raise RunError(f"{arm}, seed {seed}: {error}{advice}") from error

    def _save(self) -> None:
        try:
            self.report.save(self.output)
        except OSError as error:
            raise unwritable(self.output, error) from error


def _header(settings: Settings, task: Task, trainer: Trainer) -> dict[str, Any]:
    header = described(trainer.device) | {
        "task": {"name": task.name, "labels": task.label_names, **trainer.facts()},
        "settings": dataclasses.asdict(settings),
    }
    header["environment"]["transformers"] = transformers.__version__
    return header
