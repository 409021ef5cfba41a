"""Statistics over seeds and the table, from runs made by hand."""

import numpy as np
import pytest
from rich.console import Console

from attrdrop.lab.runs.results import paired, spread
from attrdrop.lab.text.report import RATIO, TextReport

HEADER = {
    "complete": True,
    "task": {
        "name": "task",
        "kind": "classification",
        "labels": ["a", "b"],
        "sizes": {"train": 8, "dev": 4, "test": 4},
        "metric": {"name": "accuracy", "better": 1, "percent": True},
    },
    "settings": {"model": "some/model", "arms": ["plain", "ad-drop"]},
    "environment": {"device": "cpu"},
}


def run(arm, seed, accuracy, steps):
    """`steps`: per epoch the seconds of each step and whether the arm was active."""
    epochs = [
        {
            "number": number,
            "active": dropping,
            "train_loss": 0.5,
            "dev_loss": 0.6,
            "dev_score": 0.75,
            "step_seconds": seconds,
            "statistics": {"valid": 100, "candidates": 30, "dropped": 9, "rescued_rows": 0} if dropping else None,
        }
        for number, (seconds, dropping) in enumerate(steps, start=1)
    ]
    return {
        "arm": arm,
        "seed": seed,
        "best_epoch": 2,
        "dev_score": 0.75,
        "test_score": accuracy,
        "other_scores": {"elsewhere": accuracy / 2} if accuracy else {},
        "peak_memory_bytes": 2**20,
        "seconds": 1.0,
        "epochs": epochs,
    }


def two_seeds():
    return [
        run("plain", 0, 0.50, [([1.0, 1.0], False), ([1.0, 2.0], False)]),
        run("ad-drop", 0, 0.75, [([1.0, 1.0], False), ([2.0, 4.0], True)]),
        run("ad-drop", 1, 0.75, [([1.0, 1.0], False), ([3.0, 3.0], True), ([1.0], False), ([9.0], True)]),
        run("plain", 1, 0.75, [([1.0, 1.0], False), ([1.0, 1.0], False)]),
    ]


def test_summary_pairs_by_seed_and_batch():
    report = TextReport(HEADER, two_seeds())
    ratio = next(column for column in report.columns if column.name == RATIO)
    assert report.values(ratio, "ad-drop") == [2.0, 3.0]
    summary = report.summary()
    assert summary["arms"]["plain"]["test_score"] == {"mean": 0.625, "std": pytest.approx(0.25 / 2**0.5), "n": 2}
    assert summary["arms"]["plain"]["active_step_ms"] == {"mean": None, "std": None, "n": 0}
    assert summary["arms"]["ad-drop"]["fraction_dropped"]["mean"] == pytest.approx(0.09)
    assert summary["arms"]["ad-drop"]["other:elsewhere"]["mean"] == 0.375
    difference = summary["difference_to_plain"]["ad-drop"]
    assert difference["mean"] == pytest.approx(0.125)
    assert difference["n"] == 2


def test_a_seed_with_one_finished_arm_has_no_difference():
    report = TextReport(HEADER, two_seeds()[:3])
    summary = report.summary()
    assert summary["difference_to_plain"]["ad-drop"]["n"] == 1
    assert summary["difference_to_plain"]["ad-drop"]["std"] is None
    assert "Too few seeds" in report.verdict()


def test_interval_is_students():
    from scipy import stats

    values = [0.01, 0.03, -0.02, 0.04]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired(values)["interval_95"] == pytest.approx([low, high])
    assert spread(values)["std"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("count", range(5))
def test_table_of_any_number_of_runs(count):
    console = Console(width=100, record=True)
    console.print(TextReport(HEADER, two_seeds()[:count]).table())
    text = console.export_text()
    assert "test accuracy" in text
    assert ("2.50 ± 0.71" in text) == (count == 4)
    assert ("elsewhere accuracy" in text) == (count > 0)


def test_a_metric_that_is_no_share_is_shown_as_it_is():
    metric = {"name": "perplexity", "better": -1, "percent": False}
    report = TextReport(HEADER | {"task": HEADER["task"] | {"metric": metric}}, two_seeds())
    console = Console(width=100, record=True)
    console.print(report.table())
    text = console.export_text()
    assert "test perplexity " in text
    assert "0.75 ± 0.00" in text


def test_without_a_plain_arm_nothing_is_compared():
    header = HEADER | {"settings": HEADER["settings"] | {"arms": ["ad-drop"]}}
    report = TextReport(header, [one for one in two_seeds() if one["arm"] == "ad-drop"])
    assert report.summary()["difference_to_plain"] == {}
    console = Console(width=100, record=True)
    console.print(report.table())
    assert "difference" not in console.export_text().split("Mean ±")[0]


def test_the_score_is_of_the_development_split_without_a_test_split():
    header = HEADER | {"task": HEADER["task"] | {"sizes": {"train": 8, "dev": 4}}}
    report = TextReport(header, [one | {"test_score": None} for one in two_seeds()])
    assert report.summary()["score_is"] == "dev_score"
    console = Console(width=100, record=True)
    console.print(report.table())
    assert "test accuracy" not in console.export_text()
