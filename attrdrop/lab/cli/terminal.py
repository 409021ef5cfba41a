"""What the commands share in the terminal: messages, exit codes, the progress of an experiment."""

import contextlib
import itertools
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attrdrop.lab.errors import InputError, RunError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
console, errors = Console(highlight=False), Console(stderr=True, highlight=False)


class Experiment(Protocol):
    """A number of runs of arms and seeds."""

    report: Any
    output: Path

    @property
    def planned(self) -> list[tuple[int, str]]:
        """(seed, arm) of the runs to do."""

    def work(self, arm: str) -> float:
        """Rough cost of a run."""

    def run(self, starting: Callable[[str, int], None], advance: Callable[[float], None]) -> None:
        """Do all runs."""


def progress_bar(**options: Any) -> Progress:
    """A bar with the share done and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, speed_estimate_period=300, **options)


def run_experiment(experiment: Experiment, files: Sequence[str]) -> None:
    """Runs with a progress bar, then the table; also where it ends early."""
    planned, earlier = experiment.planned, len(experiment.report.runs)
    total = earlier + len(planned)
    with progress_bar(disable=not planned) as progress:
        bar = progress.add_task("", total=sum(experiment.work(arm) for _, arm in planned))
        numbers = itertools.count(earlier + 1)

        def starting(arm: str, seed: int) -> None:
            description = f"run {next(numbers)} of {total}: {arm}, seed {seed}"
            progress.update(bar, description=description)
            if not console.is_terminal:
                console.print(description)

        try:
            with _noticed_interrupts() as raise_lost_one:

                def advance(work: float) -> None:
                    raise_lost_one()
                    progress.advance(bar, work)

                experiment.run(starting, advance)
        except (KeyboardInterrupt, RunError):
            progress.stop()
            finished = len(experiment.report.runs)
            _show(experiment, files, f"Stopped early: {finished} of {total} runs are finished and kept in")
            raise
    _show(experiment, files, "Results are in")


def run_arms(kind: Callable[..., Any], settings: Any, data: Any, run: Any, load: Callable[[], Any]) -> None:
    """Loads the task, checks that all arms can work on it, and does the runs that are left."""
    import torch

    from attrdrop.lab.device import resolve_device

    if run.threads:
        torch.set_num_threads(run.threads)
    with console.status("Reading the data and checking the model"):
        task = load().limited(data.train_size, data.test_size)
        experiment = kind(settings, task, resolve_device(settings.device), run.output, run.overwrite)
    if done := len(experiment.report.runs):
        total = done + len(experiment.planned)
        console.print(f"{done} of {total} runs are in {escape(str(experiment.output))} already and are not repeated.")
    run_experiment(experiment, experiment.report.files)


@contextlib.contextmanager
def _noticed_interrupts() -> Iterator[Callable[[], None]]:
    """Gives a function that raises KeyboardInterrupt where Ctrl-C was pressed but lost.

    Python raises it wherever it is, and ignores it in the callback of a weak reference, as in a garbage collection.
    """
    pressed = False

    def notice(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        if frame is None or frame.f_code.co_filename != weakref.__file__:
            raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_usual or threading.current_thread() is not threading.main_thread():
        yield check
        return
    signal.signal(signal.SIGINT, notice)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn what the user can act on into a sentence and an exit code."""
    try:
        yield
    except InputError as error:
        errors.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    except RunError as error:
        errors.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None


def _show(experiment: Experiment, files: Sequence[str], closing: str) -> None:
    if experiment.report.runs:
        console.print(experiment.report.table())
    found = ", ".join(name for name in files if (experiment.output / name).exists())
    console.print(f"{closing} [bold]{escape(str(experiment.output))}[/]: {found}")
