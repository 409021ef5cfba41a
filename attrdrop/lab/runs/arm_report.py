"""What the results of an experiment that trains from scratch have in common, on images and on point clouds."""

from typing import IO, Any, ClassVar

import numpy as np
import pandas as pd

from attrdrop import plots
from attrdrop.lab.runs import times
from attrdrop.lab.runs.report import (
    CURVES,
    MEMORY,
    SECONDS,
    Column,
    Draw,
    Report,
    Result,
    difference,
    entry,
    percent,
    points,
    timed,
)
from attrdrop.lab.runs.verdict import verdict

FLIPPING = "flipping.csv"
DIFFERENCE = "accuracy_difference_to_plain"


def taken(name: str) -> Column:
    """The share of the training data that was taken away, under a name of its own."""
    return Column(
        name, lambda run, plain: float(np.mean([epoch["changed"] for epoch in run["epochs"]])), f"{name}, %", percent()
    )


def flipping(order: str, label: str) -> Column:
    """The mean probability while features go in an order."""
    return Column(f"flipping_{order}", lambda run, plain: run["flipping_auc"][order], label, percent())


def _flipping_curves(frame: pd.DataFrame, target: IO[bytes], title: str = "") -> None:
    shown = frame.assign(score=100 * frame["score"])
    plots.flipping_curves(shown, target, title, score="probability of the class (%)")


def _step_ms(run: Result, plain: Result | None) -> np.ndarray:
    return times.step_ms(run["epochs"])


def _step_ratios(run: Result, plain: Result | None) -> np.ndarray:
    return times.step_ratios(run["epochs"], plain["epochs"] if plain else [])


ACCURACY = entry("test_accuracy", "accuracy, %", percent())
CALIBRATION = entry("calibration_error", "calib. err., %", percent())
COSTS = (
    entry("attributed", "attributed, %", percent(0)),
    timed("step_ms", _step_ms, "step, ms"),
    timed("step_ratio", _step_ratios, "step / plain", 2, is_ratio=True),
    entry("peak_memory_bytes", "memory, MiB", MEMORY.show),
)
ENDING = (SECONDS, difference(DIFFERENCE, "test_accuracy", "acc. - plain", points, limit=1, always=True))


class ArmReport(Report):
    """Results with curves of flipping; `changed` is the name of `Epoch.changed`, `tested` what the test split has."""

    tested: ClassVar[str]
    changed: ClassVar[str]
    measures: ClassVar[tuple[Column, ...]]

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.measures

    @property
    def curves(self) -> dict[str, str]:  # type: ignore[override]
        return {name: name for name in ("train_loss", "test_loss", "test_accuracy")} | {self.changed: "changed"}

    def frames(self) -> dict[str, pd.DataFrame]:
        return super().frames() | {FLIPPING: self.flipping_frame()}

    def drawings(self) -> dict[str, tuple[Draw, str]]:
        return {"curves.png": (plots.training_curves, CURVES), "flipping.png": (_flipping_curves, FLIPPING)}

    def flipping_frame(self) -> pd.DataFrame:
        """One row per arm, seed, order and share of the input that is flipped."""
        rows = [
            {"arm": run["arm"], "seed": run["seed"], "order": order, "fraction": fraction, "score": score}
            for run in self.runs
            for order in run["flipping_auc"]
            for fraction, score in zip(run["flipping"]["fraction"], run["flipping"][order], strict=True)
        ]
        return pd.DataFrame(rows, columns=["arm", "seed", "order", "fraction", "score"])

    def verdict(self) -> str:
        found: dict[str, Any] = self.summary()[DIFFERENCE]
        examples = f"{self.header['task']['sizes']['test']} {self.tested}"
        return verdict(found, points, "accuracy", examples, unit="points")
