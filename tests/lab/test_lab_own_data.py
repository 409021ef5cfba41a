"""What the commands say of a user's data that can be used but is not what it seems, and of models of the hub."""

import json
import math
import os
import time

import huggingface_hub
import numpy as np
import pytest
from lab_runs import one_thread, results, sticks  # noqa: F401
from PIL import Image
from refusals import assert_refused
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.text import models

ROWS = "text,label\n" + "a warm film,good\ndull,bad\n" * 12


@pytest.fixture
def train(tmp_path):
    def train(kind, *arguments):
        command = [f"train-{kind}", "--seeds", "1", "--epochs", "1", "--batch-size", "4", "--arms", "plain"]
        outcome = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out"), *map(str, arguments)])
        return " ".join(outcome.output.split()), outcome.exit_code

    return train


def test_classes_without_test_images_are_named(train, tmp_path):
    for file in ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "train/c/0", "val/a/0", "val/c/0"):
        path = tmp_path / "set" / f"{file}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(path)
    (tmp_path / "set" / "val" / "b").mkdir()
    output, code = train("images", "--dataset", "folder", "--data", tmp_path / "set", "--image-size", 16)
    assert code == 0, output
    assert output.count("Warning: 1 of 3 classes have no test images: 'b'") == 1


def test_classes_without_test_clouds_are_named(train, tmp_path):
    arrays = sticks(21)
    arrays["y"][3] = 7  # the only one of its class
    np.savez(tmp_path / "x.npz", **arrays)
    options = ["--dataset", "npz", "--model", "pointnet", "--width", "0.125", "--points", "16", "--mode", "calibrated"]
    output, code = train("points", *options, "--beta", "0.25", "--data", tmp_path / "x.npz")
    assert code == 0, output
    assert output.count("Warning: 2 of 4 classes have no test clouds: '0', '7'") == 1


def test_classes_without_development_examples_are_named(finetune, tmp_path):
    for name, content in (("train", ROWS), ("dev", ROWS), ("test", "text,label\nfine,good\n")):
        (tmp_path / f"{name}.csv").write_text(content)
    files = [part for name in ("train", "dev", "test") for part in (f"--{name}", tmp_path / f"{name}.csv")]
    outcome, _ = finetune(*files, "--seeds", 1, "--epochs", 1, "--arms", "plain", "--max-length", 16)
    assert outcome.exit_code == 0, outcome.output
    assert " ".join(outcome.output.split()).count("Warning: 1 of 2 classes have no test examples: 'bad'") == 1


def test_names_that_are_not_in_utf_8_are_refused(train, finetune, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    path.write_text(ROWS)
    assert_refused(*finetune("--train", path), r"--train: the name 'caf\udce9.csv' is not in UTF-8; rename it.")
    for split in ("train", "val"):
        for name in ("cat", os.fsdecode(b"\xe9")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
    output, code = train("images", "--dataset", "folder", "--data", tmp_path / "set")
    assert (code, output) == (2, r"Error: --data: the name '\udce9' is not in UTF-8; rename it.")
    np.savez(tmp_path / "x.npz", **sticks(9))
    path = (tmp_path / "x.npz").rename(tmp_path / os.fsdecode(b"\xe9.npz"))
    for kind in ("images", "points"):
        output, code = train(kind, "--dataset", "npz", "--data", path)
        assert (code, output) == (2, r"Error: --data: the name '\udce9.npz' is not in UTF-8; rename it.")


NOTHING = {"tokens": ["\u200b", "\u200b"], "tags": ["O", "B-X"]}  # words of which BERT's tokenizer makes nothing
WORDS = ["--task-type", "token-classification", "--seeds", 1, "--epochs", 2, "--batch-size", 1]


def test_sentences_without_a_word_that_counts_are_not_trained_on(finetune, tmp_path):
    path = tmp_path / "train.jsonl"
    sentences = [{"tokens": ["In", "Turin"], "tags": ["O", "B-X"]}, NOTHING] * 6
    path.write_text("".join(f"{json.dumps(sentence)}\n" for sentence in sentences))
    outcome, output = finetune("--train", path, "--dev", path, *WORDS)
    assert outcome.exit_code == 0, outcome.output
    epochs = [epoch for run in results(output)["runs"] for epoch in run["epochs"]]
    assert [len(epoch["step_seconds"]) for epoch in epochs] == [6] * 4
    assert all(math.isfinite(epoch["train_loss"]) for epoch in epochs)


def test_words_of_which_none_counts_are_refused(finetune, tmp_path):
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(NOTHING)}\n" * 4)
    assert_refused(*finetune("--train", tmp_path / "train.jsonl", *WORDS), "finds no word in these texts")


@pytest.mark.parametrize("option", ["--train", "--other"])
def test_the_encoding_of_files_is_an_option(finetune, tmp_path, option):
    path = tmp_path / "latin.csv"
    path.write_bytes(b"text,label\n" + "très,positive\nà,negative\n".encode("latin-1") * 8)
    arguments = [option, path, "--seeds", 1, "--epochs", 1, "--arms", "plain", "--max-length", 16]
    arguments += ["--train-size", 8, "--dev-size", 4] + (["--test-size", 4] if option == "--other" else [])
    outcome, output = finetune(*arguments)
    assert_refused(outcome, output, option, "latin.csv is not in utf-8", "--encoding")
    outcome, output = finetune(*arguments, "--encoding", "latin-1")
    assert outcome.exit_code == 0, outcome.output
    assert results(output)["runs"]


def test_an_encoding_without_files_is_refused(finetune):
    assert_refused(*finetune("--encoding", "latin-1"), "--encoding", "--train")


def test_a_hub_that_does_not_answer_is_asked_once(finetune, tmp_path, monkeypatch):
    def slept(seconds):
        raise AssertionError(f"waited {seconds} s to ask again")

    (tmp_path / "train.csv").write_text(ROWS)
    models._hub_answers.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", slept)
    outcome, output = finetune("--train", tmp_path / "train.csv", model="nobody/nothing-of-this-name")
    models._hub_answers.cache_clear()
    assert_refused(outcome, output, "--model: nobody/nothing-of-this-name is not a folder", "could not be loaded")
