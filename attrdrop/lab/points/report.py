"""Results of an experiment on point clouds: columns, tables, figures and sentences."""

from collections.abc import Iterable
from functools import partial

import pandas as pd

from attrdrop import plots
from attrdrop.lab.points.settings import ARMS, DROPOUT, RELDROP
from attrdrop.lab.runs.arm_report import ACCURACY, COSTS, DEV, ENDING, FIT, FIT_SAID, ArmReport, flipping, taken
from attrdrop.lab.runs.report import Draw, entry, percent

POINT_LOSS = "point_loss.csv"
POINT_LOSS_CURVES = partial(plots.point_loss_curves, score="test accuracy (share)")
DROPPED_FIGURE = "dropped.png"


class PointReport(ArmReport):
    """Results on point clouds."""

    kind = "train-points"
    all_arms = ARMS
    changed = "dropped"
    tested = "test clouds"
    watched = ("flipping",)
    rival, guided = DROPOUT, (RELDROP,)
    measures = (
        DEV,
        ACCURACY,
        entry("class_accuracy", "class acc., %", percent()),
        *FIT,
        taken("dropped"),
        *COSTS,
        flipping("descending", "flip top, %"),
        flipping("random", "flip random, %"),
        flipping("ascending", "flip bottom, %"),
        entry("point_loss_auc", "point loss, %", percent()),
        *ENDING,
    )

    def run_figures(self, arms: Iterable[str]) -> list[str]:
        return [*map(relevance_figure, arms), DROPPED_FIGURE]

    def frames(self) -> dict[str, pd.DataFrame]:
        return super().frames() | {POINT_LOSS: self.point_loss_frame()}

    def drawings(self) -> dict[str, tuple[Draw, str]]:
        return super().drawings() | {"point_loss.png": (POINT_LOSS_CURVES, POINT_LOSS)}

    def point_loss_frame(self) -> pd.DataFrame:
        """One row per arm, seed and share of the points that is lost."""
        rows = [
            {"arm": run["arm"], "seed": run["seed"], "fraction": fraction, "score": score}
            for run in self.runs
            for fraction, score in zip(run["point_loss"]["fraction"], run["point_loss"]["score"], strict=True)
        ]
        return pd.DataFrame(rows, columns=["arm", "seed", "fraction", "score"])

    def caption(self) -> str:
        return (
            f"Mean ± standard deviation over seeds; {self.sizes} clouds; class acc.: mean over classes. {FIT_SAID} "
            "Dropped: share of all training points. Attributed: share of clouds. Step: transform, forward, backward "
            "and update, median of all; step / plain: on the same batch. Memory: peak above the start of the run. "
            "Flip: mean probability of the class while the most relevant, random or least relevant points move to the "
            "origin. Point loss: mean accuracy while 0 to 90 % of the points go at random. Relevance by epsilon and "
            "flat."
        )


def relevance_figure(arm: str) -> str:
    """Name of the figure with the relevance of test clouds in an arm."""
    return f"relevance_{arm}.png"
