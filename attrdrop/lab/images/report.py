"""Results of an experiment on images: columns, figures and sentences."""

from collections.abc import Iterable

from attrdrop.lab.images.settings import ARMS, ERASING, GUIDED
from attrdrop.lab.runs.arm_report import ACCURACY, COSTS, DEV, ENDING, FIT, FIT_SAID, ArmReport, flipping, taken
from attrdrop.lab.runs.report import entry, number, percent

OCCLUDED_FIGURE = "occluded.png"


class ImageReport(ArmReport):
    """Results on images."""

    kind = "train-images"
    all_arms = ARMS
    changed = "erased"
    tested = "test images"
    watched = ("rank_accuracy", "flipping")
    rival, guided = ERASING, GUIDED
    measures = (
        DEV,
        ACCURACY,
        *FIT,
        taken("erased"),
        *COSTS,
        entry("rank_accuracy", "rank acc., %", percent()),
        flipping("descending", "flip top, %"),
        flipping("random", "flip random, %"),
        entry("channel_gini", "channel Gini", number(2)),
        *ENDING,
    )

    def run_figures(self, arms: Iterable[str]) -> list[str]:
        return [*map(maps_figure, arms), OCCLUDED_FIGURE]

    def caption(self) -> str:
        return (
            f"Mean ± standard deviation over seeds; {self.sizes} images. {FIT_SAID} Erased: share of all images' area. "
            "Attributed: share of images. Step: transform, forward, backward and update, median of all; step / plain: "
            "on the same batch. Memory: peak above the start of the run. Rank acc.: relevant pixels on the object. "
            "Flip: mean probability of the class while the most relevant or random pixels go. Channel Gini: how few "
            "channels of the last stage carry relevance. Relevance by z+, epsilon and flat."
        )


def maps_figure(arm: str) -> str:
    """Name of the figure with relevance maps of an arm."""
    return f"maps_{arm}.png"
