"""Statistics over seeds and the table, from runs made by hand."""

import numpy as np
import pytest
from rich.console import Console

from attrdrop.lab.runs.results import paired, spread
from attrdrop.lab.text.report import RATIO, TextReport

ARMS = ["plain", "ad-drop"]
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
            "fitted_loss": 0.4,
            "dev_loss": 0.6,
            "dev_score": 0.75,
            "step_seconds": seconds,
            "statistics": {"valid": 100, "dropped": 9, "dead_valid": 25, "dead_dropped": 7} if dropping else None,
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
        "measures": {"loss": 0.6, "accuracy": accuracy or 0.75, "calibration_error": 0.1, "brier_score": 0.4},
        "deletion_score": 0.6,
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
    assert summary["arms"]["ad-drop"]["fraction_dead"]["mean"] == pytest.approx(0.2)
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


def printed(report, width=80):
    console = Console(width=width, record=True)
    console.print(report.table())
    return console.export_text()


def test_ratios_of_a_busy_machine_are_not_shown():
    """Half of the steps take five times as long: no such ratio means anything, whatever its median is."""
    runs = two_seeds()
    report = TextReport(HEADER, runs)
    assert report.summary()["steps"][RATIO]["ad-drop"] == {"median": 2.5, "quartiles": [2.0, 3.0], "n": 4}
    assert report.summary()["steps"]["active_step_ms"]["plain"] == {"median": None, "quartiles": None, "n": 0}
    assert "busy" not in printed(report)
    runs[2]["epochs"][1]["step_seconds"] = [3.0, 15.0]
    text = printed(TextReport(HEADER, runs))
    row = next(line for line in text.splitlines() if line.startswith("active step to plain"))
    assert row.split()[-2:] == ["-", "-"]
    assert "the machine was busy" in " ".join(text.split())


def with_scores(*pairs, examples=300):
    """One seed for each pair of scores: of the plain arm, of the other one."""
    header = HEADER | {"task": HEADER["task"] | {"sizes": {"train": 8, "dev": 4, "test": examples}}}
    steps = [([1.0], False), ([1.0], True)]
    runs = [
        run(arm, seed, score, steps) for seed, pair in enumerate(pairs) for arm, score in zip(ARMS, pair, strict=True)
    ]
    return TextReport(header, runs)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([(0.5, 0.6), (0.6, 0.6)], "Too few seeds to compare the arms: 2; use 3 or more."),
        (
            [(0.5, 0.6), (0.6, 0.6), (0.7, 0.6)],
            "No difference shown; 3 seeds of 300 test examples cannot show one below 24.8 points. 95 % intervals of "
            "the difference from plain (accuracy, in points): ad-drop -24.8 to +24.8.",
        ),
        ([(0.5, 0.6), (0.6, 0.71), (0.7, 0.79)], "Better than plain: ad-drop. 95 % intervals"),
        ([(0.6, 0.5), (0.71, 0.6), (0.79, 0.7)], "Worse than plain: ad-drop. 95 % intervals"),
        ([(0.0, 1.0), (1.0, 0.0), (0.5, 1.0)], "ad-drop -100.0 to +100.0."),
        ([(0.5, 0.5)] * 3, "No difference shown; 3 seeds of 300 test examples cannot show one. 95 %"),
    ],
)
def test_what_the_scores_allow_to_say_comes_first_under_the_table(pairs, said):
    report = with_scores(*pairs)
    assert said in report.verdict()
    below = printed(report, 1000).split("dead positions, %")[-1].split("\n\n")[-1]
    assert below.startswith(report.verdict())


