"""`attrdrop study`: the statistics, the plan, and a search with fresh runs that survives a kill."""

import itertools
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from lab_runs import one_thread, start, sticks  # noqa: F401
from refusals import assert_refused
from scipy import stats
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.errors import InputError
from attrdrop.lab.protocol.comparison import compare, detectable, holm
from attrdrop.lab.protocol.plan import Twin, load
from attrdrop.lab.protocol.report import StudyReport, chosen

DRAWS = np.random.default_rng(0)
PLAN = """
[[setting]]
name = "sticks"
command = "train-points"
options = {{ dataset = "npz", data = "{data}", model = "pointnet", width = 0.1, points = 24, epochs = 2,
    batch_size = 16, dev_size = 12 }}
trials = 3
search_seeds = [0, 1]
seeds = [7, 8, 9]
chosen_by = "loss"
primary = "loss"
compare = [["reldrop", "plain"], ["reldrop", "as many at random"]]
[setting.arms.plain]
lr = [2e-3, 2e-2]
[setting.arms.reldrop]
lr = [2e-3, 2e-2]
beta = [0.1, 0.3]
[setting.twins."as many at random"]
of = "reldrop"
arm = "dropout"
""".replace("\n    batch", " batch")


@pytest.fixture
def plan(tmp_path):
    np.savez(tmp_path / "sticks.npz", **sticks())
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(data=tmp_path / "sticks.npz"))
    return path


# Statistics


def test_intervals_and_p_are_those_of_paired_tests():
    first, second = DRAWS.normal(1, 1, 9), DRAWS.normal(0.3, 1, 9)
    found = compare(first, second)
    test = stats.ttest_rel(first, second)
    assert found["difference"] == pytest.approx((first - second).mean())
    assert found["student"] == pytest.approx([*test.confidence_interval(0.95)])
    means = [abs(np.mean(signs * (first - second))) for signs in itertools.product((-1, 1), repeat=9)]
    assert found["p"] == pytest.approx(np.mean(np.array(means) >= abs(found["difference"]) - 1e-12))
    low, high = found["bootstrap"]
    assert low < found["difference"] < high
    assert high - low == pytest.approx(found["student"][1] - found["student"][0], rel=0.5)
    assert found == compare(first, second)  # resampling does not vary


def test_few_and_constant_pairs():
    two = compare([1.0, 2.0], [0.0, 0.5])
    assert (two["n"], two["difference"]) == (2, 1.25)
    assert two["student"] is two["bootstrap"] is two["p"] is two["detectable"] is None
    same = compare([1.0] * 5, [0.5] * 5)
    assert same["student"] == same["bootstrap"] == [0.5, 0.5]
    assert same["p"] == 2 / 2**5


