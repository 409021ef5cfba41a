"""Every arm at every seed, with results on disk after each run; finished runs are not repeated."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.names import Record, Trial
from attrdrop.lab.runs.models import ModelStore
from attrdrop.lab.runs.pool import open_pool
from attrdrop.lab.runs.report import Report
from attrdrop.lab.runs.results import RESULTS, described, in_turn, readable, replace_file, unwritable
from attrdrop.lab.runs.store import ADVICE, TrialStore
from attrdrop.lab.runs.variants import changes_of

CARD = ("kind", "environment", "task", "settings")  # parts of the header that a saved model's card has too
Advance = Callable[[float], None]  # is told of work that was done, in the units of `Experiment.work`
Say = Callable[[str], None]  # is told how an epoch went


class Trainer(Protocol):
    """Runs (arm, seed) after (arm, seed) on one task."""

    device: torch.device

    def __init__(self, settings: Any, task: Any) -> None: ...

    def facts(self) -> dict[str, Any]:
        """What distinguishes tasks: parts of the header, at least "task"."""

    def check(self) -> None:
        """Raise InputError where an arm cannot work."""

    def work(self, arm: str) -> float:
        """Rough cost of a run."""

    def trained(self, arm: str, seed: int, advance: Advance, epoch: Say) -> tuple[Any, nn.Module]:
        """A run, a dataclass, and the model."""

    def figures(self, arm: str, model: nn.Module) -> dict[str, bytes]:
        """Figures of a trained model, by file name."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model so that it can be loaded where this package is not installed."""

    def rank(self, run: dict[str, Any]) -> tuple[float, ...]:
        """Of a finished run; the best one's model is kept."""


