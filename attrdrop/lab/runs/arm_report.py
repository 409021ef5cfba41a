"""What results on images and on point clouds share, where models are trained from scratch."""

from functools import partial
from typing import IO, Any, ClassVar

import numpy as np
import pandas as pd

from attrdrop import plots
from attrdrop.lab.runs import signatures, times
from attrdrop.lab.runs.layout import WideTable
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
from attrdrop.lab.runs.variants import arm_of, axes_of, changes_of
from attrdrop.lab.runs.verdict import loss_verdict, verdict
from attrdrop.plots import grids

FLIPPING = "flipping.csv"
GRID, GRID_FIGURE = "grid.csv", "grid.png"
DIFFERENCE, LOSS_DIFFERENCE = "accuracy_difference_to_plain", "loss_difference_to_plain"


def taken(name: str) -> Column:
    """The share of the training data that was taken away, under a name of its own."""
    return Column(
        name, lambda run, plain: float(np.mean([epoch["changed"] for epoch in run["epochs"]])), f"{name}, %", percent()
    )


def flipping(order: str, label: str) -> Column:
    """The mean probability while features go in an order."""
    return Column(f"flipping_{order}", lambda run, plain: run["flipping_auc"][order], label, percent())


def hidden(name: str, label: str, show: Show) -> Column:
    """The column of what a run says itself, which has no row where it is 0 in all of them."""
    return Column(name, lambda run, plain: run[name] or None, label, show)


def _flipping_curves(frame: pd.DataFrame, target: IO[bytes], title: str = "") -> None:
    shown = frame.assign(score=100 * frame["score"])
    plots.flipping_curves(shown, target, title, score="probability of the class (%)")


def _step_ms(run: Result, plain: Result | None) -> np.ndarray:
    return times.step_ms(run["epochs"])


def _step_ratios(run: Result, plain: Result | None) -> np.ndarray:
    return times.step_ratios(run["epochs"], plain["epochs"] if plain else [])


ACCURACY = entry("test_accuracy", "accuracy, %", percent())
FIT = (  # how sure the model is, and how much more so on what it has seen
    entry("loss", "test loss", number(3)),
    entry("calibration_error", "calib. err., %", percent()),
    entry("brier_score", "Brier score", number(3)),
    *gaps("test_loss", lambda run: min(run["epochs"], key=lambda epoch: epoch["test_loss"])),
)
DEV = entry("dev_accuracy", "dev acc., %", percent())
FIT_SAID = (
    "Loss, calibration error and Brier score are of the test split, like accuracy after the last epoch. Loss gap: "
    "above that on training examples as they are; the best epoch has the lowest test loss."
)
COSTS = (
    entry("attributed", "attributed, %", percent(0)),
    hidden("reused", "relevance reused, %", percent(0)),
    hidden("agreement", "old on new relevance, %", percent(0)),
    hidden("cache_bytes", "cache, MiB", lambda value: f"{value / 2**20:.1f}"),
    timed("step_ms", _step_ms, "step, ms"),
    timed("step_ratio", _step_ratios, "step / plain", 2, is_ratio=True),
    entry("peak_memory_bytes", "memory, MiB", MEMORY.show),
)
ENDING = (
    SECONDS,
    difference(DIFFERENCE, "test_accuracy", "acc. - plain", points, limit=1, always=True),
    difference(LOSS_DIFFERENCE, "loss", "loss - plain", signed),
)


