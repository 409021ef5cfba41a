"""A sweep: a plan's trials on disk, done several at once, then its tables and figures."""

import dataclasses
import zlib
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from attrdrop.lab.errors import InputError
from attrdrop.lab.names import ADDROP, PLAIN, TUNED, Record, Trial
from attrdrop.lab.runs.pool import LOCAL, Executor, Pool, open_pool
from attrdrop.lab.runs.results import SWEEP, described, readable
from attrdrop.lab.runs.store import ADVICE, TrialStore
from attrdrop.lab.studies.plan import ONCE, VARIED, Plan, Search, addrop, at_layers, layers_of
from attrdrop.lab.studies.report import SweepReport
from attrdrop.lab.studies.workbench import Prepare
from attrdrop.lab.text.others import parse
from attrdrop.lab.text.training import Trainer

SPACE: dict[str, Any] = {"p": (0.1, 0.9, 0.1), "q": (0.1, 0.9, 0.1)}  # of a search, as in the paper


class Sweep:
    """Validates everything at construction and writes nothing until `run`.

    search says how many points optuna proposes for each task after the plan, and of what beside p and q.
    """

    def __init__(
        self,
        plan: Plan,
        prepare: Prepare,
        search: Search,
        output: Path,
        overwrite: bool = False,
        jobs: int = 1,
        threads: int | None = None,
        executor: Executor = LOCAL,
    ) -> None:
        self.executor = executor
        self.plan, self.prepare, self.search, self.points = plan, prepare, search, search.search or 0
        choices: dict[str, list[Any]] = {"lr": [*search.search_lr], "batch_size": [*search.search_batch_size]}
        self.tuned = {name: values for name, values in choices.items() if values and self.points}
        self.output, self.jobs, self.threads = output, jobs, threads
        trainers = {name: Trainer(prepare.settings, prepare.load(name)) for name in plan.tasks}
        known = [one for name in plan.tasks for one in trainers[name].task.other]
        if missing := [one for one in map(parse, prepare.other) if one.name not in known]:
            raise InputError(f"--other: no task knows {missing[0].name!r}, and it is not a file.")
        self.better = {name: trainer.metric.better for name, trainer in trainers.items()}
        self.store = TrialStore(output, self._header(trainers, overwrite), overwrite)
        self.report = SweepReport(self.store)
        self.trials = plan.trials() + self._plain_trials()
        pending = self.pending
        for name, trainer in trainers.items():
            left = {trial["arm"] for trial in pending if trial["task"] == name}
            if arms := {ADDROP if arm in ONCE else arm for arm in left}:
                layers = layers_of(name, prepare.settings.layers)
                trainer.changed(dataclasses.replace(prepare.settings, arms=tuple(sorted(arms)), layers=layers)).check()

    @property
    def pending(self) -> list[Trial]:
        """The plan's remaining trials."""
        return self.store.pending(self.trials)

    @property
    def total(self) -> int:
        """Runs in all, with those that a search will propose."""
        return len(self.trials) + self.points * len(self.plan.tasks) * self.plan.seeds

    @property
    def done(self) -> int:
        """Runs of the plan that are finished."""
        return len(self.trials) - len(self.pending)

    @property
    def work_left(self) -> float:
        """Rough cost of the remaining runs."""
        return self.total - self.done

    def work(self, trial: Trial) -> float:
        """Rough cost of a run: all count alike."""
        return 1.0

    def run(
        self,
        starting: Callable[[Trial], None],
        finished: Callable[[Record], None],
        failed: Callable[[Trial, str], None],
        advance: Callable[[float], None],
        epoch: Callable[[str], None] = lambda text: None,
    ) -> int:
        """Do the plan, then the search, then draw what is there, and return how many runs failed."""
        notices = (starting, finished, failed)
        is_own = self.executor.is_this_process(self.jobs)
        prepare = partial(self.prepare, epoch) if is_own else self.prepare
        with open_pool(prepare, self.store, self.jobs, self.threads, self.executor) as pool:
            try:
                failures = pool.run(self.trials, *notices)
                return failures + (self._search(pool, *notices) if self.points else 0)
            finally:
                self.report = SweepReport(self.store)
                if self.report.runs:
                    self.report.save()

    def _search(self, pool: Pool, *notices: Callable[..., None]) -> int:
        """Let optuna choose p and q for each task by the mean development score; returns how many trials failed."""
        from attrdrop.lab.studies.search import Params, search

        failures = 0
        for task in self.plan.tasks:

            def evaluate(asked: list[Params], task: str = task) -> list[float | None]:
                nonlocal failures
                groups = [self._at(task, point) for point in asked]
                failures += pool.run([trial for group in groups for trial in group], *notices)
                return [self._mean_score(group) for group in groups]

            search(
                SPACE | self.tuned,
                evaluate,
                self.output,
                self.points,
                self.plan.first_seed,
                direction="maximize" if self.better[task] > 0 else "minimize",
                subject={"task": task, "seeds": self.plan.seed_list, "layers": self.plan.layers},
                storage=self.search.storage,
            )
        return failures

    def _at(self, task: str, point: dict[str, float]) -> list[Trial]:
        trial = addrop(self.plan, **point)
        return [at_layers({"task": task, "seed": seed, **trial}) for seed in self.plan.seed_list]

    def _plain_trials(self) -> list[Trial]:
        """Plain training at every learning rate and batch size that the search has for AD-DROP."""
        if not self.tuned:
            return []
        points = [dict(zip(self.tuned, values, strict=True)) for values in product(*self.tuned.values())]
        places = product(self.plan.tasks, self.plan.seed_list, points)
        return [{"task": task, "seed": seed, "arm": PLAIN, **point} for task, seed, point in places]

    def _mean_score(self, trials: list[Trial]) -> float | None:
        scores = [record["result"]["dev_score"] for record in self.store.results(trials)]
        return sum(scores) / len(scores) if len(scores) == len(trials) else None

    def _header(self, trainers: dict[str, Trainer], overwrite: bool) -> dict[str, Any]:
        """What is true of every trial, the facts of the tasks, and all plans that the folder has seen."""
        prepare = self.prepare
        plans, facts = [dataclasses.asdict(self.plan)], {}
        if not overwrite and (self.output / SWEEP).is_file():
            with readable(self.output, "sweep", ADVICE):
                earlier = SweepReport(TrialStore.load(self.output, ADVICE)).header
                facts = earlier["tasks"]
            plans = [plan for plan in earlier["plans"] if plan != _plain(plans[0])] + plans
        shared, own = dataclasses.asdict(prepare.settings), {"arms", "seeds", "first_seed", *VARIED} - {*TUNED}
        device = next(iter(trainers.values())).device
        return described(device) | {
            "kind": "sweep",
            "jobs": self.jobs,
            "settings": {name: value for name, value in shared.items() if name not in own},
            "task": {
                "files": prepare.files and {name: _fingerprint(value) for name, value in prepare.files.items()},
                "other": list(prepare.other),
                "sizes": [prepare.train_size, prepare.dev_size, prepare.test_size],
            },
            "tasks": facts | {name: trainer.measured() for name, trainer in trainers.items()},
            "plans": plans,
        }


def _fingerprint(value: Any) -> Any:
    """A file identified by its content, so that other data under the same name is not mistaken for it."""
    return f"{value.name} {zlib.crc32(value.read_bytes()):08x}" if isinstance(value, Path) else value


def _plain(plan: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plan.items()}
