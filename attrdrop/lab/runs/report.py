"""Results of an experiment, driven by its columns: files on disk, statistics over seeds, the table."""

import abc
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from attrdrop.lab.names import PLAIN
from attrdrop.lab.runs import times
from attrdrop.lab.runs.layout import WideTable
from attrdrop.lab.runs.results import (
    RESULTS,
    TIME_MARK,
    cell,
    paired,
    read_object,
    readable,
    replace_file,
    spoilt_times,
    spread,
)

if TYPE_CHECKING:
    from rich.console import Group
    from typing_extensions import Self

RUNS, CURVES = "runs.csv", "curves.csv"
Result = dict[str, Any]  # a run as results.json keeps it
Show = Callable[[float], str]
Draw = Callable[..., None]  # of a table, an open file and a title


def percent(digits: int = 1) -> Show:
    """Shows a share in percent."""
    return lambda value: f"{100 * value:.{digits}f}"


def number(digits: int) -> Show:
    """Shows a number with so many digits after the point."""
    return lambda value: f"{value:.{digits}f}"


TENTHS = number(1)


def mebibytes(value: float) -> str:
    """Shows bytes in MiB."""
    return f"{value / 2**20:.0f}"


def points(value: float) -> str:
    """Shows a difference of shares in points."""
    return f"{100 * value:+.1f}"


def signed(value: float) -> str:
    """Shows a difference of losses."""
    return f"{value:+.3f}"


@dataclass(frozen=True)
class Column:
    """A measure of a run: a column of runs.csv, and a row of the table where it has a label.

    Attributes:
        read: gives the value of a run, None where it has none, from the run and the plain one of its seed, if that is
            there.
        compares: whether it is a comparison with plain; it then stands in the summary under its own name, with
            `statistics` over the seeds, and not in runs.csv.
        always: whether its row stays where there is nothing to show.
        steps: gives, of a time, those of all steps of a run; the table has their median and quartiles over all runs.
        is_ratio: whether it is one of times, which means nothing where it varies by half.
    """

    name: str
    read: Callable[[Result, Result | None], float | None]
    label: str = ""
    show: Show = TENTHS
    compares: bool = False
    statistics: Callable[[Iterable[float]], dict[str, Any]] = spread
    always: bool = False
    steps: Callable[[Result, Result | None], np.ndarray] | None = None
    is_ratio: bool = False


def entry(name: str, label: str = "", show: Show = TENTHS, **options: Any) -> Column:
    """The column of what a run says itself."""
    return Column(name, lambda run, plain: run[name], label, show, **options)


def timed(
    name: str, steps: Callable[[Result, Result | None], np.ndarray], label: str, digits: int = 0, **options: Any
) -> Column:
    """A time, or the ratio of two, of which a run has one for every step."""
    return Column(
        name, lambda run, plain: times.median(steps(run, plain)), label, number(digits), steps=steps,
        **options,
    )  # fmt: skip


def difference(name: str, score: str, label: str, show: Show, limit: float = float("inf"), **options: Any) -> Column:
    """How far a score is above that of the plain run; limit: as of `paired`."""

    def read(run: Result, plain: Result | None) -> float | None:
        found = run[score], plain and plain[score]
        return None if None in found else found[0] - found[1]

    return Column(name, read, label, show, compares=True, statistics=partial(paired, limit=limit), **options)


def gaps(held_out: str, best: Callable[[Result], Result]) -> tuple[Column, Column]:
    """How far a loss on held-out examples is above that on training ones, both without dropout and masks.

    held_out: what epochs call it. best: gives an epoch of a run, the other one is the last.
    """

    def at(epoch: Result) -> float:
        return float(epoch[held_out] - epoch["fitted_loss"])

    return (
        Column("gap_best", lambda run, plain: at(best(run)), "loss gap, best epoch", number(2)),
        Column("gap_last", lambda run, plain: at(run["epochs"][-1]), "loss gap, last epoch", number(2)),
    )


SECONDS = entry("seconds")
MEMORY = entry("peak_memory_bytes", "peak memory, MiB", mebibytes)