class ArmReport(Report):
    """Results with curves of flipping; `changed` is the name of `Epoch.changed`, `tested` what the test split has."""

    tested: ClassVar[str]
    changed: ClassVar[str]
    measures: ClassVar[tuple[Column, ...]]
    watched: ClassVar[tuple[str, ...]]  # columns of the epochs that may be empty
    rival: ClassVar[str]  # the arm that takes away as much at random
    guided: ClassVar[tuple[str, ...]]  # arms that are to be better than it

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.measures

    @property
    def curves(self) -> dict[str, str]:  # type: ignore[override]
        names = ("train_loss", "fitted_loss", "test_loss", "test_accuracy", *self.watched)
        return {name: name for name in names} | {self.changed: "changed"}

    @property
    def axes(self) -> dict[str, list[str]]:
        """Settings in which arms differ, and their values."""
        return axes_of(self.arms)

    def frames(self) -> dict[str, pd.DataFrame]:
        grid = {GRID: self.grid_frame()} if self.axes else {}
        return super().frames() | {FLIPPING: self.flipping_frame()} | grid

    def drawings(self) -> dict[str, tuple[Draw, str]]:
        drawn: dict[str, tuple[Draw, str]] = {
            "curves.png": (plots.training_curves, CURVES),
            "flipping.png": (_flipping_curves, FLIPPING),
        }
        if self.axes:
            names = sorted(self.axes, key=lambda name: -len(self.axes[name]))[:2]
            drawn[GRID_FIGURE] = (partial(grids.heat_maps, x=names[0], y=names[1] if names[1:] else None), GRID)
        return drawn

    def grid_frame(self) -> pd.DataFrame:
        """One row per arm with settings of its own: these, mean accuracies in %, and the difference to plain."""
        differences, arms = self.summary()[DIFFERENCE], self.summary()["arms"]
        rows = []
        for label in self.arms:
            if not changes_of(label) or label not in arms:
                continue
            accuracies = {
                f"{split} accuracy, %": 100 * found["mean"] if found["mean"] is not None else None
                for split in ("dev", "test")
                for found in [arms[label][f"{split}_accuracy"]]
            }
            gain = differences.get(label, {}).get("mean")
            rows.append(
                {"arm": arm_of(label), **{name: changes_of(label).get(name) for name in self.axes}, **accuracies}
                | {"test accuracy - plain, points": None if gain is None else 100 * gain}
                | {"seeds": arms[label]["test_accuracy"]["n"]}
            )
        columns = ["arm", *self.axes, "dev accuracy, %", "test accuracy, %", "test accuracy - plain, points", "seeds"]
        return pd.DataFrame(rows, columns=columns)

    def chosen(self) -> dict[str, str]:
        """By arm, the settings that have the best mean accuracy on the development split, of those with most seeds."""
        arms = self.summary()["arms"]
        found: dict[str, str] = {}
        for arm in dict.fromkeys(map(arm_of, arms)):
            tried = {label: arms[label]["dev_accuracy"] for label in arms if arm_of(label) == arm}
            tried = {label: measure for label, measure in tried.items() if measure["n"]}
            most = max((measure["n"] for measure in tried.values()), default=0)
            full = [label for label, measure in tried.items() if measure["n"] == most]
            if len(tried) > 1:
                found[arm] = max(full, key=lambda label: tried[label]["mean"])
        return found

    def layout(self, title: str, rows: list[tuple[str, list[str]]]) -> WideTable:
        """With settings that differ, arms are rows."""
        if not self.axes:
            return super().layout(title, rows)
        turned = [(arm, [cells[place] for _, cells in rows]) for place, arm in enumerate(self.arms)]
        return WideTable(title, [label.partition("\n")[0] for label, _ in rows], turned)

    def sign(self) -> str:
        return signatures.of_runs(self.runs, self.rival, self.guided)

    def flipping_frame(self) -> pd.DataFrame:
        """One row per arm, seed, order and share of the input that is flipped."""
        rows = [
            {"arm": run["arm"], "seed": run["seed"], "order": order, "fraction": fraction, "score": score}
            for run in self.runs
            for order in run["flipping_auc"]
            for fraction, score in zip(run["flipping"]["fraction"], run["flipping"][order], strict=True)
        ]
        return pd.DataFrame(rows, columns=["arm", "seed", "order", "fraction", "score"])

    def advice(self) -> str:
        count = self.header["task"]["sizes"]["test"]
        return f"Look at loss, gap, flip top: accuracy of {count} {self.tested} errs by {errs_by(count)}."

    def verdict(self) -> str:
        """Of arms that were tried with several settings, on those that the development split chose."""
        summary: dict[str, Any] = self.summary()
        examples = f"{self.header['task']['sizes']['test']} {self.tested}"
        chosen = self.chosen()
        kept = [label for label in summary[DIFFERENCE] if chosen.get(arm_of(label), label) == label]
        differences, losses = (
            {label: summary[name][label] for label in kept} for name in (DIFFERENCE, LOSS_DIFFERENCE)
        )
        shown = verdict(differences, points, "accuracy", examples, unit="points")
        said = [shown + loss_verdict(losses, "test loss", examples)]
        if chosen:
            said.insert(
                0, f"The development split chose: {'; '.join(chosen.values())}. Test scores below are of these."
            )
        elif self.axes:
            said.insert(0, "Nothing was chosen, because there is no development split; hold one out with --dev-size.")
        if sign := self.sign():
            said.append(f"Watch out: {sign}.")
        return " ".join(said)
