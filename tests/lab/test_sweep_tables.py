"""Tables of sweeps, from trials made by hand whose means, spreads and choices are known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sweep_frames import ADDROP, PLAIN, RTE, STSB, WIKI, frame, repeated, trial

from attrdrop.lab.studies import tables

R_DROP = PLAIN | {"method": "r-drop"}
TEST = "rte: test accuracy (%)"
GAIN = "rte: test accuracy - plain (points), 95 % interval"


def test_repeated_seeds_pair_by_seed():
    plain, addrop = [0.70, 0.72, 0.68], [0.71, 0.75, 0.70]
    found = tables.repeated_seeds(frame(*repeated(addrop), *repeated(plain, method=PLAIN)[::-1]))
    assert found.index.tolist() == ["plain", "ad-drop"]
    assert found.columns.tolist() == [TEST, GAIN]
    assert found.loc["plain"].tolist() == ["70.0 ± 2.0", "-"]
    low, high = stats.ttest_1samp(100 * np.subtract(addrop, plain), 0).confidence_interval(0.95)
    assert found.loc["ad-drop"].tolist() == ["72.0 ± 2.6", f"+2.0 ({low:+.1f} to {high:+.1f})"]


def test_one_seed_has_neither_spread_nor_interval_and_no_pair_no_difference():
    trials = frame(trial(0.7, 0.7, method=PLAIN), trial(0.72, 0.72), trial(0.9, 0.9, seed=1, method=R_DROP))
    found = tables.repeated_seeds(trials)
    assert found.loc["ad-drop"].tolist() == ["72.0", "+2.0"]
    assert found.loc["r-drop"].tolist() == ["90.0", "-"]
    assert tables.repeated_seeds(trials[trials["method"] != "plain"])[GAIN].tolist() == ["-", "-"]


def test_every_task_has_its_unit_and_its_own_split():
    found = tables.repeated_seeds(
        frame(
            trial(0.7),
            trial(0.7, 0.6, method=PLAIN),
            trial(9, 21.123, task=WIKI),
            trial(9, 22, task=WIKI, method=PLAIN),
        )
    )
    assert found.loc["ad-drop"].to_dict() == {
        "rte: dev accuracy (%)": "70.0",  # the other trial's test score would have nothing to stand against
        "rte: dev accuracy - plain (points), 95 % interval": "+0.0",
        "wiki: test perplexity": "21.12",
        "wiki: test perplexity - plain, 95 % interval": "-0.88",
    }


@pytest.mark.parametrize(("task", "q"), [(RTE, "0.9"), (WIKI, "0.1")], ids=["higher is better", "lower is better"])
def test_the_dev_split_chooses_by_the_mean_over_seeds(task, q):
    trials = [
        trial(dev, test, seed, task=task, q=at)
        for at, pairs in {
            0.1: [(0.1, 0.9), (0.3, 0.7)],
            0.5: [(0.0, 0.99), (0.5, 0.99)],
            0.9: [(0.4, 0.5), (0.4, 0.3)],
        }.items()
        for seed, (dev, test) in enumerate(pairs)
    ]
    chosen = tables.best_setting(frame(*trials)).iloc[0]
    assert chosen["q"] == q
    assert chosen["test"].startswith({"0.9": "40.0 ± 14.1", "0.1": "0.80 ± 0.14"}[q])
    column = f"{task['task']}: test {task['metric']}" + (" (%)" if task is RTE else "")
    assert tables.repeated_seeds(frame(*trials)).loc["ad-drop", column] == chosen["test"]


def test_a_lucky_single_run_is_not_chosen():
    lucky = trial(0.99, 0.1, q=0.7)
    assert tables.best_setting(frame(lucky, *repeated([0.7, 0.8]))).iloc[0].tolist() == [
        "0.3", "0.3", "all", "accuracy (%)", "75.0 ± 7.1", "75.0 ± 7.1",
    ]  # fmt: skip
    assert tables.best_setting(frame(lucky, trial(0.7, 0.8))).iloc[0]["q"] == "0.7"


def test_a_trial_that_diverged_is_passed_over():
    found = tables.best_setting(frame(trial(np.nan, q=0.1), trial(0.6, q=0.2), trial(np.nan, task=STSB)))
    assert found.index.tolist() == ["rte: ad-drop"]
    assert found.iloc[0].tolist() == ["0.3", "0.2", "all", "accuracy (%)", "60.0", "-"]
    assert TEST in tables.repeated_seeds(frame(trial(0.6, 0.7), trial(np.nan, seed=1)))


def test_ablation():
    variants = [
        {}, {"attribution": "IGA"}, {"attribution": "AA"}, {"attribution": "RD"}, {"target": "gold"},
        {"cross_tuning": False},
    ]  # fmt: skip
    trials = [
        trial(0.7 + place / 100, task=task, **variant)
        for task in (RTE, STSB)
        for place, variant in enumerate(variants, start=1)
    ]
    found = tables.ablation(frame(*trials, trial(0.7, method=PLAIN), trial(0.99, region="low")))
    assert found.to_dict("index") == {
        name: {"rte: dev accuracy (%)": rte, "stsb: dev Pearson correlation (%)": stsb}
        for name, rte, stsb in (
            ("plain", "70.0", "-"),
            ("ad-drop (GA)", "71.0", "71.0"),
            ("r/w IGA", "72.0", "72.0"),
            ("r/w AA", "73.0", "73.0"),
            ("r/w RD", "74.0", "74.0"),
            ("r/w gold labels", "75.0", "-"),
            ("w/o cross-tuning", "76.0", "76.0"),
        )
    }


def test_few_shot_orders_shots_and_leaves_out_other_sizes():
    trials = [
        trial(shots / 1000, shots=shots, train_size=2 * shots, method=method)
        for shots in (256, 16)
        for method in (PLAIN, ADDROP)
    ]
    found = tables.few_shot(frame(*trials, trial(0.9), trial(0.8, share=0.5, train_size=1245)))
    assert found.columns.tolist() == ["rte, 16 shots: dev accuracy (%)", "rte, 256 shots: dev accuracy (%)"]
    assert found.loc["plain"].tolist() == found.loc["ad-drop"].tolist() == ["1.6", "25.6"]


def test_sizes_are_never_mixed():
    found = tables.repeated_seeds(
        frame(
            trial(0.9), trial(0.91, seed=1, share=1.0), trial(0.8, share=0.5, train_size=1245), trial(0.7, train_size=9)
        )
    )
    assert found.filter(like="(%)").iloc[0].to_dict() == {
        "rte, 50 % of the examples: dev accuracy (%)": "80.0",
        "rte, 9 examples: dev accuracy (%)": "70.0",
        "rte: dev accuracy (%)": "90.5 ± 0.7",
    }


def test_other_sets_follow_the_score_of_their_task():
    trials = frame(
        trial(0.9, **{"other:hans": 0.5}), trial(0.8, method=PLAIN, **{"other:hans": 0.4}), trial(1, task=STSB)
    )
    found = tables.other_sets(trials)
    assert found.columns.tolist() == ["rte: dev accuracy (%)", "rte on hans: accuracy (%)"]
    assert found.loc["plain"].tolist() == ["80.0", "40.0"]
    assert found.loc["ad-drop"].tolist() == ["90.0", "50.0"]


def test_costs_have_times_and_what_was_gained_in_the_same_layers():
    timed = pd.DataFrame(
        {"task": "rte", "attribution": attribution, "layers": layers, "low": ratio - 0.1, "ratio": ratio,
         "high": ratio + 0.2}
        for layers, attribution, ratio in (("all", "GA", 1.6), ("all", "IGA", 46.0), ("first", "GA", 1.5),
                                           ("first", "AA", 0.5))
    )  # fmt: skip
    trials = [
        trial(score, seed=seed, attribution=attribution)
        for seed in (0, 10)
        for attribution, score in (("GA", 0.71), ("IGA", 0.69))
    ]
    found = tables.costs(timed, frame(*trials, trial(0.70, method=PLAIN), trial(0.72, seed=10, method=PLAIN)))
    assert found.columns.tolist() == [
        "rte, all layers: dev accuracy - plain (points)",
        "rte, all layers: step time / plain",
        "rte, first layer: step time / plain",
    ]
    assert found.loc["GA"].tolist() == ["+0.0 ± 1.4", "1.60 (1.50 to 1.80)", "1.50 (1.40 to 1.70)"]
    assert found.loc["AA"].tolist() == ["-", "-", "-"]  # of a busy machine: its quartiles lie far apart
    assert found.loc["IGA"].tolist() == ["-2.0 ± 1.4", "46.00 (45.90 to 46.20)", "-"]
    assert found.index.tolist() == ["RD", "AA", "GA", "IGA"]
    alone = tables.costs(timed, pd.DataFrame())
    assert alone.columns.tolist() == ["rte, all layers: step time / plain", "rte, first layer: step time / plain"]
    with pytest.raises(ValueError, match=r"timed must have the columns task, .*, without ratio$"):
        tables.costs(timed.drop(columns="ratio"), frame(*trials))


def test_baselines_are_ranked_over_tasks():
    scores = {"plain": (0.70, 20), "ad-drop": (0.71, 18), "r-drop": (0.72, 17), "hiddencut": (0.6, 30)}
    trials = [
        trial(score, task=task, method=ADDROP | {"method": method})
        for method, both in scores.items()
        for task, score in zip((RTE, WIKI), both, strict=True)
    ]
    found = tables.baselines(frame(*trials))
    assert found.index.tolist() == ["r-drop", "ad-drop", "plain", "hiddencut"]
    assert found.loc["r-drop"].tolist() == ["72.0", "+2.0", "17.00", "-3.00"]


def test_every_setting_counts_those_better_than_plain():
    scores = {(0.1, 0.1): 0.69, (0.1, 0.9): 0.72, (0.9, 0.1): 0.66, (0.9, 0.9): 0.60}
    trials = [trial(0.70, method=PLAIN), trial(0.60, seed=1, method=PLAIN)]
    trials += [
        trial(score + (bonus if cross else 0), seed=seed, p=p, q=q, cross_tuning=cross)
        for (p, q), score in scores.items()
        for cross, bonus in ((True, 0.05), (False, 0))
        for seed in (0,)
    ]
    found = tables.every_setting(frame(*trials))
    assert found.index.tolist() == ["rte, with cross-tuning", "rte, without cross-tuning"]
    assert found["median gain"].tolist() == ["+2.5", "-2.5"]
    assert found["better than plain"].tolist() == ["3 of 4", "1 of 4"]
    deviation = 100 * np.std(list(scores.values()))
    assert found["deviation"].tolist() == [f"{deviation:.1f}"] * 2
    assert found[["lowest", "highest"]].to_numpy().tolist() == [["65.0", "77.0"], ["60.0", "72.0"]]
    worse = tables.every_setting(
        frame(trial(9, task=WIKI), trial(8, task=WIKI, q=0.5), trial(8.5, task=WIKI, method=PLAIN))
    )
    assert worse.loc["wiki, with cross-tuning", ["median gain", "better than plain"]].tolist() == ["+0.00", "1 of 2"]


def test_learning_rates_are_chosen_for_every_method():
    trials = [
        trial(score, score - 0.1, seed=seed, method=method, lr=lr, batch_size=16)
        for method, scores in ((PLAIN, {1e-5: 0.7, 2e-5: 0.8}), (ADDROP, {1e-5: 0.75, 2e-5: 0.6}))
        for lr, score in scores.items()
        for seed in (0, 1)
    ]
    found = tables.best_setting(frame(*trials))
    assert found[["p", "lr", "batch_size", "test"]].to_numpy().tolist() == [
        ["-", "2e-05", "16", "70.0 ± 0.0"], ["0.3", "1e-05", "16", "65.0 ± 0.0"],
    ]  # fmt: skip
    assert tables.repeated_seeds(frame(*trials))[GAIN].tolist() == ["-", "-5.0 ± 0.0"]


def test_probes_have_a_column_for_each_share():
    rows = pd.DataFrame(
        {"task": "rte", "seed": 0, "layers": "first", "drop": drop, "rate": rate, "loss": 0.5, "score": score,
         "metric": "accuracy", "percent": True}
        for drop, rate, score in (("none", 0.0, 0.8), ("high", 0.1, 0.7), ("high", 0.3, 0.6), ("low", 0.1, 0.75))
    )  # fmt: skip
    found = tables.probe(rows)
    assert found.loc["rte, first layer: high"].tolist() == ["accuracy", "-", "70.0", "60.0"]
    assert found.columns.tolist() == ["metric", "0 %", "10 %", "30 %"]


def test_verdicts_say_what_a_table_shows():
    sizes = {"rte": {"train": 2490, "dev": 277}}
    trials = frame(*repeated([0.75, 0.74, 0.76]), *repeated([0.70, 0.70, 0.70], method=PLAIN))
    (said,) = tables.verdicts(trials.assign(test_score=np.nan), sizes)
    assert said.startswith("rte: Better than plain: ad-drop. 95 % intervals of the difference from plain (accuracy, in")
    (said,) = tables.verdicts(
        frame(*repeated([0.9, 0.1, 0.9]), *repeated([0.5] * 3, method=PLAIN)), {"rte": {"test": 9}}
    )
    assert "No difference shown; 3 seeds of 9 test examples cannot show one below" in said
    assert "-100.0 to +100.0" in said
    (said,) = tables.verdicts(frame(*repeated([0.9, 0.1]), *repeated([0.5] * 2, method=PLAIN)), {"rte": {"test": 9}})
    assert said == "rte: Too few seeds to compare the arms: 2; use 3 or more."


def test_markdown():
    table = pd.DataFrame({"a|b": ["1 ± 2", "-"], "c": ["3", "4"]}, index=["x", "y"])
    assert tables.markdown(table) == "|  | a\\|b | c |\n| --- | ---: | ---: |\n| x | 1 ± 2 | 3 |\n| y | - | 4 |\n"


ALL = (
    tables.repeated_seeds, tables.ablation, tables.few_shot, tables.other_sets, tables.baselines,
    tables.best_setting, tables.every_setting,
)  # fmt: skip


@pytest.mark.parametrize("table", ALL)
def test_a_sweep_of_nothing_has_an_empty_table(table):
    found = table(frame(trial(0.5)).iloc[:0])
    assert "rte" not in tables.markdown(found)


@pytest.mark.parametrize("table", ALL)
def test_a_missing_column_is_named(table):
    with pytest.raises(ValueError, match=r"frame must have the columns task, .*, got .*, without dev_score$"):
        table(frame(trial(0.5)).drop(columns="dev_score"))
