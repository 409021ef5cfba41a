"""Results of an experiment: files on disk, statistics over seeds, the table."""

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
from attrdrop.lab.results import cell, paired, replace_file, spread
from attrdrop.lab.settings import ADDROP, ARMS, PLAIN

if TYPE_CHECKING:
    from rich.table import Table

FILES = RESULTS, RUNS, CURVES, FIGURE = "results.json", "runs.csv", "curves.csv", "curves.png"
RUN_COLUMNS = ["arm", "seed", "best_epoch", "dev_accuracy", "test_accuracy", "peak_memory_bytes", "seconds"]


@dataclass
class Report:
    """What was run (`header`) and how it went (`runs`, one dictionary per finished arm and seed)."""

    header: dict[str, Any]
    runs: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """The results in a folder, finished or not."""
        try:
            content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            runs = content.pop("runs")
            del content["summary"]  # computed anew
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} holds no results of 'attrdrop finetune': {error!r}.") from None
        return cls(content, runs)

    def save(self, folder: Path) -> None:
        """Write all files; each one is replaced whole, so a reader never finds half a file."""
        folder.mkdir(parents=True, exist_ok=True)
        content = self.header | {"summary": self.summary(), "runs": self.runs}
        replace_file(folder / RESULTS, json.dumps(content, indent=1).encode())
        replace_file(folder / RUNS, self.runs_frame().to_csv(index=False).encode())
        curves = self.curves_frame()
        replace_file(folder / CURVES, curves.to_csv(index=False).encode())
        if self.runs:
            figure = io.BytesIO()
            plots.loss_curves(curves, figure, title=self.title)
            replace_file(folder / FIGURE, figure.getvalue())
        else:
            (folder / FIGURE).unlink(missing_ok=True)

    @property
    def title(self) -> str:
        settings, task = self.header["settings"], self.header["task"]
        seeds = len({run["seed"] for run in self.runs})
        return f"{Path(settings['model']).name} on {task['name']}, {seeds} seed{'s' if seeds != 1 else ''}"

    @property
    def accuracy(self) -> str:
        return "test_accuracy" if "test" in self.header["task"]["sizes"] else "dev_accuracy"

    def runs_frame(self) -> pd.DataFrame:
        """One row per arm and seed."""
        rows = [{name: run[name] for name in RUN_COLUMNS} | _timing(run) | _dropped(run) for run in self.runs]
        return pd.DataFrame(rows, columns=[*RUN_COLUMNS, "plain_step_ms", "addrop_step_ms", "fraction_dropped"])

    def curves_frame(self) -> pd.DataFrame:
        """One row per arm, seed and epoch."""
        rows = [
            {
                "arm": run["arm"],
                "seed": run["seed"],
                "epoch": epoch["number"],
                "dropping": epoch["statistics"] is not None,
                "train_loss": epoch["train_loss"],
                "dev_loss": epoch["dev_loss"],
                "dev_accuracy": epoch["dev_accuracy"],
                "step_ms": 1e3 * float(np.median(epoch["step_seconds"])),
            }
            for run in self.runs
            for epoch in run["epochs"]
        ]
        names = ["arm", "seed", "epoch", "dropping", "train_loss", "dev_loss", "dev_accuracy", "step_ms"]
        return pd.DataFrame(rows, columns=names)

    def summary(self) -> dict[str, Any]:
        """Mean, sample standard deviation and number of seeds of every measure, per arm and paired."""
        frame = self.runs_frame()
        measures = [name for name in frame.columns if name not in ("arm", "seed")]
        arms = {
            arm: {name: spread(rows[name].dropna()) for name in measures}
            for arm, rows in frame.groupby("arm", sort=False)
        }
        by_seed = frame.pivot(index="seed", columns="arm", values=self.accuracy).reindex(columns=list(ARMS)).dropna()
        return {
            "accuracy_is": self.accuracy,
            "arms": arms,
            "paired_difference": paired(by_seed[ADDROP] - by_seed[PLAIN]),
            "step_time_ratio": spread(self.step_time_ratios()),
        }

    def step_time_ratios(self) -> list[float]:
        """Per seed: the median ratio of an AD-DROP step to the plain arm's step on the very same batch."""
        plain = {
            (run["seed"], epoch["number"]): epoch["step_seconds"]
            for run in self.runs
            if run["arm"] == PLAIN
            for epoch in run["epochs"]
        }
        ratios = []
        for run in self.runs:
            pairs = [
                np.divide(epoch["step_seconds"], plain[run["seed"], epoch["number"]])
                for epoch in run["epochs"]
                if epoch["statistics"] and (run["seed"], epoch["number"]) in plain
            ]
            if pairs:
                ratios.append(float(np.median(np.concatenate(pairs))))
        return ratios

    def table(self) -> "Table":
        """The summary for a terminal."""
        from rich.table import Table

        summary = self.summary()
        arms, split = summary["arms"], self.accuracy.removesuffix("_accuracy")
        table = Table(title=self.title, caption=self._caption(), caption_justify="left")
        table.add_column("")
        for arm in ARMS:
            table.add_column(arm, justify="right")
        table.add_column("ad-drop vs plain", justify="right")

        def row(label: str, measure: str, show: Callable[[float], str], comparison: str = "") -> None:
            cells = [cell(arms[arm][measure], show) if arm in arms else "-" for arm in ARMS]
            table.add_row(label, *cells, comparison)

        difference = cell(summary["paired_difference"], lambda value: f"{100 * value:+.1f}")
        row(f"{split} accuracy, %", self.accuracy, lambda value: f"{100 * value:.1f}", difference)
        if split == "test":
            row("dev accuracy, %", "dev_accuracy", lambda value: f"{100 * value:.1f}")
        row("best epoch", "best_epoch", lambda value: f"{value:.1f}")
        ratio = cell(summary["step_time_ratio"], lambda value: f"{value:.2f}")
        row("plain step, ms", "plain_step_ms", lambda value: f"{value:.0f}")
        row("AD-DROP step, ms", "addrop_step_ms", lambda value: f"{value:.0f}", f"x {ratio}")
        row("peak memory, MiB", "peak_memory_bytes", lambda value: f"{value / 2**20:.0f}")
        row("positions dropped, %", "fraction_dropped", lambda value: f"{100 * value:.1f}")
        return table

    def _caption(self) -> str:
        sizes = ", ".join(f"{size} {name}" for name, size in self.header["task"]["sizes"].items())
        memory = "resident" if self.header["environment"]["device"] == "cpu" else "allocated on the GPU"
        chosen = "The dev split chose the best epoch" + (
            ", so its accuracy flatters." if self.accuracy == "dev_accuracy" else "."
        )
        return (
            f"Mean ± standard deviation over seeds; {sizes} examples. {chosen} Difference: paired by seed. Step ratio: "
            "AD-DROP steps against the plain arm's steps on the same batches. Peak memory: "
            f"{memory}, above what was in use when the run began. {verdict(self.summary())}"
        )


def verdict(summary: dict[str, Any]) -> str:
    """What the accuracies allow to say."""
    interval = summary["paired_difference"]["interval_95"]
    if interval is None:
        return "Too few seeds to compare the accuracies."
    bounds = f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f} points"
    if interval[0] <= 0 <= interval[1]:
        return f"95 % interval of the accuracy difference: {bounds}, so no difference is shown."
    return f"95 % interval of the accuracy difference over seeds: {bounds}."


def _timing(run: dict[str, Any]) -> dict[str, float | None]:
    def median_ms(dropping: bool) -> float | None:
        chosen = [e["step_seconds"] for e in run["epochs"] if (e["statistics"] is not None) == dropping]
        return 1e3 * float(np.median(np.concatenate(chosen))) if chosen else None

    return {"plain_step_ms": median_ms(False), "addrop_step_ms": median_ms(True)}


def _dropped(run: dict[str, Any]) -> dict[str, float | None]:
    counts = [epoch["statistics"] for epoch in run["epochs"] if epoch["statistics"]]
    valid = sum(count["valid"] for count in counts)
    return {"fraction_dropped": sum(count["dropped"] for count in counts) / valid if valid else None}
