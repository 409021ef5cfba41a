"""Statistics over seeds and the table, from runs made by hand."""

import numpy as np
import pytest
from rich.console import Console

from attrdrop.lab.report import Report, paired, spread, verdict

HEADER = {
    "complete": True,
    "task": {"name": "task", "labels": ["a", "b"], "sizes": {"train": 8, "dev": 4, "test": 4}},
    "settings": {"model": "some/model"},
    "environment": {"device": "cpu"},
}


def run(arm, seed, accuracy, steps):
    """`steps`: per epoch the seconds of each step and whether AD-DROP was at work."""
    epochs = [
        {
            "number": number,
            "train_loss": 0.5,
            "dev_loss": 0.6,
            "dev_accuracy": 0.75,
            "step_seconds": seconds,
            "statistics": {"valid": 100, "candidates": 30, "dropped": 9, "rescued_rows": 0} if dropping else None,
        }
        for number, (seconds, dropping) in enumerate(steps, start=1)
    ]
    return {
        "arm": arm,
        "seed": seed,
        "best_epoch": 2,
        "dev_accuracy": 0.75,
        "test_accuracy": accuracy,
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
    report = Report(HEADER, two_seeds())
    assert report.step_time_ratios() == [2.0, 3.0]
    summary = report.summary()
    assert summary["arms"]["plain"]["test_accuracy"] == {"mean": 0.625, "std": pytest.approx(0.25 / 2**0.5), "n": 2}
    assert summary["arms"]["plain"]["addrop_step_ms"] == {"mean": None, "std": None, "n": 0}
    assert summary["arms"]["ad-drop"]["fraction_dropped"]["mean"] == pytest.approx(0.09)
    assert summary["paired_difference"]["mean"] == pytest.approx(0.125)
    assert summary["paired_difference"]["n"] == 2


def test_a_seed_with_one_finished_arm_has_no_difference():
    summary = Report(HEADER, two_seeds()[:3]).summary()
    assert summary["paired_difference"]["n"] == 1
    assert summary["paired_difference"]["std"] is None
    assert "Too few seeds" in verdict(summary)


def test_interval_is_students():
    from scipy import stats

    values = [0.01, 0.03, -0.02, 0.04]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired(values)["interval_95"] == pytest.approx([low, high])
    assert spread(values)["std"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("count", range(5))
def test_table_of_any_number_of_runs(count):
    console = Console(width=100, record=True)
    console.print(Report(HEADER, two_seeds()[:count]).table())
    text = console.export_text()
    assert "test accuracy" in text
    assert ("x 2.50 ± 0.71" in text) == (count == 4)


def test_accuracy_is_of_the_development_split_without_a_test_split():
    header = HEADER | {"task": {"name": "task", "labels": ["a", "b"], "sizes": {"train": 8, "dev": 4}}}
    report = Report(header, [one | {"test_accuracy": None} for one in two_seeds()])
    assert report.summary()["accuracy_is"] == "dev_accuracy"
    console = Console(width=100, record=True)
    console.print(report.table())
    assert "test accuracy" not in console.export_text()
