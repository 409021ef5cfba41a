"""Runs a plan: keeps the data that a process has read, trains on it, and returns the measures."""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import Trial
from attrdrop.lab.protocol.plan import Point, Setting
from attrdrop.lab.runs.settings import options_of

SEARCH, FINAL = "search", "final"  # phases: the first sees no test example
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepare:
    """Makes a bench, also in another process."""

    settings: tuple[Setting, ...]

    def __call__(self, epoch: Say = lambda text: None) -> "Bench":
        return Bench({setting.name: setting for setting in self.settings}, epoch)


@dataclass(frozen=True)
class Subject:
    """What a setting trains on in one phase: options of all arms, a trainer for some of them and a seed, the report
    whose columns are measures, and what tells the data from others."""

    options: Any
    trainer: Callable[[Any, int], Any]
    report_type: Any
    checksum: Any


class Bench:
    """Called with a trial, gives its measures; `epoch` is told how each epoch went."""

    def __init__(self, settings: dict[str, Setting], epoch: Say) -> None:
        self.settings, self.epoch = settings, epoch
        self._subjects: dict[tuple[str, str], Subject] = {}

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """All that the report of the command has a column for, but times and comparisons."""
        trainer = self.trainer(
            self.settings[trial["task"]], trial["phase"], trial["arm"], trial["point"], trial["seed"]
        )
        (arm,) = trainer.settings.arms
        run = dataclasses.asdict(trainer.trained(arm, trial["seed"], epoch=self.epoch)[0])
        report_type = self.subject(self.settings[trial["task"]], trial["phase"]).report_type
        report = report_type({**trainer.facts(), "settings": dataclasses.asdict(trainer.settings)}, [run])
        measures = [column for column in report.columns if not (column.compares or column.steps)]
        return {column.name: column.read(run, None) for column in measures}

    def trainer(self, setting: Setting, phase: str, arm: str, point: Point, seed: int) -> Any:
        """The one of a trial. Raises InputError where the point has something that is no option, or cannot be."""
        subject = self.subject(setting, phase)
        if unknown := point.keys() - options_of(type(subject.options)).keys():
            raise InputError(f"{setting.name}: {arm}: {min(unknown)!r} is not an option of {setting.command}.")
        settings = dataclasses.replace(subject.options, **{**point, "arms": (setting.kinds[arm],)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about the data was told when the plan was checked
            return subject.trainer(settings, seed)

    def subject(self, setting: Setting, phase: str) -> Subject:
        """The data of a setting in one phase; read once."""
        key = setting.name, phase
        if key not in self._subjects:
            self._subjects[key] = _SUBJECTS[setting.command](setting, phase)
        return self._subjects[key]


def _texts(setting: Setting, phase: str) -> Subject:
    from attrdrop.lab.text import tasks
    from attrdrop.lab.text.report import TextReport
    from attrdrop.lab.text.settings import Data, Settings
    from attrdrop.lab.text.training import Trainer

    data, options = _made(setting, Data, Settings)
    task = tasks.load_task(data.task, data.task_type, data.other, data.encoding)
    task = task.limited(data.train_size, data.dev_size, data.test_size)
    if phase == SEARCH:
        task = dataclasses.replace(task, test=None, other={})
    whole = Trainer(options, task)

    def trainer(settings: Any, seed: int) -> Trainer:
        return whole.changed(settings, task.shots(setting.shots, seed).train if setting.shots else None)

    return Subject(options, trainer, TextReport, whole.facts()["checksums"])


def _images(setting: Setting, phase: str) -> Subject:
    from attrdrop.lab.images.data import load_task
    from attrdrop.lab.images.report import ImageReport
    from attrdrop.lab.images.settings import ImageData, ImageSettings
    from attrdrop.lab.images.training import ImageTrainer

    data, options = _made(setting, ImageData, ImageSettings)
    task = load_task(data.dataset, data.data, data.image_size, data.classes, data.boxes)
    return _from_scratch(setting, phase, task, data, options, ImageTrainer, ImageReport)


def _points(setting: Setting, phase: str) -> Subject:
    from attrdrop.lab.points.data import load_task
    from attrdrop.lab.points.readers import Reading
    from attrdrop.lab.points.report import PointReport
    from attrdrop.lab.points.settings import PointData, PointSettings
    from attrdrop.lab.points.training import PointTrainer

    data, options = _made(setting, PointData, PointSettings)
    task = load_task(data.dataset, data.data, Reading(options.points, options.sampling, options.normals))
    return _from_scratch(setting, phase, task, data, options, PointTrainer, PointReport)


def _from_scratch(
    setting: Setting, phase: str, task: Any, data: Any, options: Any, trainer_type: Any, report_type: Any
) -> Subject:
    """In the search, the development split replaces the test split; later it is not needed."""
    if data.dev_size is None or setting.shots:
        raise InputError(f"{setting.name}: {setting.command} needs dev_size among the options, and takes no shots.")
    task = task.limited(data.train_size, data.test_size, data.dev_size)
    task = dataclasses.replace(task, test=task.dev if phase == SEARCH else task.test, dev=None)
    checksum = trainer_type(options, task).facts()["task"]["checksums"]
    return Subject(options, lambda settings, seed: trainer_type(settings, task), report_type, checksum)


def _made(setting: Setting, *kinds: type) -> list[Any]:
    """The options of a command, each of its dataclasses with those that it has."""
    known = [options_of(kind) for kind in kinds]
    if unknown := setting.options.keys() - set().union(*known):
        raise InputError(f"{setting.name}: {min(unknown)!r} is not an option of {setting.command}.")
    given = setting.options
    return [
        kind(**{name: _typed(own[name][0], given[name]) for name in own if name in given})
        for kind, own in zip(kinds, known, strict=True)
    ]


def _typed(kind: Any, value: Any) -> Any:
    """A value from TOML, converted to what an option takes."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if Path in (kind, *get_args(kind)) else value


_SUBJECTS = {"finetune": _texts, "train-images": _images, "train-points": _points}