@dataclass
class Report(abc.ABC):
    """What was run (`header`) and how it went (`runs`, one dictionary per finished arm and seed)."""

    kind: ClassVar[str]  # the command
    all_arms: ClassVar[tuple[str, ...]] = ()
    curves: ClassVar[dict[str, str]]  # columns of curves.csv, and what epochs call them

    header: dict[str, Any]
    runs: list[Result]

    @classmethod
    def load(cls, folder: Path) -> "Self":
        """The results in a folder, finished or not."""
        with readable(folder, cls.kind):
            content = read_object(folder / RESULTS)
            if content.get("kind", "finetune") != cls.kind:
                raise ValueError("they belong to another command")
            report = cls(content, content.pop("runs"))
            del content["summary"]  # computed anew
            report.summary()  # needs all that this version writes
            return report

    def content(self) -> dict[str, Any]:
        """What results.json holds."""
        return self.header | {"summary": self.summary(), "runs": self.runs}

    def save(self, folder: Path, figures: bool = True) -> None:
        """Write all tables, and the figures where they are asked for; each file is replaced whole."""
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / RESULTS, json.dumps(self.content(), indent=1).encode())
        frames = self.frames()
        for name, frame in frames.items():
            replace_file(folder / name, frame.to_csv(index=False).encode())
        drawings = self.drawings()
        if not self.runs:  # figures of what is overwritten
            for name in (*drawings, *self.run_figures(self.all_arms)):
                (folder / name).unlink(missing_ok=True)
        if not (figures and self.runs):
            return
        for name, (draw, table) in drawings.items():
            figure = io.BytesIO()
            sizes = split_sizes(self.header["task"]["sizes"])
            draw(frames[table], figure, title=f"{self.title}\n{sizes} examples")
            replace_file(folder / name, figure.getvalue())

    @property
    @abc.abstractmethod
    def columns(self) -> Sequence[Column]:
        """All measures, in the order of runs.csv."""

    @property
    def rows(self) -> Sequence[Column]:
        """Those of the table, in its order."""
        return [column for column in self.columns if column.label]

    @abc.abstractmethod
    def drawings(self) -> dict[str, tuple[Draw, str]]:
        """The figures of the tables, by file name: how they are drawn, and of which table."""

    def run_figures(self, arms: Iterable[str]) -> list[str]:
        """Names of the figures that are drawn of the trained models of these arms."""
        return []

    def sign(self) -> str:
        """That something is amiss in the runs so far, in words; empty where nothing is."""
        return ""

    @abc.abstractmethod
    def caption(self) -> str:
        """What the rows of the table mean."""

    @abc.abstractmethod
    def advice(self) -> str:
        """Which measures to look at, on a line of 80 columns."""

    def closing(self) -> str:
        """A last sentence in plain words, where there is something to say."""
        return ""

    @abc.abstractmethod
    def verdict(self) -> str:
        """What the scores allow to say."""

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables, by file name."""
        return {RUNS: self.runs_frame(), CURVES: self.curves_frame()}

    @property
    def files(self) -> list[str]:
        """Names of all that is written, once there is something to draw."""
        return [RESULTS, *self.frames(), *self.drawings(), *self.run_figures(self.arms)]

    @property
    def title(self) -> str:
        seeds = len({run["seed"] for run in self.runs})
        model, task = Path(self.header["settings"]["model"]).name, self.header["task"]["name"]
        return f"{model} on {task}, {seeds} seed{'s' if seeds != 1 else ''}"

    @property
    def unfinished(self) -> str:
        """How many runs are done, where some are not."""
        total = len(self.arms) * int(self.header["settings"].get("seeds", 0))
        if len(self.runs) >= total:
            return ""
        return f"{len(self.runs)} of {total} runs are finished; it is still running, or was stopped early."

    @property
    def arms(self) -> list[str]:
        return list(self.header["settings"]["arms"])

    @property
    def jobs(self) -> int:
        """The most runs that were done side by side."""
        return max((jobs_of(run) for run in self.runs), default=1)

    def values(self, column: Column, arm: str) -> list[float]:
        """Those of an arm that are there, in the order of the runs."""
        found = self._read(column, [run for run in self.runs if run["arm"] == arm])
        return [value for value in found if value is not None and not np.isnan(value)]

    def measure(self, column: Column, arm: str) -> dict[str, Any]:
        """Statistics of a measure of an arm, as the table has them."""
        if column.steps is None:
            return column.statistics(self.values(column, arm))
        plain = self._plain
        found = [column.steps(run, plain.get(run["seed"])) for run in self.runs if run["arm"] == arm]
        return times.quartiles(np.concatenate([np.empty(0), *found]))

    def runs_frame(self) -> pd.DataFrame:
        """One row per arm and seed."""
        columns = [column for column in self.columns if not column.compares]
        runs = {
            "arm": [run["arm"] for run in self.runs],
            "seed": [run["seed"] for run in self.runs],
            **{column.name: self._read(column, self.runs) for column in columns},
            "jobs": [jobs_of(run) for run in self.runs],
        }
        return pd.DataFrame(runs)

    def curves_frame(self) -> pd.DataFrame:
        """One row per arm, seed and epoch."""
        rows = [
            {"arm": run["arm"], "seed": run["seed"], "epoch": epoch["number"]}
            | {name: epoch[key] for name, key in self.curves.items()}
            | {"step_ms": times.median(times.step_ms([epoch]))}
            for run in self.runs
            for epoch in run["epochs"]
        ]
        return pd.DataFrame(rows, columns=["arm", "seed", "epoch", *self.curves, "step_ms"])

    def summary(self) -> dict[str, Any]:
        """Mean, sample standard deviation and number of seeds of every measure per arm, and paired by seed to plain.

        `steps` has the median and quartiles of what was measured at every step.
        """
        done = dict.fromkeys(run["arm"] for run in self.runs)
        timed = [column for column in self.columns if column.steps]
        own = [column for column in self.columns if not column.compares]
        rivals = [arm for arm in self.arms if PLAIN in self.arms and arm != PLAIN]
        return {
            "times_comparable": self.jobs == 1,
            "arms": {
                arm: {column.name: spread(self.values(column, arm)) for column in own if not column.is_ratio}
                for arm in done
            },
            "steps": {column.name: {arm: self.measure(column, arm) for arm in done} for column in timed},
            **{
                column.name: {arm: column.statistics(self.values(column, arm)) for arm in rivals}
                for column in self.columns
                if column.compares and not column.is_ratio
            },
        }

    def table(self) -> "Group":
        """The summary for a terminal."""
        from rich.console import Group
        from rich.text import Text

        rows = []
        for column in self.rows:
            cells = [self._cell(column, arm) for arm in self.arms]
            label = column.label + ("\n  quartiles" if any("\n" in text for text in cells) else "")
            if set(cells) != {"-"} or column.always or self._is_unsteady(column) or not self.runs:
                rows.append((label, cells))
        table = self.layout(self.title if self.runs else "", rows)
        begun = [] if self.runs else ["No run is finished yet.", ""]
        unsteady = times.UNSTEADY if any(map(self._is_unsteady, self.rows)) else ""
        caption = Text(f"{self.caption()}{unsteady}{spoilt_times(self.jobs)}", "dim")
        said = [Text(self.verdict()), Text(self.advice())] if self.runs else []
        closing = [Text(self.closing())] if self.runs and self.closing() else []
        return Group(*begun, table, "", *said, caption, *closing)

    def layout(self, title: str, rows: list[tuple[str, list[str]]]) -> WideTable:
        """The table of labelled rows with a cell for each arm."""
        is_compared = len(self.arms) > 1 and self.arms[0] == PLAIN
        return WideTable(title, self.arms, rows, repeated=int(is_compared))

    @property
    def sizes(self) -> str:
        """How many examples there are."""
        return ", ".join(f"{size} {name}" for name, size in self.header["task"]["sizes"].items())

    @property
    def _plain(self) -> dict[int, Result]:
        """The plain run of each seed."""
        return {run["seed"]: run for run in self.runs if run["arm"] == PLAIN}

    def _cell(self, column: Column, arm: str) -> str:
        if column.compares and arm == PLAIN:
            return "-"
        measure = self.measure(column, arm)
        if column.steps is None:
            return cell(measure, column.show)
        if column.is_ratio and times.is_unsteady(measure):
            return "-"
        return times.time_cell(measure, column.show, TIME_MARK if self.jobs > 1 else "")

    def _is_unsteady(self, column: Column) -> bool:
        """Whether it is a ratio of times that is not shown for an arm."""
        measures = [self.measure(column, arm) for arm in self.arms] if column.is_ratio else []
        return any(map(times.is_unsteady, measures))

    def _read(self, column: Column, runs: Iterable[Result]) -> list[float | None]:
        plain = self._plain
        return [column.read(run, plain.get(run["seed"])) for run in runs]


def split_sizes(sizes: dict[str, int]) -> str:
    """How many examples each split has, without sets from elsewhere."""
    return ", ".join(f"{sizes[name]} {name}" for name in ("train", "dev", "test") if name in sizes)


def errs_by(examples: int) -> str:
    """How far chance takes an accuracy over so many examples, as its standard error at one half."""
    return f"{50 / max(examples, 1) ** 0.5:.1f} points"


def jobs_of(run: Result) -> int:
    """How many runs were done side by side when this one was."""
    return int(run.get("jobs", 1))
