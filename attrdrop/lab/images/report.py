"""Results of an experiment on images: files on disk, statistics over seeds, the table."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attrdrop import plots
from attrdrop.lab.errors import InputError
from attrdrop.lab.images.settings import ARMS, PLAIN
from attrdrop.lab.results import cell, paired, replace_file, spread

if TYPE_CHECKING:
    from rich.console import Group

KIND = "train-images"
FILES = RESULTS, RUNS, CURVES, FLIPPING, CURVES_FIGURE, FLIPPING_FIGURE = (
    "results.json", "runs.csv", "curves.csv", "flipping.csv", "curves.png", "flipping.png",
)  # fmt: skip
OCCLUDED_FIGURE = "occluded.png"
MEASURES = {  # column of runs.csv: (label, how it is shown)
    "test_accuracy": ("accuracy, %", lambda value: f"{100 * value:.1f}"),
    "calibration_error": ("calib. err., %", lambda value: f"{100 * value:.1f}"),
    "erased": ("erased, %", lambda value: f"{100 * value:.1f}"),
    "attributed": ("attributed, %", lambda value: f"{100 * value:.0f}"),
    "step_ms": ("step, ms", lambda value: f"{value:.0f}"),
    "step_ratio": ("step / plain", lambda value: f"{value:.2f}"),
    "peak_memory_bytes": ("memory, MiB", lambda value: f"{value / 2**20:.0f}"),
    "rank_accuracy": ("rank acc., %", lambda value: f"{100 * value:.1f}"),
    "flipping_descending": ("flip top, %", lambda value: f"{100 * value:.1f}"),
    "flipping_random": ("flip random, %", lambda value: f"{100 * value:.1f}"),
    "channel_gini": ("channel Gini", lambda value: f"{value:.2f}"),
}


@dataclass
class ImageReport:
    """What was run (`header`) and how it went (`runs`, one dictionary per finished arm and seed)."""

    header: dict[str, Any]
    runs: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: Path, advice: str = "") -> "ImageReport":
        """The results in a folder, finished or not."""
        try:
            content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            if content.get("kind") != KIND:
                raise ValueError("those in it are of another command")
            runs = content.pop("runs")
            del content["summary"]  # computed anew
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{folder} holds no results of 'attrdrop train-images': {error}{advice}.") from None
        return cls(content, runs)

    def save(self, folder: Path, figures: bool = True) -> None:
        """Write all tables, and the figures where they are asked for; each file is replaced whole."""
        folder.mkdir(parents=True, exist_ok=True)
        content = self.header | {"summary": self.summary(), "runs": self.runs}
        replace_file(folder / RESULTS, json.dumps(content, indent=1).encode())
        frames = {RUNS: self.runs_frame(), CURVES: self.curves_frame(), FLIPPING: self.flipping_frame()}
        for name, frame in frames.items():
            replace_file(folder / name, frame.to_csv(index=False).encode())
        if not self.runs:  # figures of what is overwritten
            for name in (CURVES_FIGURE, FLIPPING_FIGURE, OCCLUDED_FIGURE, *map(maps_figure, ARMS)):
                (folder / name).unlink(missing_ok=True)
        if not (figures and self.runs):
            return
        for name, draw, frame in (
            (CURVES_FIGURE, plots.training_curves, frames[CURVES]),
            (FLIPPING_FIGURE, plots.flipping_curves, frames[FLIPPING]),
        ):
            figure = io.BytesIO()
            draw(frame, figure, title=self.title)
            replace_file(folder / name, figure.getvalue())

    @property
    def files(self) -> list[str]:
        """Names of all that is written, once there is something to draw."""
        return [*FILES, *map(maps_figure, self.header["settings"]["arms"]), OCCLUDED_FIGURE]

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
                "erased": float(np.mean([epoch["erased"] for epoch in run["epochs"]])),
                "attributed": run["attributed"],
                "step_ms": _step_ms(run),
                "step_ratio": _step_ms(run) / plain_ms[run["seed"]] if run["seed"] in plain_ms else None,
                "peak_memory_bytes": run["peak_memory_bytes"],
                "rank_accuracy": run["rank_accuracy"],
                "flipping_descending": run["flipping_auc"]["descending"],
                "flipping_random": run["flipping_auc"]["random"],
                "channel_gini": run["channel_gini"],
                "seconds": run["seconds"],
            }
            for run in self.runs
        ]
        return pd.DataFrame(rows, columns=["arm", "seed", *MEASURES, "seconds"])

    def curves_frame(self) -> pd.DataFrame:
        """One row per arm, seed and epoch."""
        names = ["arm", "seed", "epoch", "train_loss", "test_loss", "test_accuracy", "erased", "step_ms"]
        rows = [
            {
                "arm": run["arm"],
                "seed": run["seed"],
                "epoch": epoch["number"],
                "train_loss": epoch["train_loss"],
                "test_loss": epoch["test_loss"],
                "test_accuracy": epoch["test_accuracy"],
                "erased": epoch["erased"],
                "step_ms": 1e3 * float(np.median(epoch["step_seconds"])),
            }
            for run in self.runs
            for epoch in run["epochs"]
        ]
        return pd.DataFrame(rows, columns=names)

    def flipping_frame(self) -> pd.DataFrame:
        """One row per arm, seed, order and share of the image that is flipped."""
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
            arm: {name: spread(rows[name].dropna().astype(float)) for name in MEASURES}
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
        for name, (label, show) in MEASURES.items():
            cells = [cell(summary["arms"][arm][name], show) for arm in self.arms]
            if set(cells) != {"-"}:
                table.add_row(label, *cells)
        differences = summary["accuracy_difference_to_plain"]

        def signed(value: float) -> str:
            return f"{100 * value:+.1f}"

        table.add_row("acc. - plain", *(_cell_of(differences.get(arm), signed) for arm in self.arms))
        return Group(table, "", Text(self._caption(summary), "dim"))

    def _caption(self, summary: dict[str, Any]) -> str:
        sizes = ", ".join(f"{size} {name}" for name, size in self.header["task"]["sizes"].items())
        intervals = [
            f"{arm} {100 * found['interval_95'][0]:+.1f} to {100 * found['interval_95'][1]:+.1f}"
            for arm, found in summary["accuracy_difference_to_plain"].items()
            if found["interval_95"] is not None
        ]
        verdict = (
            f"95 % intervals of the accuracy difference to plain, in points: {', '.join(intervals)}; an interval that "
            "spans 0 shows no difference."
            if intervals
            else "Too few seeds to compare the accuracies."
        )
        return (
            f"Mean ± standard deviation over seeds; {sizes} images; accuracy and calibration error of the test split "
            "after the last epoch. Erased: share of all images' area. Attributed: share of images. Step: transform, "
            "forward, backward and update, median. Memory: peak above the start of the run. Rank acc.: relevant pixels "
            "on the object. Flip: mean probability of the class while the most relevant or random pixels go. Channel "
            f"Gini: how few channels of the last stage carry relevance. Relevance by z+, epsilon and flat. {verdict}"
        )


def maps_figure(arm: str) -> str:
    """Name of the figure with relevance maps of an arm."""
    return f"maps_{arm}.png"


def _step_ms(run: dict[str, Any]) -> float:
    return 1e3 * float(np.median(np.concatenate([epoch["step_seconds"] for epoch in run["epochs"]])))


def _cell_of(measure: dict[str, Any] | None, show: Callable[[float], str]) -> str:
    return "-" if measure is None else cell(measure, show)