def test_a_score_that_should_be_low_is_better_when_it_is_lower():
    report = with_scores((20.0, 18.0), (21.0, 19.1), (19.0, 17.2))
    report.header["task"]["metric"] = {"name": "perplexity", "better": -1, "percent": False}
    assert report.verdict().startswith("Better than plain: ad-drop. 95 %")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_seven_arms_are_whole_at_any_width(width):
    """What does not fit goes on below, beside the plain arm again."""
    arms = ["plain", "ad-drop", "attention-dropout", "r-drop", "drop-head", "hidden-cut", "drop-key"]
    steps = [([1.0, 2.0], False), ([1.0, 2.0], True)]
    runs = [run(arm, seed, 0.123 + 0.1 * seed + 0.01 * arms.index(arm), steps) for seed in (0, 1) for arm in arms]
    header = HEADER | {"settings": {"model": "a/model", "arms": arms, "seeds": 8}}
    report = TextReport(header, runs)
    text = printed(report, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    scores = [line.split()[3:] for line in lines if line.startswith("test accuracy, %")]
    whole = [f"{17.3 + place:.1f} ± 7.1".split() for place in range(7)]
    assert [part[:3] for part in scores] == [whole[0]] * len(scores)
    assert [word for part in scores for word in part[3:]] == [word for cells in whole[1:] for word in cells]
    heads = [word for line in lines for word in line.split() if word in arms[1:]]
    assert heads[:6] == arms[1:]
    assert report.unfinished == "14 of 56 runs are finished; it is still running, or was stopped early."
    assert lines[0].split() == ["model", "on", "task,", "2", "seeds"]


def test_words_of_the_table_are_explained():
    words = " ".join(printed(TextReport(HEADER, two_seeds())).split())
    for label in ("Plain step:", "active step:", "Positions dropped:", "Dead positions:"):
        assert label in words.split("Mean ±")[1]


def test_interval_is_students():
    from scipy import stats

    values = [0.01, 0.03, -0.02, 0.04]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired(values)["interval_95"] == pytest.approx([low, high])
    assert paired(values[:2])["interval_95"] is None  # of two seeds it is as wide as all that could be
    assert paired(values, 0.001)["interval_95"] == [-0.001, 0.001]
    assert spread(values)["std"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("count", range(5))
def test_table_of_any_number_of_runs(count):
    console = Console(width=100, record=True)
    console.print(TextReport(HEADER, two_seeds()[:count]).table())
    text = console.export_text()
    assert "test accuracy" in text
    assert ("2.50" in text) == ("2.00 to 3.00" in text) == (count == 4)
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


def test_the_loss_has_a_verdict_of_its_own():
    """What overfits may lose nothing in accuracy."""
    report = with_scores((0.5, 0.6), (0.6, 0.6), (0.7, 0.6))
    for entry, loss in zip(report.runs, (0.9, 0.6, 1.0, 0.71, 0.8, 0.49), strict=True):
        entry["measures"] = entry["measures"] | {"loss": loss}
    accuracy, loss = report.verdict().split("\n")
    assert accuracy.startswith("No difference shown")
    assert loss.startswith(
        "Better than plain: ad-drop. 95 % intervals of the difference from plain (test loss): ad-drop -0."
    )
    row = next(line for line in printed(report).splitlines() if line.startswith("loss - plain"))
    assert row.split()[-3:] == ["-0.300", "±", "0.010"]


def test_one_line_says_what_to_look_at():
    report = with_scores((0.5, 0.6), (0.6, 0.6), (0.7, 0.6), examples=10_000)
    assert report.advice() == "Look at loss, gap, calibration: accuracy of 10000 examples errs by 0.5 points."
    assert len(report.advice()) <= 80
    assert report.advice() in map(str.rstrip, printed(report).splitlines())
    report.header["task"]["metric"] = {"name": "span F1", "better": 1, "percent": True}
    assert report.advice() in map(str.rstrip, printed(report).splitlines())


@pytest.mark.parametrize(("fitted", "words"), [(0.5, "less than"), (0.1, "more than"), (0.401, "as much as")])
def test_the_last_sentence_says_which_arm_overfits(fitted, words):
    report = with_scores((0.5, 0.6), (0.6, 0.6))
    for entry in report.runs:
        entry["epochs"][-1]["fitted_loss"] = 0.4 if entry["arm"] == "plain" else fitted
    last = " ".join(printed(report).rstrip().splitlines()[-3:])
    assert f"ad-drop overfits {words} plain training." in " ".join(last.split())
    assert f"on its own {fitted:.2f}; with plain training they are 0.60 and 0.40." in " ".join(last.split())
    report.runs = [entry for entry in report.runs if entry["arm"] == "plain"]
    assert report.closing() == ""
