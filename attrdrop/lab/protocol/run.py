"""A study: a search for every arm, then fresh runs of the chosen settings; results are on disk after each run."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import Record, Trial
from attrdrop.lab.protocol.bench import FINAL, SEARCH, Prepare
from attrdrop.lab.protocol.plan import LOWER, Point, Setting, load
from attrdrop.lab.protocol.report import StudyReport, chosen, rows_of
from attrdrop.lab.runs.pool import open_pool
from attrdrop.lab.runs.results import described
from attrdrop.lab.runs.store import TrialStore

STUDY = "study.json"
Notice = Callable[..., None]


class Study:
    """Validates everything at construction and writes nothing until `run`.

    Args:
        plan: a file, see `attrdrop.lab.protocol.plan`. What a folder holds of the same settings on the same data is not
            done again, also where the plan has grown.

    Raises:
        InputError: the plan cannot work, or the folder holds something else.
    """

    def __init__(
        self, plan: Path, output: Path, overwrite: bool = False, jobs: int = 1, threads: int | None = None
    ) -> None:
        self.settings, self.output, self.jobs, self.threads = load(plan), output, jobs, threads
        self._prepare = Prepare(tuple(self.settings))
        self._bench = self._prepare()
        self._checksums = {setting.name: self._checked(setting) for setting in self.settings}
        header = described(torch.device("cpu")) | {"kind": "study", "jobs": jobs, "plan": plan.name}
        self.store = TrialStore(output, header, overwrite, STUDY)
        self.report = self._report()

    @property
    def total(self) -> int:
        """Runs in all."""
        return sum(
            sum(min(setting.trials, len(setting.grid(arm))) for arm in setting.arms) * len(setting.search_seeds)
            + len(setting.all_arms) * len(setting.seeds)
            for setting in self.settings
        )

    @property
    def done(self) -> int:
        """Those that are finished."""
        return len(self._records())

    @property
    def work_left(self) -> float:
        """Rough cost of the others: all count alike."""
        return max(self.total - self.done, 0)

    def work(self, trial: Trial) -> float:
        """Rough cost of a run."""
        return 1.0

    def run(
        self, starting: Notice, finished: Notice, failed: Notice, advance: Notice, epoch: Notice = lambda text: None
    ) -> int:
        """Search, choose, and run what was chosen, setting after setting; returns how many runs failed."""
        prepare = self._prepare if self.jobs > 1 else partial(self._prepare, epoch)
        failures = 0
        with open_pool(prepare, self.store, self.jobs, self.threads) as pool:
            do = partial(pool.run, starting=starting, finished=finished, failed=failed)
            try:
                for setting in self.settings:
                    for arm in setting.arms:
                        failures += self._search(setting, arm, do)
                        self._save()
                    failures += do(self._final_trials(setting))
                    self._save()
                return failures
            finally:
                self._save()

    def _save(self) -> None:
        self.report = self._report()
        self.report.save(self.output)

    def _search(self, setting: Setting, arm: str, do: Callable[[list[Trial]], int]) -> int:
        """Every point of an arm where its trials suffice for that, else those that optuna proposes.

        Every arm tries as many points: where optuna proposes one again, chance chooses another.
        """
        points = setting.grid(arm)
        if len(points) <= setting.trials:
            return do([trial for point in points for trial in self._trials(setting, SEARCH, arm, point)])
        from attrdrop.lab.studies.search import search

        failures = 0

        def evaluate(asked: list[Point]) -> list[float | None]:
            nonlocal failures
            groups = [self._trials(setting, SEARCH, arm, point) for point in asked]
            failures += do([trial for group in groups for trial in group])
            return [self._mean(group, setting.chosen_by) for group in groups]

        tried = search(
            setting.arms[arm],
            evaluate,
            self.output,
            setting.trials,
            min(setting.search_seeds),
            direction="minimize" if setting.chosen_by in LOWER else "maximize",
            subject=self._trials(setting, SEARCH, arm, {})[0] | {"seed": setting.search_seeds},
        )
        known = [point.params for point in tried]
        distinct = [point for point in points if point in known]
        others = random.Random(min(setting.search_seeds)).sample(
            [point for point in points if point not in known], setting.trials - len(distinct)
        )
        evaluate(others)
        return failures

    def _mean(self, trials: list[Trial], measure: str) -> float | None:
        found = [record["result"][measure] for record in self.store.results(trials)]
        return sum(found) / len(found) if len(found) == len(trials) else None

    def _final_trials(self, setting: Setting) -> list[Trial]:
        """Fresh seeds in turn, so that a stop leaves whole pairs; arms without a choice are left out."""
        points = chosen(setting, rows_of(self._records(), SEARCH))
        by_arm = [self._trials(setting, FINAL, arm, points[arm]) for arm in setting.all_arms if arm in points]
        return [trial for one_seed in zip(*by_arm, strict=True) for trial in one_seed]

    def _records(self) -> list[Record]:
        """The finished trials of the plan as it is now."""
        own = [self._common(setting) for setting in self.settings]
        return [
            record
            for record in self.store.results()
            if any(common.items() <= record["trial"].items() for common in own)
        ]

    def _report(self) -> StudyReport:
        records = self._records()
        return StudyReport(self.settings, rows_of(records, SEARCH), rows_of(records, FINAL))

    def _common(self, setting: Setting) -> Trial:
        """What the trials of a setting have in common: all that tells on a run, but for the arm and its point."""
        return {
            "task": setting.name, "command": setting.command, "options": setting.options, "shots": setting.shots,
            "data": self._checksums[setting.name],
        }  # fmt: skip

    def _trials(self, setting: Setting, phase: str, arm: str, point: Point) -> list[Trial]:
        """One for each seed of a phase."""
        seeds = setting.search_seeds if phase == SEARCH else setting.seeds
        own = {"phase": phase, "arm": arm, "kind": setting.kinds[arm], "point": point}
        return [{**self._common(setting), **own, "seed": seed} for seed in seeds]

    def _checked(self, setting: Setting) -> Any:
        """What tells the data from others. Every arm's first point has a trainer, and the measures are known."""
        found = [self._bench.subject(setting, phase).checksum for phase in (SEARCH, FINAL)]
        firsts = {arm: {name: values[0] for name, values in choices.items()} for arm, choices in setting.arms.items()}
        firsts |= {name: twin.point(firsts[twin.of], setting.options) for name, twin in setting.twins.items()}
        for arm, point in firsts.items():
            trainer = self._bench.trainer(setting, FINAL, arm, point, setting.seeds[0])
            trainer.check()
            report = self._bench.subject(setting, FINAL).report_type({**trainer.facts(), "settings": {}}, [])
            names = [column.name for column in report.columns if not (column.compares or column.steps)]
        for role in ("primary", "chosen_by"):
            if getattr(setting, role) not in names:
                raise InputError(
                    f"{setting.name}: {role}: {getattr(setting, role)!r} is not one of {', '.join(names)}."
                )
        return found
