"""Models that `--save` keeps: whole, loadable without this package, and scored by `attrdrop evaluate`."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from lab_runs import names, one_thread, results, start, wait_for_runs  # noqa: F401
from refusals import assert_refused
from typer.testing import CliRunner

from attrdrop.lab.cli.main import app
from attrdrop.lab.runs.models import CARD, ModelStore

SMALL = ["--train-size", "32", "--dev-size", "16", "--test-size", "16", "--epochs", "2", "--max-length", "32"]
WITHOUT_US = """
import sys
sys.modules["attrdrop"] = None
from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer
for folder in sys.argv[1:]:
    model = Auto.from_pretrained(folder)
    batch = AutoTokenizer.from_pretrained(folder)(["a warm, funny film"], return_tensors="pt")
    print(model.config.id2label, model.config._attn_implementation, model(**batch).logits.shape)
"""


def evaluate(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "200"})


def card(folder):
    return json.loads((folder / CARD).read_text())


@pytest.fixture(scope="module")
def saved(tiny_bert, tmp_path_factory):
    """Output of an experiment with two seeds, on the shipped sentences."""
    output = tmp_path_factory.mktemp("saved") / "out"
    command = ["finetune", "--model", tiny_bert, "--output", output, *SMALL, "--seeds", 2, "--lr", "1e-3", "--save"]
    outcome = CliRunner().invoke(app, list(map(str, command)))
    assert outcome.exit_code == 0, outcome.output
    assert "models" in outcome.output.splitlines()[-1]
    return output


@pytest.fixture
def output(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


def again(tiny_bert, output, *arguments):
    command = ["finetune", "--model", tiny_bert, "--output", output, *SMALL, "--seeds", 2, "--lr", "1e-3", *arguments]
    outcome = CliRunner().invoke(app, list(map(str, command)))
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def best(output, arm):
    """The seed of the best run, by development score and then loss."""
    runs = [run for run in results(output)["runs"] if run["arm"] == arm]
    return max(runs, key=lambda run: (run["dev_score"], -run["epochs"][run["best_epoch"] - 1]["dev_loss"]))


def test_the_best_model_of_each_arm_is_there_and_needs_nothing_of_ours(saved):
    assert names(saved / "models") == ["ad-drop", "plain"]
    for arm in ("plain", "ad-drop"):
        folder = saved / "models" / arm
        assert card(folder)["seed"] == best(saved, arm)["seed"]
        assert card(folder)["kind"] == "finetune"
        assert "attrdrop" not in (folder / "config.json").read_text()
    command = [sys.executable, "-c", WITHOUT_US, *(str(saved / "models" / arm) for arm in ("plain", "ad-drop"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{0: 'negative', 1: 'positive'} sdpa torch.Size([1, 2])"] * 2


@pytest.mark.parametrize("arm", ["plain", "ad-drop"])
def test_a_saved_model_scores_as_it_did(saved, tmp_path, arm):
    written = tmp_path / "scores"
    outcome = evaluate(saved / "models" / arm, "--test-size", 16, "--output", written)
    assert outcome.exit_code == 0, outcome.output
    scores = json.loads((written / "scores.json").read_text())
    assert scores["sets"]["rotten-tomatoes"]["examples"] == 16
    assert scores["sets"]["rotten-tomatoes"]["score"] == best(saved, arm)["test_score"]
    table = pd.read_csv(written / "predictions_rotten-tomatoes.csv")
    assert (table["prediction"] == table["label"]).mean() == scores["sets"]["rotten-tomatoes"]["score"]
    assert "test accuracy" not in outcome.output
    assert "accuracy, %" in outcome.output


def test_what_was_saved_is_not_done_again(tiny_bert, output):
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    assert len(before) == 2
    assert "4 of 4 runs are in" in " ".join(again(tiny_bert, output, "--save").split())
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == before


def test_models_that_are_wanted_later_are_those_of_the_best_runs(tiny_bert, output):
    """Nothing else is trained again, and it comes out as it was."""
    shutil.rmtree(output / "models")
    before = results(output)["runs"]
    printed = " ".join(again(tiny_bert, output, "--save").split())
    assert "2 of 4 runs are in" in printed
    assert names(output / "models") == ["ad-drop", "plain"]
    for run, now in zip(before, results(output)["runs"], strict=True):
        assert (run["arm"], run["seed"], run["test_score"]) == (now["arm"], now["seed"], now["test_score"])
        is_best = best(output, run["arm"])["seed"] == run["seed"]
        assert (run == now) == (not is_best)  # its times, where it was done again


def test_whatever_a_kill_leaves_is_put_right(tiny_bert, output):
    """After a result was kept and before its model was settled; between two renames; in the midst of writing."""
    models = output / "models"
    seed = card(models / "plain")["seed"]
    shutil.move(models / "plain", models / f".plain-{seed}")
    (models / ".plain.123").mkdir()  # the earlier best, on its way out
    seed = card(models / "ad-drop")["seed"]
    shutil.copytree(models / "ad-drop", models / f".ad-drop-{1 - seed}")  # of the worse seed
    draft = models / ".ad-drop-0.456"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half")
    before = (models / "ad-drop" / CARD).stat().st_mtime_ns
    assert "4 of 4 runs are in" in " ".join(again(tiny_bert, output, "--save").split())
    assert names(models) == ["ad-drop", "plain"]
    assert (models / "ad-drop" / CARD).stat().st_mtime_ns == before
    assert card(models / "plain")["seed"] == best(output, "plain")["seed"]


def test_overwriting_takes_the_models_too(tiny_bert, output):
    again(tiny_bert, output, "--overwrite")
    assert not (output / "models").exists()


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path):
    store = ModelStore(tmp_path)

    def fail(folder):
        (folder / "half").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        store.save("plain", 0, fail, {})
    assert names(tmp_path / "models") == []
    assert not store.has("plain", 0)


def test_the_best_replaces_the_best_before(tmp_path):
    store = ModelStore(tmp_path)
    for seed, ranked in ((0, [0]), (1, [1, 0]), (2, [1, 2, 0])):
        store.save("plain", seed, lambda folder, seed=seed: (folder / "weights").write_text(str(seed)), {"kind": "x"})
        store.settle("plain", ranked)
        assert names(tmp_path / "models") == ["plain"]
        assert (tmp_path / "models" / "plain" / "weights").read_text() == str(ranked[0])
        assert store.has("plain", ranked[0])
    assert card(tmp_path / "models" / "plain") == {"kind": "x", "arm": "plain", "seed": 1}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_sigkill_leaves_whole_models_and_the_same_command_goes_on(tiny_bert, tmp_path, jobs):
    output = tmp_path / "out"
    command = [
        "finetune", "--model", tiny_bert, "--output", output, *SMALL, "--seeds", 4, "--lr", "1e-3", "--save", "--jobs",
        jobs,
    ]  # fmt: skip
    process = start(*command)
    wait_for_runs(process, output, 2)
    process.kill()
    process.communicate()
    for folder in (output / "models").glob("[!.]*"):
        assert (folder / "model.safetensors").exists()
        assert (folder / CARD).exists()
    printed, _ = start(*command).communicate(timeout=300)
    assert results(output)["complete"], printed
    assert names(output / "models") == ["ad-drop", "plain"]
    for arm in ("plain", "ad-drop"):
        assert card(output / "models" / arm)["seed"] == best(output, arm)["seed"]


def test_sets_by_name_and_by_file(saved, tmp_path):
    labelled, bare = tmp_path / "labelled.csv", tmp_path / "bare.csv"
    table = pd.DataFrame({"text": ["good film", "bad film"] * 4, "label": ["positive", "negative"] * 4})
    table.to_csv(labelled, index=False)
    table[["text"]].to_csv(bare, index=False)
    written = tmp_path / "scores"
    twice = evaluate(saved / "models" / "plain", "--on", f"{labelled},{labelled}", "--output", written)
    assert_refused(twice, written, "--on: two sets are called labelled")
    outcome = evaluate(
        saved / "models" / "plain", "--on", f"tweets,rotten-tomatoes,{labelled},{bare}", "--split", "dev",
        "--test-size", 8, "--output", written,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    scores = json.loads((written / "scores.json").read_text())["sets"]
    assert list(scores) == ["tweets", "rotten-tomatoes", str(labelled), str(bare)]
    assert scores[str(bare)] == {"examples": 8, "score": None, "loss": None}
    said = pd.read_csv(written / "predictions_bare.csv")
    assert said["prediction"].tolist() == pd.read_csv(written / "predictions_labelled.csv")["prediction"].tolist()
    assert list(said.columns) == ["index", "prediction"]
    for name in ("tweets", "rotten-tomatoes"):
        assert 0 <= scores[name]["score"] <= 1


@pytest.fixture(scope="module")
def three_classes(tiny_bert, tmp_path_factory):
    """A model of three classes, trained on a file, and the pairs of a set with two of its own."""
    folder = tmp_path_factory.mktemp("three")
    labels = ["entailment", "neutral", "contradiction"] * 8
    pairs = pd.DataFrame({"premise": [f"{label} so" for label in labels], "hypothesis": "so", "gold_label": labels})
    pairs.to_csv(folder / "train.tsv", sep="\t", index=False)
    own = pd.DataFrame({"gold_label": ["non-entailment", "entailment"] * 4, "sentence2": "so"})
    own["sentence1"] = ["neutral so", "entailment so"] * 4
    own.to_csv(folder / "hans.tsv", sep="\t", index=False)  # its columns are called otherwise than those above
    command = [
        "finetune", "--model", tiny_bert, "--output", folder / "out", "--train", folder / "train.tsv", "--seeds", 1,
        "--epochs", 2, "--max-length", 16, "--save", "--other",
        f"{folder / 'hans.tsv'}:non-entailment=neutral+contradiction",
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, list(map(str, command)))
    assert outcome.exit_code == 0, outcome.output
    return folder


def test_classes_are_merged_for_a_set_that_has_fewer(three_classes, tmp_path):
    hans = three_classes / "hans.tsv"
    runs = results(three_classes / "out")["runs"]
    outcome = evaluate(
        three_classes / "out" / "models" / "plain", "--on", f"{hans}:non-entailment=neutral+contradiction", "--output",
        tmp_path / "scores",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())["sets"][str(hans)]
    plain = next(run for run in runs if run["arm"] == "plain")
    assert plain["other_scores"] == {str(hans): found["score"]}
    said = pd.read_csv(tmp_path / "scores" / "predictions_hans.csv")
    assert set(said["prediction"]) <= {"entailment", "non-entailment"}
    assert said["label"].tolist() == ["non-entailment", "entailment"] * 4
    assert (said["prediction"] == said["label"]).mean() == found["score"]


@pytest.mark.parametrize(
    ("wanted", "fragments"),
    [
        ("{hans}", ["--on: ", "line 2: label 'non-entailment'", "'contradiction', 'entailment', 'neutral'"]),
        ("{hans}:non-entailment=neutral+other", ["'other' is not a class of the task"]),
        ("{hans}:non-entailment=neutral:b=neutral", ["counts as two classes of the set"]),
        ("{hans}:non-entailment=", ["must name a class of the set"]),
        ("rotten-tomatoes", ["has the classes 'negative', 'positive', the model", "say which classes count as which"]),
        ("imdb", ["--on: 'imdb' is not a file or one of rotten-tomatoes"]),
        ("brown-names", ["--task-type", "not a task of type classification"]),
    ],
)  # fmt: skip
def test_sets_that_do_not_fit_are_refused(three_classes, tmp_path, wanted, fragments):
    folder = three_classes / "out" / "models" / "plain"
    wanted = wanted.format(hans=three_classes / "hans.tsv")
    assert_refused(evaluate(folder, "--on", wanted, "--output", tmp_path / "none"), tmp_path / "none", *fragments)


def test_glue_takes_a_file_of_its_hidden_split(three_classes, tmp_path):
    hidden = tmp_path / "test_m.tsv"
    hidden.write_text("index\tpremise\thypothesis\n0\tentailment so\tso\n1\tneutral so\tso\n2\tcontradiction so\tso\n")
    folder = three_classes / "out" / "models" / "ad-drop"
    outcome = evaluate(folder, "--on", hidden, "--glue", "mnli", "--output", tmp_path / "glue")
    assert outcome.exit_code == 0, outcome.output
    lines = (tmp_path / "glue" / "MNLI-m.tsv").read_text().splitlines()
    said = pd.read_csv(tmp_path / "glue" / "predictions_test_m.csv")["prediction"]
    assert lines == ["index\tprediction", *(f"{index}\t{name}" for index, name in enumerate(said))]
    assert_refused(evaluate(folder, "--glue", "mnli"), tmp_path / "none", "--glue: name a folder")
    refused = evaluate(folder, "--on", hidden, "--glue", "rte", "--output", tmp_path / "none")
    assert_refused(refused, tmp_path / "none", "--glue: rte has the classes 'entailment', 'not_entailment'")
    refused = evaluate(folder, "--on", hidden, "--glue", "squad", "--output", tmp_path / "none")
    assert_refused(refused, tmp_path / "none", "--glue: 'squad' is not one of")


def test_a_model_from_elsewhere_says_what_it_is(tiny_bert, tmp_path):
    file = tmp_path / "rated.csv"
    pd.DataFrame({"text": ["good", "bad"] * 3, "label": ["0", "1"] * 3}).to_csv(file, index=False)
    outcome = evaluate(tiny_bert, "--on", "tweets", "--test-size", 4)  # its classes have numbers alone
    assert outcome.exit_code == 0, outcome.output
    assert_refused(evaluate(tiny_bert), tmp_path / "none", "--on: name a data set or a file")
    assert_refused(evaluate(tiny_bert, "--on", "tweets", "--task-type", "x"), tmp_path / "none", "'x' is not one of")


@pytest.mark.parametrize(
    ("kind", "task", "model", "column"),
    [
        ("regression", "rotten-tomatoes", "bert-tiny", "prediction"),
        ("token-classification", "brown-names", "bert-tiny", "prediction"),
        ("seq2seq", "bible-en-es", "scratch", "prediction"),
        ("causal-lm", "rotten-tomatoes", "scratch", None),
        pytest.param("masked-lm", "rotten-tomatoes", "bert-tiny", None, marks=pytest.mark.slow),
    ],
)
def test_every_task_type_is_saved_and_scored(finetune, tmp_path, kind, task, model, column):
    outcome, output = finetune(*SMALL, "--task", task, "--task-type", kind, "--seeds", 1, "--save", model=model)
    assert outcome.exit_code == 0, outcome.output
    run = next(run for run in results(output)["runs"] if run["arm"] == "ad-drop")
    written = tmp_path / "scores"
    outcome = evaluate(output / "models" / "ad-drop", "--test-size", 16, "--output", written)
    assert outcome.exit_code == 0, outcome.output
    found = json.loads((written / "scores.json").read_text())["sets"][task]
    assert found["score"] == pytest.approx(run["test_score"], rel=1e-5, abs=1e-6)
    assert (written / f"predictions_{task}.csv").exists() == (column is not None)


def test_weights_of_an_image_model_are_a_state_dict(tmp_path):
    output = tmp_path / "out"
    command = [
        "train-images", "--train-size", 40, "--test-size", 20, "--epochs", 1, "--batch-size", 20, "--seeds", 2,
        "--arms", "plain", "--save", "--output", output,
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, list(map(str, command)))
    assert outcome.exit_code == 0, outcome.output
    assert names(output / "models" / "plain") == [CARD, "weights.pt"]
    weights = torch.load(output / "models" / "plain" / "weights.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert card(output / "models" / "plain")["seed"] == 0  # no seed is chosen by the test split
