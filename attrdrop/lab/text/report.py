"""Results of an experiment on text: columns, figures and sentences."""

from collections.abc import Callable
from typing import IO, Any

import numpy as np
import pandas as pd

from attrdrop import plots
from attrdrop.lab.figures.frames import OTHER
from attrdrop.lab.names import ADDROP, PLAIN
from attrdrop.lab.runs import times
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
    errs_by,
    gaps,
    number,
    percent,
    points,
    signed,
    timed,
)
from attrdrop.lab.runs.results import paired, widest
from attrdrop.lab.runs.verdict import loss_verdict, verdict

DIFFERENCE, LOSS_DIFFERENCE, RATIO = "difference_to_plain", "loss_difference_to_plain", "step_ratio_to_plain"
SAME = 0.005  # of gaps between losses: a smaller difference is not seen in two digits
MEASURES = (  # beside the metric, how they are called and shown
    ("loss", "loss", number(3)),
    ("accuracy", "accuracy, %", percent()),
    ("calibration_error", "calib. err., %", percent()),
    ("brier_score", "Brier score", number(3)),
)


class TextReport(Report):
    """Results on text."""

    kind = "finetune"
    curves = {name: name for name in ("active", "train_loss", "fitted_loss", "dev_loss", "dev_score")}  # noqa: RUF012

    @property
    def columns(self) -> list[Column]:
        scores = {split: entry(f"{split}_score", self._labelled(split), self._shown) for split in ("dev", "test")}
        limit = widest(self._metric["name"], self._metric["percent"])
        others = dict.fromkeys(name for run in self.runs for name in run["other_scores"])
        return [
            entry("best_epoch", "best epoch"),
            *scores.values(),
            *(Column(name, _measured(name), label, show) for name, label, show in MEASURES),
            *gaps("dev_loss", _best),
            entry("deletion_score", f"tokens gone{', %' if self._metric['percent'] else ''}", self._shown),
            MEMORY,
            SECONDS,
            *(Column(OTHER + name, _other(name), self._labelled(name), self._shown) for name in others),
            _time("plain"),
            _time("active"),
            Column("fraction_dropped", _of_epochs(fraction_dropped), "positions dropped, %", percent()),
            Column("fraction_dead", _of_epochs(fraction_dead), "dead positions, %", percent()),
            difference(DIFFERENCE, f"{self.split}_score", "difference to plain", self._signed, limit),
            Column(LOSS_DIFFERENCE, _lost, "loss - plain", signed, compares=True, statistics=paired),
            timed(RATIO, _ratios, "active step to plain", 2, is_ratio=True, compares=True),
        ]

    @property
    def rows(self) -> list[Column]:
        found = {column.name: column for column in self.columns}
        others = [name for name in found if name.startswith(OTHER)]
        scores = [f"{self.split}_score", DIFFERENCE, *(["dev_score"] if self.split == "test" else []), *others]
        scores += [*(name for name, _, _ in MEASURES), "gap_best", "gap_last", "deletion_score"]
        scores.insert(scores.index("loss") + 1, LOSS_DIFFERENCE)
        if self._metric["name"] == "accuracy":
            scores.remove("accuracy")
        times = ["best_epoch", "plain_step_ms", "active_step_ms", RATIO, "peak_memory_bytes"]
        return [found[name] for name in [*scores, *times, "fraction_dropped", "fraction_dead"]]

    def drawings(self) -> dict[str, tuple[Draw, str]]:
        return {"curves.png": (_loss_curves, CURVES)}

    @property
    def split(self) -> str:
        """The split whose score is reported."""
        return "test" if "test" in self.header["task"]["sizes"] else "dev"

    def summary(self) -> dict[str, Any]:
        return {"score_is": f"{self.split}_score"} | super().summary()

    def caption(self) -> str:
        memory = "resident" if self.header["environment"]["device"] == "cpu" else "allocated on the GPU"
        chosen = "The dev split chose the best epoch" + (
            ", so its score is optimistic." if self.split == "dev" else "."
        )
        return (
            f"Mean ± standard deviation over seeds; {self.sizes} examples. {chosen} Difference: paired by seed. Plain "
            "step: one of an epoch in which the arm trains plainly, as under cross-tuning in every other one; active "
            "step: one of the others, also over the plain arm's step on the same batch; medians of all steps. Peak "
            f"memory: {memory}, above what was in use when the run began. Positions dropped: of what active steps "
            "could drop: attention positions, of drop-head heads, of hidden-cut tokens, of mixout weights, "
            "of child-tuning gradients. Loss gap: dev loss above that on training examples, both without dropout. "
            "Tokens gone: score of texts without a fifth, two or three of their tokens. Dead positions: those of "
            "queries on which the target does not depend, as of padding, are not among them; this is their share of "
            "all."
        )

    def advice(self) -> str:
        if self._metric["name"] != "accuracy":
            return "Look at loss and gap too: they tell of overfitting before the score does."
        count = self.header["task"]["sizes"][self.split]
        return f"Look at loss, gap, calibration: accuracy of {count} examples errs by {errs_by(count)}."

    def closing(self) -> str:
        """How far AD-DROP and plain training overfit after the last epoch."""
        arms = [[run["epochs"][-1] for run in self.runs if run["arm"] == arm] for arm in (ADDROP, PLAIN)]
        if not all(arms):
            return ""
        (fitted, held_out), (of_plain, plain) = (
            [float(np.mean([epoch[name] for epoch in epochs])) for name in ("fitted_loss", "dev_loss")]
            for epochs in arms
        )
        further = (held_out - fitted) - (plain - of_plain)
        words = "as much as" if abs(further) < SAME else f"{'more' if further > 0 else 'less'} than"
        return (
            f"In plain words: {ADDROP} overfits {words} plain training. After the last epoch the loss on new "
            f"texts is {held_out:.2f} and that on its own {fitted:.2f}; with plain training they are {plain:.2f} and "
            f"{of_plain:.2f}."
        )

    def verdict(self) -> str:
        summary = self.summary()
        metric, examples = self._metric, f"{self.header['task']['sizes'][self.split]} {self.split} examples"
        unit = "points" if metric["percent"] else ""
        said = verdict(summary[DIFFERENCE], self._signed, metric["name"], examples, metric["better"], unit)
        return said + loss_verdict(summary[LOSS_DIFFERENCE], f"{self.split} loss", examples)

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


