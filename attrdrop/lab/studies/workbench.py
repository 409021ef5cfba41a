"""Runs trials: keeps the data sets that a process has read, and trains, times or draws with them."""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attrdrop.lab.names import Trial
from attrdrop.lab.studies import costs, maps, probe
from attrdrop.lab.studies.plan import COSTS, MAPS, PROBE, VARIED
from attrdrop.lab.text import tasks
from attrdrop.lab.text.settings import Settings
from attrdrop.lab.text.training import Trainer


@dataclass(frozen=True)
class Prepare:
    """Makes a workbench, also in another process: what all trials share."""

    settings: Settings
    files: dict[str, Any] | None = None  # arguments of tasks.from_files, in the place of named tasks
    other: tuple[str, ...] = ()
    encoding: str = "utf-8"  # of files that are other sets of named tasks
    train_size: int | None = None
    dev_size: int | None = None
    test_size: int | None = None

    def __call__(self, epoch: Callable[[str], None] = lambda text: None) -> "Workbench":
        return Workbench(self, epoch)

    def load(self, name: str) -> tasks.Task:
        """The task of a trial: a name, with the task type after a colon where it is not the task's own."""
        if self.files is not None:
            task = tasks.from_files(**self.files, other=self.other)
        else:
            name, _, kind = name.partition(":")
            task = tasks.load_task(name, kind or None, tasks.fitting(name, self.other), self.encoding)
        return task.limited(self.train_size, self.dev_size, self.test_size)


class Workbench:
    """Called with a trial, gives its result; `epoch` is told how each epoch went."""

    def __init__(self, prepare: Prepare, epoch: Callable[[str], None]) -> None:
        self.prepare, self.epoch = prepare, epoch
        self._trainers: dict[str, Trainer] = {}

    def __call__(self, trial: Trial) -> dict[str, Any]:
        trainer, arm = self.trainer(trial), trial["arm"]
        if arm == COSTS:
            return costs.measure(trainer)
        if arm == MAPS:
            return maps.draw(trainer, trial["seed"])
        if arm == PROBE:
            return probe.measure(trainer, trial["seed"])
        run, _ = trainer.trained(arm, trial["seed"], epoch=self.epoch)
        return dataclasses.asdict(run) | {
            "train_size": len(trainer.train_rows),
            "metric": dataclasses.asdict(trainer.metric),
        }

    def trainer(self, trial: Trial) -> Trainer:
        """One with the settings of the trial and its part of the training examples."""
        whole = self._whole(trial["task"])
        varied = {name: value for name, value in trial.items() if name in VARIED}
        settings = dataclasses.replace(self.prepare.settings, **varied)
        train = None
        if "share" in trial:
            train = whole.task.share(trial["share"], trial["seed"]).train
        elif "shots" in trial:
            train = whole.task.shots(trial["shots"], trial["seed"]).train
        return whole.changed(settings, train)

    def _whole(self, name: str) -> Trainer:
        if name not in self._trainers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # given when the sweep was checked
                self._trainers[name] = Trainer(self.prepare.settings, self.prepare.load(name))
        return self._trainers[name]