class Experiment:
    """Validates everything at construction and writes nothing until `run`.

    Args:
        load: gives the task. At more than one job it is pickled and called in every process, and so must be a function
            of a module, or a partial of one.
        jobs: runs at the same time, each in a process of its own.
        threads: of PyTorch, in every process.
        save: whether the best model of each arm is kept in the folder `models`. A run that is finished and whose model
            is wanted and not there is done again.

    Raises:
        InputError: the settings cannot work, or the folder holds something else.
    """

    trainer_type: ClassVar[type[Trainer]]
    report_type: ClassVar[type[Report]]

    def __init__(
        self,
        settings: Any,
        load: Callable[[], Any],
        output: Path,
        overwrite: bool = False,
        jobs: int = 1,
        threads: int | None = None,
        save: bool = False,
    ) -> None:
        self.settings, self.load, self.output, self.jobs, self.threads = settings, load, output, jobs, threads
        self.trials: list[Trial] = [
            {"arm": arm, "seed": seed} for seed, arm in in_turn(settings.arms, settings.seed_list)
        ]
        self._trainer = self.trainer_type(settings, load())
        header = described(self._trainer.device) | {
            "kind": self.report_type.kind,
            "jobs": jobs,
            **self._trainer.facts(),
            "settings": dataclasses.asdict(settings),
        }
        self.saving = Saving(output, {name: header[name] for name in CARD}) if save else None
        self.store = TrialStore(output, header, overwrite, RESULTS)
        with readable(output, self.report_type.kind, ADVICE):
            self.report = self.report_type(self.store.header, self._finished())
            self.report.summary()  # needs all that this version writes
        if self.pending:
            self._trainer.check()

    @property
    def pending(self) -> list[Trial]:
        """The remaining runs. The order of arms turns from seed to seed, so that a slow minute hits all of them."""
        return self.store.pending(self.trials) + self._unsaved()

    @property
    def total(self) -> int:
        """Number of runs."""
        return len(self.trials)

    @property
    def done(self) -> int:
        """Runs that are finished."""
        return self.total - len(self.pending)

    @property
    def work_left(self) -> float:
        """Rough cost of the remaining runs."""
        return sum(map(self.work, self.pending))

    def work(self, trial: Trial) -> float:
        """Rough cost of a run."""
        return self._trainer.work(trial["arm"])

    def run(
        self,
        starting: Callable[[Trial], None],
        finished: Callable[[Record], None],
        failed: Callable[[Trial, str], None],
        advance: Advance,
        epoch: Say = lambda text: None,
    ) -> int:
        """Do every remaining run, and return how many failed; whatever ends this early, finished runs are on disk.

        `starting`, `finished` and `failed` are told of runs; what `failed` raises ends the experiment. `advance` is
        told of work within a run, and `epoch` of epochs, where there is one job.
        """
        places = {(trial["arm"], trial["seed"]): place for place, trial in enumerate(self.trials)}

        told = ""

        def kept(record: Record) -> None:
            nonlocal told
            self.report.runs.append(_result(record))
            self.report.runs.sort(key=lambda run: places[run["arm"], run["seed"]])
            self._settle([record["trial"]["arm"]])
            finished(record)
            self._save(figures=False)
            if (sign := self.report.sign()) and not told:
                warnings.warn(sign, stacklevel=2)
            told = sign

        self.store.header = self.report.content()
        place = (self.output, self.settings.first_seed, self.saving)
        prepare = partial(_prepared, type(self).trainer_type, self.settings, self.load, place)
        own = partial(Runner, self._trainer, *place, advance, epoch)
        with open_pool(prepare if self.jobs > 1 else own, self.store, self.jobs, self.threads) as pool:
            try:
                self._tidy()
                for trial in self._unsaved():
                    self.store.forget(trial)
                self.report.runs = self._finished()
                self._save(figures=False)
                return pool.run(self.trials, starting, kept, failed)
            finally:
                self.report.runs = self._finished()  # also one that was interrupted just after it was kept
                self._tidy()
                self._save()

    def _ranked(self, arm: str) -> list[int]:
        """The seeds of the finished runs of an arm, the best first."""
        records = self.store.results([trial for trial in self.trials if trial["arm"] == arm])
        ranked = sorted(records, key=lambda record: self._trainer.rank(record["result"]), reverse=True)
        return [record["trial"]["seed"] for record in ranked]

    def _tidy(self) -> None:
        """Put right what an interrupt or a kill left of models; nobody is writing one."""
        if self.saving:
            self.saving.models.tidy()
            self._settle(self.settings.arms)

    def _settle(self, arms: Sequence[str]) -> None:
        """Have the best models of these arms where they belong."""
        if self.saving is None:
            return
        try:
            for arm in arms:
                self.saving.models.settle(arm, self._ranked(arm))
        except OSError as error:
            raise unwritable(self.output, error) from error

    def _unsaved(self) -> list[Trial]:
        """The best finished run of each arm, where its model is wanted and not there."""
        if self.saving is None:
            return []
        best = [(arm, ranked[0]) for arm in self.settings.arms if (ranked := self._ranked(arm))]
        return [{"arm": arm, "seed": seed} for arm, seed in best if not self.saving.models.has(arm, seed)]

    def _finished(self) -> list[dict[str, Any]]:
        return [_result(record) for record in self.store.results(self.trials)]

    def _save(self, figures: bool = True) -> None:
        self.report.header["complete"] = len(self.report.runs) == len(self.trials)
        try:
            self.report.save(self.output, figures)
        except OSError as error:
            raise unwritable(self.output, error) from error


class Saving:
    """Where models go, and what their cards say of the experiment."""

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.models, self.card = ModelStore(folder), card


class Runner:
    """Called with a trial, gives its run; figures of the first seed and wanted models go into the folder."""

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        first_seed: int,
        saving: Saving | None = None,
        advance: Advance = lambda work: None,
        epoch: Say = lambda text: None,
    ) -> None:
        self.trainer, self.folder, self.first_seed, self.saving = trainer, folder, first_seed, saving
        self.advance, self.epoch = advance, epoch

    def __call__(self, trial: Trial) -> dict[str, Any]:
        arm, seed = trial["arm"], trial["seed"]
        try:
            run, model = self.trainer.trained(arm, seed, self.advance, self.epoch)
            is_shown = seed == self.first_seed and not changes_of(arm)
            figures = self.trainer.figures(arm, model) if is_shown else {}
        except InputError as error:  # an image that cannot be read
            raise RunError(str(error)) from error
        try:
            for name, content in figures.items():
                replace_file(self.folder / name, content)
            if self.saving:
                self.saving.models.save(arm, seed, partial(self.trainer.save, model), self.saving.card)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return dataclasses.asdict(run)


def _prepared(trainer_type: type[Trainer], settings: Any, load: Callable[[], Any], place: tuple[Any, ...]) -> Runner:
    """The one of another process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first process has given them
        return Runner(trainer_type(settings, load()), *place)


def _result(record: Record) -> dict[str, Any]:
    return record["result"] | {"jobs": record["jobs"]}
