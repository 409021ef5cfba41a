"""Results of an experiment with several arms: files on disk, statistics over seeds, the table."""

import abc
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from attrdrop import plots
from attrdrop.lab.runs.settings import PLAIN
from attrdrop.lab.errors import InputError
from attrdrop.lab.runs.results import cell, paired, replace_file, spread

if TYPE_CHECKING:
    from rich.console import Group
    from typing_extensions import Self

RESULTS, RUNS, CURVES, FLIPPING = "results.json", "runs.csv", "curves.csv", "flipping.csv"
Show = Callable[[float], str]


def percent(digits: int = 1) -> Show:
    """Shows a share in percent."""
    return lambda value: f"{100 * value:.{digits}f}"


def number(digits: int) -> Show:
    """Shows a number with so many digits after the point."""
    return lambda value: f"{value:.{digits}f}"


def mebibytes(value: float) -> str:
    """Shows bytes in MiB."""
    return f"{value / 2**20:.0f}"


def signed(value: float) -> str:
    """Shows a difference of shares in points."""
    return f"{100 * value:+.1f}"


@dataclass
class ArmReport(abc.ABC):
    """What was run (`header`) and how it went (`runs`, one dictionary per finished arm and seed)."""

    kind: ClassVar[str]  # the command
    all_arms: ClassVar[Iterable[str]]
    changed: ClassVar[str]  # the name of `Epoch.changed`
    measures: ClassVar[dict[str, tuple[str, Show]]]  # column of runs.csv: (label, how it is shown)

    header: dict[str, Any]
    runs: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: Path, advice: str = "") -> "Self":
        """The results in a folder, finished or not."""
        try:
            content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            if content.get("kind") != cls.kind:
                raise ValueError("those in it are of another command")
            runs = content.pop("runs")
            del content["summary"]  # computed anew
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{folder} holds no results of 'attrdrop {cls.kind}': {error}{advice}.") from None
        return cls(content, runs)

    def save(self, folder: Path, figures: bool = True) -> None:
        """Write all tables, and the figures where they are asked for; each file is replaced whole."""
        folder.mkdir(parents=True, exist_ok=True)
        content = self.header | {"summary": self.summary(), "runs": self.runs}
        replace_file(folder / RESULTS, json.dumps(content, indent=1).encode())
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
            draw(frames[table], figure, title=self.title)
            replace_file(folder / name, figure.getvalue())

    @staticmethod
    @abc.abstractmethod
    def run_figures(arms: Iterable[str]) -> list[str]:
        """Names of the figures that are drawn of the trained models."""

    @abc.abstractmethod
    def _row(self, run: dict[str, Any]) -> dict[str, Any]:
        """The columns of runs.csv that are this kind's own."""

    @abc.abstractmethod
    def _caption(self) -> str:
        """What the rows of the table mean."""

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables, by file name."""
        return {RUNS: self.runs_frame(), CURVES: self.curves_frame(), FLIPPING: self.flipping_frame()}

    def drawings(self) -> dict[str, tuple[Callable[..., None], str]]:
        """The figures of the tables, by file name: how they are drawn, and of which table."""
        return {"curves.png": (plots.training_curves, CURVES), "flipping.png": (plots.flipping_curves, FLIPPING)}

    @property
    def files(self) -> list[str]:
        """Names of all that is written, once there is something to draw."""
        return [RESULTS, *self.frames(), *self.drawings(), *self.run_figures(self.header["settings"]["arms"])]

    @property
    def title(self) -> str:
        seeds = len({run["seed"] for run in self.runs})
        model, task = self.header["settings"]["model"], self.header["task"]["name"]
        return f"{model} on {task}, {seeds} seed{'s' if seeds != 1 else ''}"

    @property
    def arms(self) -> list[str]:
        return [arm for arm in self.header["settings"]["arms"] if any(run["arm"] == arm for run in self.runs)]

    def runs_frame(self) -> pd.DataFrame:
        """One row per arm and seed."""
        plain_ms = {run["seed"]: _step_ms(run) for run in self.runs if run["arm"] == PLAIN}
        rows = [
            {
                "arm": run["arm"],
                "seed": run["seed"],
                "test_accuracy": run["test_accuracy"],
                "calibration_error": run["calibration_error"],
                self.changed: float(np.mean([epoch["changed"] for epoch in run["epochs"]])),
                "attributed": run["attributed"],
                "step_ms": _step_ms(run),
                "step_ratio": _step_ms(run) / plain_ms[run["seed"]] if run["seed"] in plain_ms else None,
                "peak_memory_bytes": run["peak_memory_bytes"],
                **{f"flipping_{order}": area for order, area in run["flipping_auc"].items()},
                **self._row(run),
                "seconds": run["seconds"],
            }
            for run in self.runs
        ]
        return pd.DataFrame(rows, columns=["arm", "seed", *self.measures, "seconds"])

    def curves_frame(self) -> pd.DataFrame:
        """One row per arm, seed and epoch."""
        names = ["arm", "seed", "epoch", "train_loss", "test_loss", "test_accuracy", self.changed, "step_ms"]
        rows = [
            {
                "arm": run["arm"],
                "seed": run["seed"],
                "epoch": epoch["number"],
                "train_loss": epoch["train_loss"],
                "test_loss": epoch["test_loss"],
                "test_accuracy": epoch["test_accuracy"],
                self.changed: epoch["changed"],
                "step_ms": 1e3 * float(np.median(epoch["step_seconds"])),
            }
            for run in self.runs
            for epoch in run["epochs"]
        ]
        return pd.DataFrame(rows, columns=names)

    def flipping_frame(self) -> pd.DataFrame:
        """One row per arm, seed, order and share of the input that is flipped."""
        rows = [
            {"arm": run["arm"], "seed": run["seed"], "order": order, "fraction": fraction, "score": score}
            for run in self.runs
            for order in run["flipping_auc"]
            for fraction, score in zip(run["flipping"]["fraction"], run["flipping"][order], strict=True)
        ]
        return pd.DataFrame(rows, columns=["arm", "seed", "order", "fraction", "score"])

    def summary(self) -> dict[str, Any]:
        """Mean, sample standard deviation and number of seeds of every measure per arm, and paired by seed to plain."""
        frame = self.runs_frame()
        arms = {
            arm: {name: spread(rows[name].dropna().astype(float)) for name in self.measures}
            for arm, rows in frame.groupby("arm", sort=False)
        }
        by_seed = frame.pivot(index="seed", columns="arm", values="test_accuracy")
        differences = {
            arm: paired((by_seed[arm] - by_seed[PLAIN]).dropna())
            for arm in self.arms
            if PLAIN in by_seed and arm != PLAIN
        }
        return {"arms": arms, "accuracy_difference_to_plain": differences}

    def table(self) -> "Group | str":
        """The summary for a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self.runs:
            return "No run is finished yet."
        summary = self.summary()
        # Without frame and padding five arms fit into 80 columns.
        table = Table(title=self.title, box=SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
        table.add_column("", no_wrap=True)
        for arm in self.arms:
            table.add_column(arm, justify="right")
        for name, (label, show) in self.measures.items():
            cells = [cell(summary["arms"][arm][name], show) for arm in self.arms]
            if set(cells) != {"-"}:
                table.add_row(label, *cells)
        differences = summary["accuracy_difference_to_plain"]
        cells = [cell(differences[arm], signed) if arm in differences else "-" for arm in self.arms]
        table.add_row("acc. - plain", *cells)
        return Group(table, "", Text(f"{self._caption()} {_verdict(differences)}", "dim"))

    @property
    def _sizes(self) -> str:
        return ", ".join(f"{size} {name}" for name, size in self.header["task"]["sizes"].items())


def _verdict(differences: dict[str, Any]) -> str:
    """What the accuracies allow to say."""
    intervals = [
        f"{arm} {signed(found['interval_95'][0])} to {signed(found['interval_95'][1])}"
        for arm, found in differences.items()
        if found["interval_95"] is not None
    ]
    if not intervals:
        return "Too few seeds to compare the accuracies."
    return (
        f"95 % intervals of the accuracy difference to plain, in points: {', '.join(intervals)}; an interval that "
        "spans 0 shows no difference."
    )


def _step_ms(run: dict[str, Any]) -> float:
    return 1e3 * float(np.median(np.concatenate([epoch["step_seconds"] for epoch in run["epochs"]])))
