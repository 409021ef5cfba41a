"""What the results of an experiment that trains from scratch have in common, on images and on point clouds."""

from typing import Any, ClassVar

import numpy as np
import pandas as pd

from attrdrop import plots
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
    intervals,
    median_ms,
    number,
    percent,
    points,
)

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


def _step_ms(run: Result, plain: Result | None) -> float:
    found = median_ms(run["epochs"])
    assert found is not None
    return found


def _step_ratio(run: Result, plain: Result | None) -> float | None:
    return _step_ms(run, plain) / _step_ms(plain, plain) if plain else None


ACCURACY = entry("test_accuracy", "accuracy, %", percent())
CALIBRATION = entry("calibration_error", "calib. err., %", percent())
COSTS = (
    entry("attributed", "attributed, %", percent(0)),
    Column("step_ms", _step_ms, "step, ms", number(0), is_time=True),
    Column("step_ratio", _step_ratio, "step / plain", number(2), is_time=True),
    entry("peak_memory_bytes", "memory, MiB", MEMORY.show),
)
ENDING = (SECONDS, difference(DIFFERENCE, "test_accuracy", "acc. - plain", points, always=True))


class ArmReport(Report):
    """Results with curves of flipping; `changed` is the name of `Epoch.changed`."""

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
        return {"curves.png": (plots.training_curves, CURVES), "flipping.png": (plots.flipping_curves, FLIPPING)}

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
        return intervals(found, points, "accuracy difference to plain, in points", "the accuracies")
