"""`attrdrop finetune` end to end: a tiny random BERT with MiniLM's tokenizer on the shipped sentences."""

import json
import os
import shutil
import signal
import time

import pandas as pd
import pytest
import torch
from lab_runs import names, one_thread, results, start, wait_for_runs  # noqa: F401
from refusals import assert_refused
from transformers import (
    MPNetConfig,
    MPNetModel,
    RoFormerConfig,
    RoFormerModel,
)
from typer.testing import CliRunner

from attrdrop import ADDropConfig
from attrdrop.lab.cli.main import app
from attrdrop.lab.errors import InputError
from attrdrop.lab.text import report, tasks
from attrdrop.lab.text.settings import Settings
from attrdrop.lab.text.training import Trainer

SMALL = ["--train-size", "32", "--dev-size", "16", "--test-size", "16", "--epochs", "2", "--max-length", "32"]
FILES = [".lock", "curves.csv", "curves.png", "results.json", "runs.csv", "trials"]


def test_two_seeds_on_the_shipped_sentences(finetune):
    outcome, output = finetune(*SMALL, "--seeds", 2, "--lr", "1e-3")
    assert outcome.exit_code == 0, outcome.output
    assert sorted(path.name for path in output.iterdir()) == FILES
    content = results(output)
    assert content["complete"]
    assert [(run["seed"], run["arm"]) for run in content["runs"]] == [
        (0, "plain"), (0, "ad-drop"), (1, "ad-drop"), (1, "plain"),
    ]  # fmt: skip
    plain, dropping = content["runs"][:2]
    assert plain["epochs"][0]["train_loss"] == pytest.approx(dropping["epochs"][0]["train_loss"], rel=1e-5)
    assert plain["epochs"][1]["train_loss"] != dropping["epochs"][1]["train_loss"]
    assert [epoch["statistics"] is not None for epoch in dropping["epochs"]] == [False, True]
    assert all(epoch["statistics"] is None for epoch in plain["epochs"])
    assert 0.03 < content["summary"]["arms"]["ad-drop"]["fraction_dropped"]["mean"] < 0.3
    assert content["summary"]["steps"]["step_ratio_to_plain"]["ad-drop"]["n"] == 2 * 2  # of one epoch's steps
    assert content["summary"]["difference_to_plain"]["ad-drop"]["n"] == 2
    assert len(pd.read_csv(output / "runs.csv")) == 4
    assert list(pd.read_csv(output / "curves.csv").epoch) == [1, 2] * 4
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    for text in ("test accuracy", "active step", "peak memory", "positions dropped", "2 seeds", str(output.name)):
        assert text in outcome.output

    lines = outcome.output.splitlines()  # of a log: a line for each epoch
    first = lines.index("run 1 of 4: plain, seed 0")
    assert [line.split(":")[0] for line in lines[first + 1 : first + 3]] == ["  epoch 1 of 2", "  epoch 2 of 2"]
    assert sum("dev accuracy" in line and "training loss" in line for line in lines) == 8

    again, _ = finetune(*SMALL, "--seeds", 1)
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    assert results(output) == content
    shown = CliRunner().invoke(app, ["report", str(output)])
    assert shown.exit_code == 0
    assert "positions dropped" in shown.output
    replaced, _ = finetune(*SMALL, "--seeds", 1, "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert len(results(output)["runs"]) == 2


def test_pairs_with_string_labels_from_files(finetune, tmp_path):
    train = tmp_path / "train.csv"
    pd.DataFrame(
        {"question": ["who?", "what?"] * 12, "sentence": ["she", "a cat"] * 12, "label": ["person", "thing"] * 12}
    ).to_csv(train, index=False)
    outcome, output = finetune("--train", train, "--seeds", 1, "--epochs", 2, "--layers", "0,1", "--target", "gold")
    assert outcome.exit_code == 0, outcome.output
    assert results(output)["task"] == {
        "name": "train.csv",
        "kind": "classification",
        "labels": ["person", "thing"],
        "sizes": {"train": 22, "dev": 2},
        "metric": {"name": "accuracy", "better": 1, "percent": True},
    }
    assert "dev accuracy" in outcome.output
    assert "test accuracy" not in outcome.output


def test_a_busy_machine_is_told_of(finetune, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (64.0, 64.0, 64.0))
    outcome, _ = finetune(*SMALL, "--seeds", 1, "--arms", "plain")
    assert "load 64.0 on" in outcome.output
    assert "timings will be unreliable" in outcome.output


@pytest.mark.parametrize("attribution", ["IGA", "AA", "RD"])
def test_other_attributions(finetune, attribution):
    arguments = [*SMALL, "--seeds", 1, "--no-cross-tuning", "--attribution", attribution, "--iga-steps", 2]
    outcome, output = finetune(*arguments)
    assert outcome.exit_code == 0, outcome.output
    content = results(output)
    assert content["settings"]["attribution"] == attribution
    dropped = content["summary"]["arms"]["ad-drop"]["fraction_dropped"]["mean"]
    assert dropped == pytest.approx(0.1, abs=0.02)
    dead = content["summary"]["arms"]["ad-drop"]["fraction_dead"]["mean"]
    # only the first token is read in the last of two layers, which IGA sees, and so its ties are not counted
    assert dead == (pytest.approx(0.55, abs=0.1) if attribution == "IGA" else None)


def test_units_reach_the_step():
    units = ("attention", "feed-forward", "heads")
    assert ADDropConfig(**Settings(units=units).addrop_arguments).units == units


def test_demo_preset_yields_to_options(finetune):
    outcome, output = finetune("--preset", "demo", *SMALL, "--seeds", 1)
    assert outcome.exit_code == 0, outcome.output
    settings = results(output)["settings"]
    assert (settings["epochs"], settings["seeds"], settings["max_length"]) == (2, 1, 32)
    assert (settings["lr"], settings["p"]) == (3e-4, 0.9)


def bad_inputs():
    yield "p", ["--p", "1.5"], ["--p ", "1.5"]
    yield "q", ["--q", "-0.1"], ["--q ", "-0.1"]
    yield "layer", ["--layers", "0,7"], ["layers", "7"]
    yield "layers", ["--layers", "some"], ["--layers", "'some'", "first"]
    yield "attribution", ["--attribution", "LRP"], ["--attribution", "'IGA'", "'LRP'"]
    yield "units", ["--units", "neurons"], ["units", "'feed-forward'", "'neurons'"]
    yield "units of AA", ["--units", "heads", "--attribution", "AA"], ["units", "'AA'"]
    yield "target", ["--target", "silver"], ["--target", "silver"]
    yield "pass1", ["--pass1", "test"], ["--pass1", "test"]
    yield "pass1 dtype", ["--pass1-dtype", "float8"], ["--pass1-dtype", "float8", "'bfloat16'"]
    yield "epochs", ["--epochs", "1"], ["--epochs", "--no-cross-tuning"]
    yield "metric", ["--metric", "bleu"], ["--metric", "'bleu'", "accuracy, matthews"]
    yield "arms", ["--arms", "plain,dropout"], ["--arms", "'dropout'", "ad-drop"]
    yield "region", ["--region", "middle"], ["--region", "'middle'", "high, low"]
    yield "rate", ["--rate", "1.5"], ["--rate", "1.5"]
    yield "attention", ["--attention", "cross"], ["attention", "encoder-decoder"]
    yield "lr", ["--lr", "0"], ["--lr", "0.0"]
    yield "model", ["--model", "/no/such/model"], ["--model", "/no/such/model"]
    yield "max length", ["--max-length", "9999"], ["--max-length", "9999", "512"]
    yield "task", ["--task", "imdb"], ["--task", "imdb"]
    yield "train", ["--train", "none.csv"], ["--train", "none.csv"]
    yield "dev alone", ["--dev", "dev.csv"], ["--dev", "--train"]
    yield "both", ["--train", "a.csv", "--task", "rte"], ["--task", "--train"]
    if not torch.cuda.is_available():
        yield "device", ["--device", "cuda"], ["--device", "cuda"]


@pytest.mark.parametrize(("arguments", "fragments"), [pytest.param(a, f, id=name) for name, a, f in bad_inputs()])
def test_bad_input_is_one_sentence_and_nothing_written(finetune, arguments, fragments):
    outcome, output = finetune(*SMALL, *arguments)
    assert_refused(outcome, output, *fragments)


def test_unusable_output_folder(finetune, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "below"):
        outcome, _ = finetune(*SMALL, "--output", output)
        assert_refused(outcome, tmp_path / "out", "--output", str(output))
    assert file.read_text() == "mine"


def test_folder_that_is_no_model(finetune, tmp_path):
    outcome, output = finetune(*SMALL, "--model", tmp_path)
    assert_refused(outcome, output, "--model", "config.json")


def test_model_whose_attention_cannot_be_masked(finetune, tiny_bert, tmp_path):
    folder = tmp_path / "roformer"
    shutil.copytree(tiny_bert, folder)
    config = RoFormerConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    RoFormerModel(config).save_pretrained(folder)
    outcome, output = finetune(*SMALL, "--model", folder)
    assert_refused(outcome, output, "ad-drop cannot work on", "computes attention in its own code")


def test_model_whose_attention_is_adapted(finetune, tiny_bert, tmp_path):
    folder = tmp_path / "mpnet"
    shutil.copytree(tiny_bert, folder)
    config = MPNetConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    MPNetModel(config).save_pretrained(folder)
    outcome, output = finetune(*SMALL, "--model", folder)
    assert outcome.exit_code == 0, outcome.output
    dropping = next(run for run in results(output)["runs"] if run["arm"] == "ad-drop")
    assert dropping["epochs"][1]["statistics"]["dropped"] > 0


def test_early_stopping_keeps_the_best_epoch(tiny_bert):
    settings = Settings(model=str(tiny_bert), lr=1e-30, epochs=6, early_stopping_patience=2, max_length=32)
    trainer = Trainer(settings, tasks.rotten_tomatoes().limited(16, 16, 16))
    advanced = []
    run = trainer.run("plain", 0, advanced.append)
    assert (run.best_epoch, len(run.epochs)) == (1, 3)
    assert sum(advanced) == pytest.approx(trainer.work("plain"))


def test_dropping_nothing_trains_like_the_plain_arm(tiny_bert):
    settings = Settings(model=str(tiny_bert), q=1e-6, epochs=4, lr=1e-3, max_length=32)
    trainer = Trainer(settings, tasks.rotten_tomatoes().limited(48, 16, 16))  # q rounds to 0 of 65536
    plain, dropping = trainer.run("plain", 3), trainer.run("ad-drop", 3)
    assert [epoch.statistics is not None for epoch in dropping.epochs] == [False, True, False, True]
    for epoch, other in zip(plain.epochs, dropping.epochs, strict=True):
        assert other.train_loss == pytest.approx(epoch.train_loss, rel=1e-4)
        assert other.dev_loss == pytest.approx(epoch.dev_loss, rel=1e-4)


def test_interrupt_keeps_finished_runs(tiny_bert, tmp_path):
    output = tmp_path / "out"
    process = start("finetune", "--model", tiny_bert, "--output", output, "--seeds", 500, *SMALL)
    deadline = time.monotonic() + 180  # of a busy machine
    while time.monotonic() < deadline and not ((output / "runs.csv").exists() and len(results(output)["runs"]) > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    content = results(output)
    kept = len(content["runs"])
    assert kept > 2
    assert not content["complete"]
    assert f"{kept} of 1000 runs are finished and kept" in printed
    assert str(output) in printed
    assert "Traceback" not in printed
    assert sorted(path.name for path in output.iterdir()) == FILES
    assert len(pd.read_csv(output / "runs.csv")) == kept
    loaded = report.TextReport.load(output)
    assert loaded.runs == content["runs"]
    assert loaded.summary() == content["summary"]


@pytest.mark.slow
def test_a_command_in_the_background_of_a_script_ends_on_sigterm(tiny_bert, tmp_path):
    """Such a process ignores Ctrl-C."""
    output = tmp_path / "out"
    arguments = ["finetune", "--model", tiny_bert, "--output", output, "--seeds", 500, *SMALL]
    process = start(*arguments, prepared=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    wait_for_runs(process, output, 1)
    process.send_signal(signal.SIGINT)
    kept = len(results(output)["runs"])
    wait_for_runs(process, output, kept + 1)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143, printed
    assert printed.splitlines()[-1] == "Terminated."
    content = results(output)
    assert len(content["runs"]) > kept
    assert f"Stopped early: {len(content['runs'])} of 1000 runs are finished and kept" in printed
    assert "Traceback" not in printed
    assert names(output) == FILES  # figures too


def test_a_failing_write_leaves_the_old_results(tmp_path):
    (tmp_path / "runs.csv").mkdir()  # a file cannot replace it
    task = {"sizes": {}, "metric": {"name": "accuracy", "better": 1, "percent": True}}
    before = report.TextReport({"settings": {"arms": ["plain"]}, "task": task, "complete": False}, [])
    with pytest.raises(OSError, match=r"runs\.csv"):
        before.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "runs.csv"]


def test_report_of_no_results(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        report.TextReport.load(tmp_path)


def test_report_of_an_earlier_version(finetune):
    _, output = finetune(*SMALL, "--seeds", 1)
    content = results(output)
    del content["runs"][0]["other_scores"]
    (output / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="holds no results of 'attrdrop finetune': KeyError"):
        report.TextReport.load(output)
