"""Results of an experiment on images: its own columns, figures and words."""

from collections.abc import Iterable
from typing import Any, ClassVar

from attrdrop.lab.images.settings import ARMS
from attrdrop.lab.runs.report import ArmReport, mebibytes, number, percent

OCCLUDED_FIGURE = "occluded.png"


class ImageReport(ArmReport):
    """Results on images."""

    kind = "train-images"
    all_arms = ARMS
    changed = "erased"
    measures: ClassVar = {
        "test_accuracy": ("accuracy, %", percent()),
        "calibration_error": ("calib. err., %", percent()),
        "erased": ("erased, %", percent()),
        "attributed": ("attributed, %", percent(0)),
        "step_ms": ("step, ms", number(0)),
        "step_ratio": ("step / plain", number(2)),
        "peak_memory_bytes": ("memory, MiB", mebibytes),
        "rank_accuracy": ("rank acc., %", percent()),
        "flipping_descending": ("flip top, %", percent()),
        "flipping_random": ("flip random, %", percent()),
        "channel_gini": ("channel Gini", number(2)),
    }

    @staticmethod
    def run_figures(arms: Iterable[str]) -> list[str]:
        return [*map(maps_figure, arms), OCCLUDED_FIGURE]

    def _row(self, run: dict[str, Any]) -> dict[str, Any]:
        return {name: run[name] for name in ("rank_accuracy", "channel_gini")}

    def _caption(self) -> str:
        return (
            f"Mean ± standard deviation over seeds; {self._sizes} images; accuracy and calibration error of the test "
            "split after the last epoch. Erased: share of all images' area. Attributed: share of images. Step: "
            "transform, forward, backward and update, median. Memory: peak above the start of the run. Rank acc.: "
            "relevant pixels on the object. Flip: mean probability of the class while the most relevant or random "
            "pixels go. Channel Gini: how few channels of the last stage carry relevance. Relevance by z+, epsilon and "
            "flat."
        )


def maps_figure(arm: str) -> str:
    """Name of the figure with relevance maps of an arm."""
    return f"maps_{arm}.png"
