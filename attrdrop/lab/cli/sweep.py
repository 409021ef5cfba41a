"""The command `attrdrop sweep`."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape

from attrdrop.lab.cli.finetune import check_data_options
from attrdrop.lab.cli.options import Run, command
from attrdrop.lab.cli.terminal import console, progress_bar
from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.runs.settings import Option, Options, Panel
from attrdrop.lab.studies.plan import Plan
from attrdrop.lab.text.settings import PRESETS, Data, Settings

# The smallest encoder on few examples: some minutes on two CPU cores.
DEMO = PRESETS["demo"] | {
    "model": "bert-tiny",
    "studies": ("seeds", "ablation", "rivals", "regions", "costs", "maps"),
    "lr": 3e-4,
}


@dataclass(frozen=True)
class Search(Options):
    """In the place of studies."""

    search: Annotated[
        int | None,
        Option(Panel.SWEEP, "In the place of studies: let optuna choose p and q, so many times.", min=1),
    ] = None
    storage: Annotated[
        str | None,
        Option(Panel.SWEEP, "Database URL of the search, for several machines; without it a file in the folder."),
    ] = None


@command(
    {"demo": DEMO},
    "demo: the smallest encoder on few examples, some minutes on two CPU cores.",
    without=("task", "arms", "attribution", "target", "region", "cross_tuning"),  # the studies vary them
    output=Path("runs/sweep"),
)
def sweep(plan: Plan, search: Search, data: Data, settings: Settings, run: Run, given: set[str]) -> None:
    """Repeat the analyses of the AD-DROP paper: many runs, then tables and figures.

    Each study is a set of runs; what they share is done once. Results are
    on disk after each run, so the same command again, after Ctrl-C or a
    crash, does what is left, and another study or more seeds add to it.
    Draw them again with 'attrdrop report'.
    """
    check_data_options(given, "tasks")
    if not (plan.studies or search.search):
        raise InputError("--studies: name at least one, or give --search.")
    import torch

    from attrdrop.lab.studies.run import Sweep

    if run.threads:
        torch.set_num_threads(run.threads)
    plan = dataclasses.replace(plan, studies=() if search.search else plan.studies, tasks=_tasks(plan.tasks, data))
    prepare = _prepare(settings, data)
    with console.status("Reading the data and checking the model"):
        sweep = Sweep(plan, prepare, run.output, run.overwrite)
    total, left = len(plan.trials()), len(sweep.pending)
    if total > left:
        console.print(f"{total - left} of {total} runs are in {escape(str(run.output))} already.")
    failures, points = 0, (search.search or 0) * len(plan.tasks) * plan.seeds
    try:
        with sweep.pool(run.jobs, run.threads) as pool, _progress(left + points) as notices:
            failures += pool.run(plan.trials(), **notices)
            if search.search:
                failures += sweep.search(pool, search.search, search.storage, **notices)
    finally:
        if sweep.store.results():
            _show(sweep.report())
    if failures:
        raise RunError(f"{failures} runs failed; the same command tries them again.")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[dict[str, Any]]:
    """A bar over trials, and what to call when one starts, ends or fails."""
    with progress_bar(disable=not total) as progress:
        bar = progress.add_task("", total=total)
        numbers = itertools.count(1)

        def starting(trial: dict[str, Any]) -> None:
            description = f"{trial['task']}, {trial['arm']}, seed {trial['seed']}"
            progress.update(bar, description=description)
            if not console.is_terminal:
                console.print(f"run {next(numbers)} of {total}: {description}")

        def finished(record: dict[str, Any]) -> None:
            progress.advance(bar)

        def failed(trial: dict[str, Any], message: str) -> None:
            console.print(f"[yellow]{escape(f'{trial}: {message}')}[/]")
            progress.advance(bar)

        yield {"starting": starting, "finished": finished, "failed": failed}


def _show(report: Any) -> None:
    files = report.save()
    console.print(report.table())
    console.print(f"Results are in [bold]{escape(str(report.store.folder))}[/]: {', '.join(files)}")


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
        train_size=data.train_size,
        dev_size=data.dev_size,
        test_size=data.test_size,
    )
