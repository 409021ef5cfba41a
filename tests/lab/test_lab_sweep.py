"""`attrdrop sweep` end to end: studies on a tiny random BERT, their tables and figures, and what ends a sweep early."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from lab_runs import names, one_thread  # noqa: F401
from refusals import assert_refused
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.errors import InputError, RunError
from attrdrop.lab.names import SHARES, name_of
from attrdrop.lab.studies.frames import curves_frame, runs_frame
from attrdrop.lab.studies.plan import STUDIES, Plan, addrop
from attrdrop.lab.studies.report import SweepReport
from attrdrop.lab.studies.workbench import Prepare
from attrdrop.lab.text.settings import Settings

SMALL = ["--train-size", "32", "--dev-size", "16", "--test-size", "16", "--epochs", "2", "--max-length", "32"]


@pytest.fixture
def sweep(tiny_bert, tmp_path):
    def sweep(*arguments, small=SMALL):
        output = tmp_path / "out"
        command = ["sweep", "--model", str(tiny_bert), "--output", str(output), *small, *map(str, arguments)]
        return CliRunner().invoke(app, command), output

    return sweep


@pytest.fixture(scope="module")
def workbench(tiny_bert):
    settings = Settings(model=str(tiny_bert), epochs=2, max_length=32, lr=1e-3)
    return Prepare(settings, other=("tweets",), train_size=48, dev_size=16, test_size=16)()


def trials(output):
    return {path: path.stat().st_mtime_ns for path in (output / "trials").iterdir()}


@pytest.mark.slow
def test_studies_share_runs_and_a_sweep_can_be_extended(sweep):
    outcome, output = sweep("--studies", "seeds,ablation", "--seeds", 2, "--iga-steps", 2, "--other", "tweets")
    assert outcome.exit_code == 0, outcome.output
    first = trials(output)
    assert len(first) == 2 * 7
    for text in ("Repeated seeds", "Ablation", "r/w IGA", "w/o cross-tuning", "14 of 14", "on tweets"):
        assert text in outcome.output.replace("│", "")

    outcome, _ = sweep("--studies", "seeds,regions", "--seeds", 3, "--iga-steps", 2, "--other", "tweets")
    assert outcome.exit_code == 0, outcome.output
    assert "4 of 15 runs are in" in outcome.output.replace("\n", " ")
    extended = trials(output)
    assert {path: extended[path] for path in first} == first  # nothing was done again
    assert len(extended) == 14 + 2 + 3 * 3
    assert "Ablation" in outcome.output  # of the earlier plan

    refused, _ = sweep("--studies", "seeds", "--seeds", 2, "--iga-steps", 3)
    assert refused.exit_code == 2
    assert "other settings" in refused.output
    shown = CliRunner().invoke(app, ["report", str(output)])
    assert shown.exit_code == 0, shown.output
    assert "25 of 25 planned runs" in shown.output
    report = (output / "report.md").read_text()
    assert "| r/w gold labels |" in report
    assert "![regions_rotten-tomatoes.png](regions_rotten-tomatoes.png)" in report


@pytest.mark.slow
def test_grid_sizes_and_shots(sweep):
    outcome, output = sweep(
        "--studies", "grid,size,shots", "--tasks", "rotten-tomatoes,rotten-tomatoes:regression", "--seeds", 1,
        "--p-values", "0.3,0.6", "--q-values", "0.5", "--shares", "0.5,1", "--shots", "4",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    assert len(trials(output)) == 2 * (1 + 2 * 2 + 1 + 2 + 2)
    for name in ("pq_heatmap_rotten-tomatoes", "cross_tuning_rotten-tomatoes_regression", "size"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    runs = pd.read_csv(output / "runs.csv")
    assert set(runs.loc[runs["shots"].notna() & (runs["task"] == "rotten-tomatoes"), "train_size"]) == {8}
    assert set(runs.loc[runs["shots"].notna() & (runs["task"] != "rotten-tomatoes"), "train_size"]) == {4}
    assert set(runs.loc[runs["share"].notna(), "train_size"]) == {16}
    assert "Few shots" in outcome.output
    assert "of 2" in (output / "report.md").read_text().split("Every p and q (Figure 4)")[1].split("\n\n")[1]
    assert "Best p and q" in outcome.output


@pytest.mark.slow
def test_own_files_and_several_jobs(sweep, tmp_path):
    train = tmp_path / "train.csv"
    pd.DataFrame({"text": ["good film", "bad film"] * 12, "label": ["yes", "no"] * 12}).to_csv(train, index=False)
    arguments = ["--train", train, "--studies", "rivals,seeds", "--seeds", 1, "--epochs", 2, "--max-length", 16]
    outcome, output = sweep(*arguments, "--jobs", 2, small=[])
    assert outcome.exit_code == 0, outcome.output
    assert len(trials(output)) == 9
    assert "hidden-cut" in outcome.output
    assert "Other data sets" not in outcome.output
    train.write_text(train.read_text().replace("good", "fine"))
    outcome, _ = sweep(*arguments, small=[])
    assert outcome.exit_code == 2
    assert "other settings or data" in outcome.output


def test_search_goes_on_where_it_stopped(sweep):
    for points in (2, 4):
        outcome, output = sweep("--search", points, "--seeds", 1)
        assert outcome.exit_code == 0, outcome.output
    found = [json.loads(path.read_text())["trial"] for path in trials(output)]
    assert 2 <= len(found) <= 4  # a pair that is proposed twice is trained once
    assert all(trial["arm"] == "ad-drop" and 0.1 <= trial["p"] <= 0.9 for trial in found)
    assert (output / "optuna.db").exists()
    assert "Best p and q" in outcome.output


@pytest.mark.slow
def test_learning_rate_and_batch_size_are_searched_for_both_arms(sweep):
    outcome, output = sweep(
        "--search", 3, "--seeds", 1, "--search-lr", "1e-3,1e-4", "--search-batch-size", "8,16", "--first-seed", 1
    )
    assert outcome.exit_code == 0, outcome.output
    found = [json.loads(path.read_text())["trial"] for path in trials(output)]
    plain = {(trial["lr"], trial["batch_size"]) for trial in found if trial["arm"] == "plain"}
    assert plain == {(1e-3, 8), (1e-3, 16), (1e-4, 8), (1e-4, 16)}
    dropping = [trial for trial in found if trial["arm"] == "ad-drop"]
    assert 1 <= len(dropping) <= 3
    assert all((trial["lr"], trial["batch_size"]) in plain for trial in dropping)
    runs = pd.read_csv(output / "runs.csv")
    assert runs["lr"].notna().all()
    report = (output / "report.md").read_text()
    assert "| rotten-tomatoes: plain |" in report
    assert "| p | q | layers | lr | batch_size |" in report


def test_settings_of_the_paper_by_task(sweep):
    outcome, output = sweep(
        "--preset", "paper", "--studies", "seeds", "--seeds", 1, "--tasks", "squad-questions,rotten-tomatoes:regression"
    )
    assert outcome.exit_code == 0, outcome.output
    settings = json.loads((output / "sweep.json").read_text())["settings"]
    assert (settings["lr"], settings["batch_size"], settings["max_length"]) == (1e-5, 16, 32)  # the last one was given
    found = [json.loads(path.read_text())["trial"] for path in trials(output)]
    assert [trial["layers"] for trial in found if trial["arm"] == "ad-drop"] == ["first", "first"]
    refused, _ = sweep("--preset", "paper", "--tasks", "squad-questions,brown-names", "--overwrite")
    assert refused.exit_code == 2
    assert "differs among squad-questions, brown-names" in " ".join(refused.output.split())


@pytest.mark.slow
def test_sigkill_loses_the_run_under_way_and_nothing_else(tiny_bert, tmp_path):
    output = tmp_path / "out"
    command = [
        sys.executable, "-m", "attrdrop.lab.cli.main", "sweep", "--model", str(tiny_bert), "--output", str(output),
        *SMALL, "--studies", "seeds,regions", "--seeds", "2", "--threads", "1",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 180  # of a busy machine
    while time.monotonic() < deadline and not ((output / "trials").exists() and len(list_of(output)) >= 2):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    kept = trials(output)
    assert 2 <= len(kept) < 10
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(kept)} of 10 runs are in" in done.stdout.replace("\n", " ")
    after = trials(output)
    assert len(after) == 10
    assert {path: after[path] for path in kept} == kept
    assert not [
        name for name in names(output) + names(output / "trials") if name.startswith(".") and "lock" not in name
    ]


def list_of(output):
    return list((output / "trials").glob("[!.]*.json"))


def bad_inputs():
    yield "study", ["--studies", "seeds,depth"], ["--studies", "'depth'", "ablation"]
    yield "no study", ["--studies", ""], ["--studies", "--search"]
    yield "task", ["--tasks", "imdb"], ["--task", "'imdb'", "rotten-tomatoes"]
    yield "kind", ["--tasks", "brown-names:regression"], ["--task-type", "regression", "token-classification"]
    yield "p", ["--studies", "grid", "--p-values", "0.3,1.5"], ["--p-values", "1.5"]
    yield "text", ["--q-values", "0.3;0.5"], ["--q-values", "0.3;0.5"]
    yield "share", ["--shares", "0"], ["--shares", "0"]
    yield "shots", ["--shots", "0"], ["--shots", "0"]
    yield "layers", ["--layers", "7"], ["layers", "7"]
    yield "other", ["--other", "yelp"], ["--other", "'yelp'"]
    yield "both", ["--train", "a.csv", "--tasks", "rotten-tomatoes"], ["--train"]
    yield "metric", ["--metric", "bleu"], ["--metric", "'bleu'", "accuracy"]
    yield "units", ["--units", "heads", "--studies", "ablation"], ["--units", "IGA and AA"]


@pytest.mark.parametrize(("arguments", "fragments"), [pytest.param(a, f, id=name) for name, a, f in bad_inputs()])
def test_bad_input_is_one_sentence_and_nothing_written(sweep, arguments, fragments):
    outcome, output = sweep(*arguments)
    assert_refused(outcome, output, *fragments)


def test_a_run_that_diverges_is_told_of_and_tried_again(sweep):
    outcome, output = sweep("--studies", "seeds", "--seeds", 1, "--lr", "1e30")
    assert outcome.exit_code == 1
    assert "2 runs failed" in outcome.output
    assert "training loss became" in outcome.output.replace("\n", " ")
    assert len(list((output / "failed").iterdir())) == 2
    assert sweep("--studies", "seeds", "--seeds", 1, "--lr", "1e30")[0].exit_code == 1


def test_different_runs_have_different_names():
    plan = Plan(tuple(STUDIES), ("a", "b"), seeds=2, grid_seeds=2, shots=(16, 64))
    trials = plan.trials()
    assert len({name_of(trial) for trial in trials}) == len(trials)
    assert name_of(addrop(plan, attribution="IGA", p=0.5) | {"seed": 3}) == "ad-drop, p 0.5, IGA, seed 3"
    assert {name: getattr(Settings, name) for name in SHARES} == SHARES


def test_every_study_asks_for_each_run_once():
    plan = Plan(
        tuple(STUDIES), ("a", "b"), seeds=5, p_values=(0.3, 0.5), q_values=(0.3,), shares=(0.5, 1.0), shots=(16,)
    )
    counts = {study: len(plan.trials(study)) // 2 for study in STUDIES}
    assert counts == {
        "seeds": 10, "ablation": 35, "grid": 5 + 4, "size": 20, "shots": 10, "regions": 20, "rivals": 45, "costs": 1,
        "maps": 1, "probe": 1,
    }  # fmt: skip
    shared = {"seeds": 10, "size": 10, "ablation": 10, "regions": 5, "rivals": 10, "grid": 5 + 2}
    assert len(plan.trials()) // 2 == sum(counts.values()) - sum(shared.values()) + 10
    assert Plan.from_json(json.loads(json.dumps(plan.__dict__))) == plan
    with pytest.raises(InputError, match="--tasks: name at least one"):
        Plan(("seeds",), ())


@pytest.mark.parametrize("content", ["{}", "[]", '{"plans": [3], "tasks": {}, "settings": {"model": "m"}}'])
def test_a_sweep_does_not_go_on_from_what_cannot_be_read(sweep, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.json").write_text(content)
    outcome, output = sweep("--studies", "seeds", "--seeds", 1)
    assert outcome.exit_code == 2
    message = " ".join(outcome.output.split("Error: ")[1].split())
    assert message.startswith(f"{output} holds no results of 'attrdrop sweep'")
    assert message.endswith("give another folder, or --overwrite.")


@pytest.mark.slow
def test_costs_are_ratios_to_plain_steps(workbench):
    found = workbench({"task": "rotten-tomatoes", "seed": 0, "arm": "costs", "p": 0.3, "q": 0.3, "layers": "all"})
    ratios = {(row["attribution"], row["layers"]): row["ratio"] for row in found["rows"]}
    assert ratios.pop(("", "")) == 1
    assert set(ratios) == {(kind, layers) for kind in ("GA", "IGA", "AA", "RD") for layers in ("all", "first")}
    assert ratios["IGA", "all"] > ratios["IGA", "first"] > max(ratios["GA", "all"], ratios["AA", "all"])
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in found["rows"])


@pytest.mark.parametrize("task", ["rotten-tomatoes", "brown-names"])
def test_maps_show_the_candidates_of_each_row(workbench, task):
    found = workbench({"task": task, "seed": 1, "arm": "maps", "p": 0.3, "q": 0.5, "layers": "all"})
    arrays = {name: np.asarray(found[name]) for name in ("attribution", "candidates", "dropped", "dropped_by_chance")}
    n = len(found["tokens"])
    assert {array.shape for array in arrays.values()} == {(n, n)}
    assert not (arrays["dropped"] & ~arrays["candidates"]).any()
    assert 0 < arrays["dropped"].sum() < arrays["candidates"].sum()
    assert (arrays["candidates"].sum(1) == n - int(np.float32(n) * np.float32(0.7))).all()
    for row, chosen in zip(arrays["attribution"], arrays["candidates"], strict=True):
        assert row[chosen].min() >= row[~chosen].max() - 1e-6 * np.abs(row).max()
    assert found["layer"] == 0


def test_maps_are_of_the_lowest_masked_layer(workbench):
    found = workbench({"task": "brown-names", "seed": 1, "arm": "maps", "p": 0.3, "q": 0.5, "layers": "1"})
    assert found["layer"] == 1
    attribution, candidates = (np.asarray(found[name]) for name in ("attribution", "candidates"))
    live = np.abs(attribution).any(1)  # those of words' first pieces, in the last layer
    assert 1 < live.sum() < len(live)
    for row, chosen in zip(attribution[live], candidates[live], strict=True):
        assert row[chosen].min() >= row[~chosen].max() - 1e-6 * np.abs(row).max()


def test_a_probe_masks_a_model_that_was_trained_without(workbench):
    trial = {"task": "rotten-tomatoes", "seed": 0, "arm": "probe", "p": 0.3, "q": 0.3, "layers": "all"}
    rows = workbench(trial)["rows"]
    dropping = [(drop, rate) for drop in ("high", "low", "random") for rate in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert [(row["layers"], row["drop"], row["rate"]) for row in rows] == [
        (layers, *one) for layers in ("first", "all") for one in [("none", 0.0), *dropping]
    ]
    loss = {(row["layers"], row["drop"], row["rate"]): row["loss"] for row in rows}
    plain = workbench({"task": "rotten-tomatoes", "seed": 0, "arm": "plain"})
    assert (
        loss["first", "none", 0.0]
        == loss["all", "none", 0.0]
        == pytest.approx(plain["epochs"][plain["best_epoch"] - 1]["dev_loss"], rel=1e-5)
    )
    for layers in ("first", "all"):  # the gold label's support is taken away, or what speaks against it
        assert loss[layers, "high", 0.3] > loss[layers, "none", 0.0] > loss[layers, "low", 0.3]
    with pytest.raises(RunError, match="the probe cannot mask what seq2seq writes"):
        workbench(trial | {"task": "bible-en-es"})


def test_figure_2_drops_the_whole_region():
    regions = Plan(("regions",), seeds=1, p=0.3, q=0.5).trials()
    dropping = [trial for trial in regions if trial["arm"] == "ad-drop"]
    assert {(trial["p"], trial["q"], trial["target"], trial["layers"]) for trial in dropping} == {
        (0.3, 1.0, "gold", "first")
    }
    assert [(trial["region"], trial["attribution"]) for trial in dropping] == [
        ("high", "GA"), ("low", "GA"), ("high", "RD"),
    ]  # fmt: skip


def test_a_probe_is_drawn(sweep):
    outcome, output = sweep("--studies", "probe,maps", "--layers", 1, "--first-seed", 2)
    assert outcome.exit_code == 0, outcome.output
    assert "Masks without training" in outcome.output
    assert (output / "probe_rotten-tomatoes.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "attention_rotten-tomatoes.png").read_bytes().startswith(b"\x89PNG")
    assert "| rotten-tomatoes, first layer: low |" in (output / "report.md").read_text()


def test_frames_of_runs(workbench):
    common = {"task": "rotten-tomatoes", "seed": 3}
    dropping = {"arm": "ad-drop", "p": 0.3, "q": 0.4, "attribution": "AA", "layers": "first", "target": "pseudo",
                "region": "high", "cross_tuning": True}  # fmt: skip
    records = [
        {"trial": common | variant, "result": workbench(common | variant)} for variant in ({"arm": "plain"}, dropping)
    ]
    runs, curves = runs_frame(records), curves_frame(records)
    assert runs["method"].tolist() == ["plain", "ad-drop"]
    assert runs["plain_step_ms"].nunique() == 1
    assert runs.loc[1, ["p", "q", "attribution", "layers"]].tolist() == [0.3, 0.4, "AA", "first"]
    assert runs.loc[1, "fraction_dropped"] == pytest.approx(0.12, abs=0.03)
    assert runs["other:tweets"].notna().all()
    assert curves["active"].tolist() == [False, False, False, True]
    assert runs_frame([]).empty


def test_a_report_needs_a_sweep(tmp_path):
    with pytest.raises(InputError, match="holds no results of 'attrdrop sweep'"):
        SweepReport.load(tmp_path)
