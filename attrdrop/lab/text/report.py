"""Results of an experiment on text: its own columns, figures and words."""

from collections.abc import Callable
from typing import Any

import numpy as np

from attrdrop import plots
from attrdrop.lab.figures.frames import OTHER
from attrdrop.lab.runs.report import (
    CURVES,
    MEMORY,
    SECONDS,
    Column,
    Draw,
    Report,
    Result,
    Show,
    difference,
    entry,
    intervals,
    median_ms,
    number,
    percent,
    points,
)

DIFFERENCE, RATIO = "difference_to_plain", "step_ratio_to_plain"


class TextReport(Report):
    """Results on text."""

    kind = "finetune"
    curves = {name: name for name in ("active", "train_loss", "dev_loss", "dev_score")}  # noqa: RUF012

    @property
    def columns(self) -> list[Column]:
        scores = {split: entry(f"{split}_score", self._labelled(split), self._shown) for split in ("dev", "test")}
        others = dict.fromkeys(name for run in self.runs for name in run["other_scores"])
        return [
            entry("best_epoch", "best epoch"),
            *scores.values(),
            MEMORY,
            SECONDS,
            *(Column(OTHER + name, _other(name), self._labelled(name), self._shown) for name in others),
            _time("plain"),
            _time("active"),
            Column("fraction_dropped", _fraction_dropped, "positions dropped, %", percent()),
            difference(DIFFERENCE, f"{self.split}_score", "difference to plain", self._signed),
            Column(RATIO, _ratio, "active step to plain", number(2), is_time=True, compares=True),
        ]

    @property
    def rows(self) -> list[Column]:
        found = {column.name: column for column in self.columns}
        others = [name for name in found if name.startswith(OTHER)]
        scores = [f"{self.split}_score", DIFFERENCE, *(["dev_score"] if self.split == "test" else []), *others]
        times = ["best_epoch", "plain_step_ms", "active_step_ms", RATIO, "peak_memory_bytes", "fraction_dropped"]
        return [found[name] for name in scores + times]

    def drawings(self) -> dict[str, tuple[Draw, str]]:
        return {"curves.png": (plots.loss_curves, CURVES)}

    @property
    def split(self) -> str:
        """The split whose score is reported."""
        return "test" if "test" in self.header["task"]["sizes"] else "dev"

    def summary(self) -> dict[str, Any]:
        return {"score_is": f"{self.split}_score"} | super().summary()

    def caption(self) -> str:
        memory = "resident" if self.header["environment"]["device"] == "cpu" else "allocated on the GPU"
        chosen = "The dev split chose the best epoch" + (", so its score flatters." if self.split == "dev" else ".")
        return (
            f"Mean ± standard deviation over seeds; {self.sizes} examples. {chosen} Difference: paired by seed. Active "
            "step: one in which the arm does not train plainly, against the plain arm's step on the same batch. Peak "
            f"memory: {memory}, above what was in use when the run began."
        )

    def verdict(self) -> str:
        found = self.summary()[DIFFERENCE]
        return intervals(found, self._signed, "difference to plain", f"the arms by {self._metric['name']}")

    @property
    def _metric(self) -> dict[str, Any]:
        return dict(self.header["task"]["metric"])

    def _labelled(self, what: str) -> str:
        return f"{what} {self._metric['name']}{', %' if self._metric['percent'] else ''}"

    @property
    def _shown(self) -> Show:
        return percent() if self._metric["percent"] else number(2)

    @property
    def _signed(self) -> Show:
        return points if self._metric["percent"] else (lambda value: f"{value:+.2f}")


def step_times(epochs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Median time of a step in milliseconds, of plain epochs and of active ones."""
    return {
        "plain_step_ms": median_ms(epoch for epoch in epochs if not epoch["active"]),
        "active_step_ms": median_ms(epoch for epoch in epochs if epoch["active"]),
    }


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


def _time(kind: str) -> Column:
    name = f"{kind}_step_ms"

    def read(run: Result, plain: Result | None) -> float | None:
        return step_times(run["epochs"])[name]

    return Column(name, read, f"{kind} step, ms", number(0), is_time=True)


def _fraction_dropped(run: Result, plain: Result | None) -> float | None:
    return fraction_dropped(run["epochs"])


def _other(name: str) -> Callable[[Result, Result | None], float | None]:
    return lambda run, plain: run["other_scores"].get(name)


def _ratio(run: Result, plain: Result | None) -> float | None:
    return step_ratio(run["epochs"], plain["epochs"]) if plain else None
