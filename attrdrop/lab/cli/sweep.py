"""The command `attrdrop sweep`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from attrdrop.lab.cli.finetune import check_data_options
from attrdrop.lab.cli.options import command
from attrdrop.lab.cli.terminal import run_experiment
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.settings import Machines, RunOptions
from attrdrop.lab.studies.plan import Plan, Search
from attrdrop.lab.text import published
from attrdrop.lab.text.settings import Data, Settings

# The smallest encoder on few examples: some minutes on two CPU cores.
DEMO: dict[str, Any] = {
    "model": "bert-tiny",
    "studies": ("seeds", "ablation", "rivals", "regions", "costs", "maps"),
    "seeds": 3,
    "epochs": 4,
    "train_size": 256,
    "dev_size": 128,
    "test_size": 300,
    "max_length": 48,
    "lr": 3e-4,
}


def _published(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    if values["train"]:
        raise InputError("--preset: the paper's settings depend on its task names; leave it out with --train.")
    return published.of_tasks(values["tasks"], given)


@command(
    {"demo": DEMO, "paper": _published},
    "demo: the smallest encoder on a few examples, a few minutes on two CPU cores. paper: AD-DROP's for the tasks.",
    without=("task", "arms", "attribution", "target", "region", "cross_tuning"),  # the studies vary them
    output=Path("runs/sweep"),
)
def sweep(
    plan: Plan, search: Search, data: Data, settings: Settings, run: RunOptions, machines: Machines, given: set[str]
) -> None:
    """Repeat the analyses of the AD-DROP paper: many runs, then tables and figures.

    Each study is a set of runs; shared runs are done once. Results are on
    disk after each run, so after Ctrl-C or a crash the same command does
    the rest, and another study or more seeds add to it. Draw tables and
    figures again with 'attrdrop report'.
    """
    check_data_options(given, "tasks")
    if not (plan.studies or search.search):
        raise InputError("--studies: name at least one, or give --search.")
    if set(settings.units) != {"attention"} and {trial.get("attribution") for trial in plan.trials()} & {"IGA", "AA"}:
        raise InputError("--units: IGA and AA rank only attention; leave out the studies that vary the attribution.")
    from attrdrop.lab.studies.run import Sweep

    plan = dataclasses.replace(plan, studies=() if search.search else plan.studies, tasks=_tasks(plan.tasks, data))
    start = partial(Sweep, plan, _prepare(settings, data), search, executor=_executor(machines))
    run_experiment(start, run, goes_on=True)


def _executor(machines: Machines) -> Any:
    from attrdrop.lab.runs.pool import LOCAL

    if machines.executor == "local":
        return LOCAL
    from attrdrop.lab.runs.ray_pool import RayExecutor

    return RayExecutor(machines.address)


def _tasks(names: tuple[str, ...], data: Data) -> tuple[str, ...]:
    """The user's file, or the named tasks as what the user wants them read."""
    if data.train:
        return (data.train.name,)
    return tuple(f"{name.partition(':')[0]}:{data.task_type}" for name in names) if data.task_type else names


def _prepare(settings: Settings, data: Data) -> Any:
    from attrdrop.lab.studies.workbench import Prepare

    return Prepare(
        settings,
        files=data.files | {"kind": data.task_type or "classification"} if data.train else None,
        other=data.other,
        encoding=data.encoding,
        train_size=data.train_size,
        dev_size=data.dev_size,
        test_size=data.test_size,
    )