def _loss_curves(frame: pd.DataFrame, target: IO[bytes], title: str = "") -> None:
    """The loss on training examples without dropout and masks: under them it tells nothing of overfitting."""
    plots.loss_curves(frame.assign(train_loss=frame["fitted_loss"]), target, title)


def step_times(epochs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Median time of a step in milliseconds, of plain epochs and of active ones."""
    return {
        f"{kind}_step_ms": times.median(times.step_ms(_epochs(epochs, active)))
        for kind, active in (("plain", False), ("active", True))
    }


def fraction_dropped(epochs: list[dict[str, Any]]) -> float | None:
    """Share of what could be dropped, over all epochs in which something could be."""
    valid, dropped = _counted(epochs, "valid"), _counted(epochs, "dropped")
    return dropped / valid if valid else None


def fraction_dead(epochs: list[dict[str, Any]]) -> float | None:
    """Share of the positions of dead queries, over all epochs with a method that knows them."""
    valid, dead = _counted(epochs, "valid"), _counted(epochs, "dead_valid")
    return dead / (valid + dead) if dead else None


def _time(kind: str) -> Column:
    def steps(run: Result, plain: Result | None) -> np.ndarray:
        return times.step_ms(_epochs(run["epochs"], kind == "active"))

    return timed(f"{kind}_step_ms", steps, f"{kind} step, ms")


def _epochs(epochs: list[dict[str, Any]], active: bool) -> list[dict[str, Any]]:
    """Those in which the arm trained plainly, or the others."""
    return [epoch for epoch in epochs if epoch["active"] == active]


def _counted(epochs: list[dict[str, Any]], what: str) -> int:
    return sum(epoch["statistics"].get(what, 0) for epoch in epochs if epoch["statistics"])


def _of_epochs(
    measure: Callable[[list[dict[str, Any]]], float | None],
) -> Callable[[Result, Result | None], float | None]:
    return lambda run, plain: measure(run["epochs"])


def _measured(name: str) -> Callable[[Result, Result | None], float | None]:
    return lambda run, plain: run["measures"].get(name)


def _lost(run: Result, plain: Result | None) -> float | None:
    return None if plain is None else run["measures"]["loss"] - plain["measures"]["loss"]


def _best(run: Result) -> Result:
    """Its best epoch."""
    return next(epoch for epoch in run["epochs"] if epoch["number"] == run["best_epoch"])


def _other(name: str) -> Callable[[Result, Result | None], float | None]:
    return lambda run, plain: run["other_scores"].get(name)


def _ratios(run: Result, plain: Result | None) -> np.ndarray:
    return times.step_ratios(_epochs(run["epochs"], True), plain["epochs"] if plain else [])
