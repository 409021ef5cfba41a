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
from attrdrop.lab.figures.frames import OTHER
from attrdrop.lab.runs.results import cell, paired, replace_file, spread
from attrdrop.lab.runs.settings import PLAIN

if TYPE_CHECKING:
    from rich.table import Table

FILES = RESULTS, RUNS, CURVES, FIGURE = "results.json", "runs.csv", "curves.csv", "curves.png"
RUN_COLUMNS = ["arm", "seed", "best_epoch", "dev_score", "test_score", "peak_memory_bytes", "seconds"]


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
            report = cls(content, runs)
            report.summary()  # needs all that this version writes
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} holds no results of 'attrdrop finetune': {error!r}.") from None
        return report

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
    def arms(self) -> list[str]:
        return list(self.header["settings"]["arms"])

    @property
    def split(self) -> str:
        """The split whose score is reported."""
        return "test" if "test" in self.header["task"]["sizes"] else "dev"

    def runs_frame(self) -> pd.DataFrame:
        """One row per arm and seed."""
        others = list(dict.fromkeys(OTHER + name for run in self.runs for name in run["other_scores"]))
        rows = [
            {name: run[name] for name in RUN_COLUMNS}
            | {OTHER + name: score for name, score in run["other_scores"].items()}
            | step_times(run["epochs"])
            | {"fraction_dropped": fraction_dropped(run["epochs"])}
            for run in self.runs
        ]
        return pd.DataFrame(
            rows, columns=[*RUN_COLUMNS, *others, "plain_step_ms", "active_step_ms", "fraction_dropped"]
        )

    def curves_frame(self) -> pd.DataFrame:
        """One row per arm, seed and epoch."""
        rows = [
            {
                "arm": run["arm"],
                "seed": run["seed"],
                "epoch": epoch["number"],
                "active": epoch["active"],
                "train_loss": epoch["train_loss"],
                "dev_loss": epoch["dev_loss"],
                "dev_score": epoch["dev_score"],
                "step_ms": 1e3 * float(np.median(epoch["step_seconds"])),
            }
            for run in self.runs
            for epoch in run["epochs"]
        ]
        names = ["arm", "seed", "epoch", "active", "train_loss", "dev_loss", "dev_score", "step_ms"]
        return pd.DataFrame(rows, columns=names)

    def summary(self) -> dict[str, Any]:
        """Mean, sample standard deviation and number of seeds of every measure per arm, and paired by seed to plain."""
        frame = self.runs_frame()
        measures = [name for name in frame.columns if name not in ("arm", "seed")]
        arms = {
            arm: {name: spread(rows[name].dropna()) for name in measures}
            for arm, rows in frame.groupby("arm", sort=False)
        }
        by_seed = frame.pivot(index="seed", columns="arm", values=f"{self.split}_score").reindex(columns=self.arms)
        rivals = [arm for arm in self.arms if PLAIN in self.arms and arm != PLAIN]
        return {
            "score_is": f"{self.split}_score",
            "arms": arms,
            "difference_to_plain": {arm: paired((by_seed[arm] - by_seed[PLAIN]).dropna()) for arm in rivals},
            "step_ratio_to_plain": {arm: spread(self.step_ratios(arm)) for arm in rivals},
        }

    def step_ratios(self, arm: str) -> list[float]:
        """Per seed: the median ratio of an active step of the arm to the plain arm's step on the very same batch."""
        plain = {run["seed"]: run["epochs"] for run in self.runs if run["arm"] == PLAIN}
        return [
            ratio
            for run in self.runs
            if run["arm"] == arm and run["seed"] in plain
            if (ratio := step_ratio(run["epochs"], plain[run["seed"]])) is not None
        ]

    def table(self) -> "Table":
        """The summary for a terminal."""
        from rich.table import Table

        summary, metric = self.summary(), self.header["task"]["metric"]
        arms, unit = summary["arms"], ", %" if metric["percent"] else ""
        score = _shown(metric)
        table = Table(title=self.title, caption=self._caption(summary), caption_justify="left")
        table.add_column("")
        for arm in self.arms:
            table.add_column(arm, justify="right")

        def row(label: str, measure: str, show: Callable[[float], str]) -> None:
            cells = [cell(arms[arm][measure], show) if arm in arms else "-" for arm in self.arms]
            if set(cells) != {"-"} or not self.runs:
                table.add_row(label, *cells)

        def compare(label: str, found: dict[str, Any], show: Callable[[float], str]) -> None:
            if found:
                table.add_row(label, *(cell(found[arm], show) if arm in found else "-" for arm in self.arms))

        row(f"{self.split} {metric['name']}{unit}", f"{self.split}_score", score)
        compare("difference to plain", summary["difference_to_plain"], _signed(metric))
        if self.split == "test":
            row(f"dev {metric['name']}{unit}", "dev_score", score)
        for name in self.runs_frame().columns:
            if name.startswith(OTHER):
                row(f"{name.removeprefix(OTHER)} {metric['name']}{unit}", name, score)
        row("best epoch", "best_epoch", lambda value: f"{value:.1f}")
        row("plain step, ms", "plain_step_ms", lambda value: f"{value:.0f}")
        row("active step, ms", "active_step_ms", lambda value: f"{value:.0f}")
        compare("active step to plain", summary["step_ratio_to_plain"], lambda value: f"{value:.2f}")
        row("peak memory, MiB", "peak_memory_bytes", lambda value: f"{value / 2**20:.0f}")
        row("positions dropped, %", "fraction_dropped", lambda value: f"{100 * value:.1f}")
        return table

    def _caption(self, summary: dict[str, Any]) -> str:
        sizes = ", ".join(f"{size} {name}" for name, size in self.header["task"]["sizes"].items())
        memory = "resident" if self.header["environment"]["device"] == "cpu" else "allocated on the GPU"
        said = verdict(summary, self.header["task"]["metric"])
        chosen = "The dev split chose the best epoch" + (", so its score flatters." if self.split == "dev" else ".")
        return (
            f"Mean ± standard deviation over seeds; {sizes} examples. {chosen} Difference: paired by seed. Active "
            "step: one in which the arm does not train plainly, against the plain arm's step on the same batch. Peak "
            f"memory: {memory}, above what was in use when the run began. {said}"
        )


