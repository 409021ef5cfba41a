"""What the commands share in a terminal: messages, exit codes and progress."""

import codecs
import contextlib
import dataclasses
import itertools
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.names import MODELS, Record, Trial, name_of
from attrdrop.lab.runs.settings import RunOptions

OK, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
console, errors = Console(highlight=False), Console(stderr=True, highlight=False)


LETTERS = {"±": "~", "…": ".", "━": "-"}  # each as wide as what it stands for, so that columns stay columns
PLAIN_LETTERS = "attrdrop.plain_letters"  # how a stream treats what a terminal of few letters cannot show


def _plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(LETTERS.get(letter, "?") for letter in lacking), error.end


codecs.register_error(PLAIN_LETTERS, _plain_letters)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a process that a script started in the background, where Ctrl-C is ignored."""


class Experiment(Protocol):
    """Trials in a folder."""

    report: Any
    output: Path

    @property
    def total(self) -> int:
        """Number of runs."""

    @property
    def done(self) -> int:
        """Runs that are finished."""

    @property
    def work_left(self) -> float:
        """Rough cost of the remaining runs."""

    def work(self, trial: Trial) -> float:
        """Rough cost of a run."""

    def run(
        self,
        starting: Callable[[Trial], None],
        finished: Callable[[Record], None],
        failed: Callable[[Trial, str], None],
        advance: Callable[[float], None],
        epoch: Callable[[str], None],
    ) -> int:
        """Do all remaining runs, and return how many failed."""


def progress_bar(**options: Any) -> Progress:
    """A bar with the finished share and the remaining time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, speed_estimate_period=300, **options)


def run_experiment(make: Callable[..., Experiment], run: RunOptions, goes_on: bool = False) -> None:
    """Makes an experiment, runs it with a progress bar, and shows its tables, also where it ends early.

    `make` gets the fields of `run`. A run that fails ends the experiment, unless it `goes_on`.
    """
    import torch

    import attrdrop
    from attrdrop.lab.device import busy

    try:
        attrdrop.get_backend()
    except ValueError as error:
        raise InputError(f"{error}.") from None
    warning = busy() if run.jobs == 1 else ""
    if run.threads:
        torch.set_num_threads(run.threads)
    with console.status("Reading the data and checking the model"):
        experiment = make(**dataclasses.asdict(run))
    if warning:
        console.print(f"[yellow]{warning}[/]")
    watch = _Watch(experiment, goes_on)
    if watch.done:
        where = escape(str(experiment.output))
        console.print(f"{watch.done} of {experiment.total} runs are in {where} already and are not repeated.")
    try:
        with _noticed_interrupts() as watch.raise_lost_one, watch.progress:
            failures = experiment.run(watch.starting, watch.finished, watch.failed, watch.advance, watch.epoch)
    except (KeyboardInterrupt, RunError, InputError):  # the last of a disk that is full
        _show(experiment, f"Stopped early: {watch.done} of {experiment.total} runs are finished and kept in")
        raise
    _show(experiment, "Results are in")
    if failures:
        raise RunError(f"{failures} runs failed; the same command tries them again.")


class _Watch:
    """A bar over the runs of an experiment, and what to call when one starts, ends or fails, and in its midst."""

    def __init__(self, experiment: Experiment, goes_on: bool) -> None:
        self.experiment, self.goes_on = experiment, goes_on
        self.done, work = experiment.done, experiment.work_left
        self.progress = progress_bar(disable=not work)
        self.raise_lost_one: Callable[[], None] = lambda: None
        self._bar, self._work = self.progress.add_task("", total=work), 0.0
        self._numbers = itertools.count(self.done + 1)

    def starting(self, trial: Trial) -> None:
        description = f"run {next(self._numbers)} of {self.experiment.total}: {name_of(trial)}"
        self.progress.update(self._bar, description=description)
        if not console.is_terminal:
            console.print(description, soft_wrap=True)

    def finished(self, record: Record) -> None:
        self.done += 1
        self._ended(record["trial"])

    def failed(self, trial: Trial, message: str) -> None:
        if not self.goes_on:
            raise RunError(f"{name_of(trial)}: {message}")
        console.print(f"[yellow]{escape(f'{name_of(trial)}: {message}')}[/]")
        self._ended(trial)

    def advance(self, work: float) -> None:
        self.raise_lost_one()
        self.progress.advance(self._bar, work)

    def epoch(self, text: str) -> None:
        """In a log, prints what a bar would show."""
        if not console.is_terminal:
            console.print(f"  {text}", soft_wrap=True)

    def _ended(self, trial: Trial) -> None:
        self._work += self.experiment.work(trial)
        self.progress.update(self._bar, completed=self._work)
        self.raise_lost_one()


@contextlib.contextmanager
def _noticed_interrupts() -> Iterator[Callable[[], None]]:
    """Has SIGTERM end an experiment as Ctrl-C does, and gives a function that raises where one of them was lost.

    Python raises wherever it is, and ignores it in the callback of a weak reference, as in a garbage collection.
    """
    kinds = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    noticed: type[KeyboardInterrupt] | None = None

    def notice(number: int, frame: Any) -> None:
        nonlocal noticed
        noticed = kinds[signal.Signals(number)]
        if frame is None or frame.f_code.co_filename != weakref.__file__:
            raise noticed

    def check() -> None:
        if noticed:
            raise noticed

    is_main = threading.current_thread() is threading.main_thread()
    changed = [number for number in kinds if is_main and signal.getsignal(number) is usual[number]]
    for number in changed:
        signal.signal(number, notice)
    try:
        yield check
    finally:
        for number in changed:
            signal.signal(number, usual[number])


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn errors that the user can act on into a sentence and an exit code, and warnings into sentences."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            yield
    except InputError as error:
        errors.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    except RunError as error:
        errors.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(FAILED) from None
    except Terminated:
        errors.print("Terminated.")
        raise typer.Exit(TERMINATED) from None
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None


def _warned(message: Warning | str, *place: Any, **options: Any) -> None:
    errors.print(f"[yellow]Warning:[/] {escape(str(message))}", soft_wrap=True)


def _show(experiment: Experiment, closing: str) -> None:
    if experiment.report.runs:
        console.print(experiment.report.table())
    files = [*experiment.report.files, MODELS]
    found = ", ".join(name for name in files if (experiment.output / name).exists())
    console.print(f"{closing} [bold]{escape(str(experiment.output))}[/]: {found}")