def test_the_detectable_difference_is_found_in_four_of_five_cases():
    n, deviation = 12, 1.7
    pairs = DRAWS.normal(detectable(deviation, n), deviation, (20_000, n))
    assert np.mean(stats.ttest_1samp(pairs, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm (1979), step by step
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


# Plans


def test_a_twin_takes_over_what_was_chosen():
    chosen_point = {"lr": 0.1, "p": 0.5, "q": 0.4}
    rate = Twin("ad-drop", "attention-dropout", {"rate": "matched"})
    assert rate.point(chosen_point, {}) == chosen_point | {"rate": 0.1}
    assert rate.point(chosen_point, {"cross_tuning": False})["rate"] == 0.2
    assert rate.point({"lr": 0.1, "p": 0.5}, {"q": 0.8})["rate"] == 0.2
    random = Twin("ad-drop", "ad-drop", {"attribution": "RD"})
    assert random.point(chosen_point, {}) == chosen_point | {"attribution": "RD"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[[setting]]", "[[settings]]", "must have one [[setting]] or more"),
        ('command = "train-points"', 'command = "train"', "command: 'train' is not one of finetune"),
        ("trials = 3", "", "missing 1 required"),
        ("trials = 3", "trials = 3\ntrys = 1", "unexpected keyword argument 'trys'"),
        ("trials = 3", "trials = 0", "trials must be 1 or more"),
        ("seeds = [7, 8, 9]", "seeds = [1, 8]", "1 is among search_seeds too"),
        ("beta = [0.1, 0.3]", "beta = 0.1", "beta must be a list of choices, got 0.1"),
        ("beta = [0.1, 0.3]", "betas = [0.1, 0.3]", "reldrop: 'betas' is not an option of train-points"),
        ("width = 0.1", "widths = 0.1", "'widths' is not an option of train-points"),
        ("beta = [0.1, 0.3]", "beta = [-1.0]", "--beta: -1.0 is not a share"),
        ('of = "reldrop"', 'of = "rel"', "'rel' is not one of the arms plain, reldrop"),
        ('["reldrop", "plain"]', '["reldrop", "dropout"]', "not two of plain, reldrop, as many at random"),
        ('primary = "loss"', 'primary = "los"', "primary: 'los' is not one of dev_accuracy, test_accuracy"),
        (", dev_size = 12", "", "needs dev_size"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(plan, tmp_path, before, after, said):
    text = plan.read_text()
    assert before in text
    plan.write_text(text.replace(before, after))
    outcome = CliRunner().invoke(app, ["study", str(plan), "--output", str(tmp_path / "out")], env={"COLUMNS": "400"})
    assert_refused(outcome, tmp_path / "out", said)


# Choice and report, from runs made by hand


def frame(setting, arm, losses, point="{}", first_seed=7):
    return pd.DataFrame(
        {"setting": setting, "arm": arm, "point": point, "seed": range(first_seed, first_seed + len(losses)),
         "loss": losses, "test_accuracy": 0.5}
    )  # fmt: skip


def test_the_best_mean_of_whole_searches_is_chosen(plan):
    (setting,) = load(plan)
    search = pd.concat(
        [
            frame("sticks", "plain", [0.5, 0.7], '{"lr": 0.002}', 0),
            frame("sticks", "plain", [0.1], '{"lr": 0.02}', 0),  # one of two seeds
            frame("sticks", "reldrop", [0.5, 0.3], '{"beta": 0.1, "lr": 0.02}', 0),
            frame("sticks", "reldrop", [0.6, 0.3], '{"beta": 0.3, "lr": 0.02}', 0),
            frame("another", "reldrop", [0.0, 0.0], '{"beta": 0.9}', 0),
        ]
    )
    best = {"beta": 0.1, "lr": 0.02}
    assert chosen(setting, search) == {"plain": {"lr": 0.002}, "reldrop": best, "as many at random": best}


def test_the_report_of_a_difference_and_of_none(plan, tmp_path):
    settings = load(plan)
    plain = DRAWS.normal(1, 0.1, 8)
    runs = pd.concat(
        [
            frame("sticks", "plain", plain),
            frame("sticks", "reldrop", plain - 0.2 + DRAWS.normal(0, 0.02, 8)),
            frame("sticks", "as many at random", plain[::-1]),
        ]
    )
    report = StudyReport(settings, frame("sticks", "plain", [0.5, 0.6], '{"lr": 0.002}', 0), runs)
    compared = report.comparisons
    primary = compared[compared["primary"]]
    assert primary["p"].iloc[0] == 2 / 2**8
    assert primary["holm"].to_list() == holm(primary["p"].to_list())
    assert compared.loc[~compared["primary"], "holm"].isna().all()
    first, second = report.verdicts()
    assert first == "sticks, loss: reldrop is better than plain."
    if primary["holm"].iloc[1] >= 0.05:
        assert "no difference" in second
    report.save(tmp_path)
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".md", ".csv")}
    StudyReport.from_tables(settings, tmp_path).save(tmp_path / "again")
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir() if path.suffix != ".png"}
    assert {name: again[name] for name in ("report.md", "comparisons.csv")} == {
        name: written[name] for name in ("report.md", "comparisons.csv")
    }


def test_worse_and_undecided_are_said_as_they_are(plan):
    settings = load(plan)
    plain = DRAWS.normal(1, 0.1, 8)
    runs = [frame("sticks", "plain", plain), frame("sticks", "reldrop", plain + 0.2 + DRAWS.normal(0, 0.02, 8))]
    noise = plain + np.tile([0.3, -0.3], 4)
    report = StudyReport(
        settings, frame("sticks", "plain", []), pd.concat([*runs, frame("sticks", "as many at random", noise)])
    )
    assert report.verdicts()[0] == "sticks, loss: reldrop is worse than plain."
    undecided = pd.concat([runs[0], frame("sticks", "reldrop", noise)])
    (said,) = StudyReport(settings, frame("sticks", "plain", []), undecided).verdicts()
    assert "no difference between reldrop and plain shown; 8 seeds would detect one of 0." in said


def test_tables_that_are_not_there(tmp_path, plan):
    with pytest.raises(InputError, match="holds no tables of a study"):
        StudyReport.from_tables(load(plan), tmp_path)


# The command


def study(plan, output):
    outcome = CliRunner().invoke(app, ["study", str(plan), "--output", str(output)], env={"COLUMNS": "80"})
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


@pytest.mark.slow
def test_a_killed_study_goes_on_as_it_would_have(plan, tmp_path):
    """Optuna proposes three of RelDrop's four points; a kill -9 in their midst changes nothing of the result."""
    process = start("study", plan, "--output", tmp_path / "killed")
    trials, deadline = tmp_path / "killed" / "trials", time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None and len([*trials.glob("*.json")]) < 6:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in trials.glob("*.json")}
    assert 6 <= len(kept) < 19
    said = study(plan, tmp_path / "killed")
    assert "are not repeated" in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert max(map(len, said.splitlines())) <= 80
    study(plan, tmp_path / "whole")
    for name in ("search.csv", "runs.csv", "comparisons.csv", "report.md"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    search = pd.read_csv(tmp_path / "whole" / "search.csv")
    # All points of the one, as many as there are trials of the other, also where optuna proposes one twice.
    assert search.groupby("arm")["point"].nunique().to_dict() == {"plain": 2, "reldrop": 3}
    runs = pd.read_csv(tmp_path / "whole" / "runs.csv")
    assert len(runs) == 9
    assert set(zip(runs["arm"], runs["seed"], strict=True)) == set(itertools.product(set(runs["arm"]), (7, 8, 9)))
    drawn = CliRunner().invoke(app, ["study", str(plan), "--output", str(tmp_path / "whole"), "--draw"])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "killed" / "report.md").read_text() == (tmp_path / "whole" / "report.md").read_text()