def verdict(summary: dict[str, Any], metric: dict[str, Any]) -> str:
    """What the scores allow to say."""
    show = _signed(metric)
    intervals = [
        f"{arm} {show(found['interval_95'][0])} to {show(found['interval_95'][1])}"
        for arm, found in summary["difference_to_plain"].items()
        if found["interval_95"] is not None
    ]
    if not intervals:
        return f"Too few seeds to compare the arms by {metric['name']}."
    return f"95 % intervals of the difference to plain: {', '.join(intervals)}; one that spans 0 shows no difference."


def step_times(epochs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Median time of a step in milliseconds, of plain epochs and of active ones."""

    def median_ms(active: bool) -> float | None:
        chosen = [epoch["step_seconds"] for epoch in epochs if epoch["active"] == active]
        return 1e3 * float(np.median(np.concatenate(chosen))) if chosen else None

    return {"plain_step_ms": median_ms(False), "active_step_ms": median_ms(True)}


def step_ratio(epochs: list[dict[str, Any]], plain: list[dict[str, Any]]) -> float | None:
    """Median ratio of active steps to the plain steps of another run on the same batches."""
    times = {epoch["number"]: epoch["step_seconds"] for epoch in plain}
    ratios = [
        np.divide(epoch["step_seconds"], times[epoch["number"]])
        for epoch in epochs
        if epoch["active"] and epoch["number"] in times
    ]
    return float(np.median(np.concatenate(ratios))) if ratios else None


def fraction_dropped(epochs: list[dict[str, Any]]) -> float | None:
    """Share of what could be dropped, over all epochs in which something could be."""
    counts = [epoch["statistics"] for epoch in epochs if epoch["statistics"]]
    valid = sum(count["valid"] for count in counts)
    return sum(count["dropped"] for count in counts) / valid if valid else None


def _shown(metric: dict[str, Any]) -> Callable[[float], str]:
    return (lambda value: f"{100 * value:.1f}") if metric["percent"] else (lambda value: f"{value:.2f}")


def _signed(metric: dict[str, Any]) -> Callable[[float], str]:
    return (lambda value: f"{100 * value:+.1f}") if metric["percent"] else (lambda value: f"{value:+.2f}")
