"""Every arm at every seed, with results on disk after each run; what is done already is not done again."""

import abc
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from attrdrop.lab.runs.report import RESULTS, ArmReport
from attrdrop.lab.runs.training import ArmTrainer
from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.runs.results import check_output, described, in_turn, replace_file, unwritable


class ArmExperiment(abc.ABC):
    """Validates everything at construction and writes nothing until `run`."""

    trainer_type: ClassVar[type[ArmTrainer]]
    report_type: ClassVar[type[ArmReport]]

    def __init__(self, settings: Any, task: Any, device: torch.device, output: Path, overwrite: bool = False) -> None:
        self.settings, self.output = settings, output
        self.trainer: Any = self.trainer_type(settings, task, device)
        header = described(device) | {
            "kind": self.report_type.kind,
            "task": {
                "name": task.name,
                "labels": task.label_names,
                "sizes": {"train": len(task.train.labels), "test": len(task.test.labels)},
                "checksums": [task.train.checksum(), task.test.checksum()],
                **self._facts(task),
            },
            "settings": dataclasses.asdict(settings),
        }
        self.report = self.report_type(header, self._finished_runs(header, overwrite))
        self.report.header["complete"] = not self.planned
        if self.planned:
            self.trainer.check()

    @property
    def planned(self) -> list[tuple[int, str]]:
        """What is left to do. The order of arms turns from seed to seed, so that a slow minute hits all of them."""
        done = {(run["seed"], run["arm"]) for run in self.report.runs}
        return [run for run in in_turn(self.settings.arms, self.settings.seed_list) if run not in done]

    def work(self, arm: str) -> float:
        """Rough cost of one run, in the units that `run` reports."""
        return self.trainer.work(arm)

    def run(self, starting: Callable[[str, int], None], advance: Callable[[float], None]) -> None:
        """Do every run that is left, announcing each; whatever ends this early, the finished runs are on disk."""
        self._save(figures=not self.planned)
        try:
            for seed, arm in self.planned:
                starting(arm, seed)
                self._run_one(arm, seed, advance)
                self.report.header["complete"] = not self.planned
                self._save(figures=not self.planned)
        except BaseException:  # it may have come in the middle of a file
            self._save()
            raise

    @abc.abstractmethod
    def _facts(self, task: Any) -> dict[str, Any]:
        """What else tells one task from another."""

    @abc.abstractmethod
    def _drawn(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Figures of a trained model, by file name."""

    def _run_one(self, arm: str, seed: int, advance: Callable[[float], None]) -> None:
        try:
            run, model = self.trainer.run(arm, seed, advance)
        except (RunError, InputError, torch.OutOfMemoryError) as error:  # InputError: an image that cannot be read
            advice = "; try a smaller --batch-size." if isinstance(error, torch.OutOfMemoryError) else ""
            raise RunError(f"{arm}, seed {seed}: {error}{advice}") from error
        if seed == self.settings.first_seed:
            figures = self._drawn(arm, model)
            try:
                for name, content in figures.items():
                    replace_file(self.output / name, content)
            except OSError as error:
                raise unwritable(self.output, error) from error
        self.report.runs.append(dataclasses.asdict(run))  # last: a run that counts as finished has its figures

    def _save(self, figures: bool = True) -> None:
        try:
            self.report.save(self.output, figures)
        except OSError as error:
            raise unwritable(self.output, error) from error

    def _finished_runs(self, header: dict[str, Any], overwrite: bool) -> list[dict[str, Any]]:
        """Runs of the very same experiment that the folder holds."""
        output = self.output
        if overwrite or not (output / RESULTS).is_file():
            check_output(output, overwrite)
            return []
        found = self.report_type.load(output, "; give another folder, or --overwrite")
        if any(found.header.get(key) != json.loads(json.dumps(header[key])) for key in ("settings", "task")):
            raise InputError(
                f"--output: {output} holds results of other settings or data; give another folder, or --overwrite."
            )
        header["started"] = found.header["started"]
        return found.runs
