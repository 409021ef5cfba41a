"""Task types: encoding, batches, predictions and scores, and `attrdrop finetune` on each of them."""

import sys

import pytest
import torch
from lab_runs import one_thread, results  # noqa: F401
from refusals import assert_refused

from attrdrop.lab.errors import InputError
from attrdrop.lab.text import tasks
from attrdrop.lab.text.examples import Examples, Task
from attrdrop.lab.text.kinds import KINDS, Prediction
from attrdrop.lab.text.models import load_model, load_tokenizer
from attrdrop.lab.text.settings import Settings
from attrdrop.lab.text.training import Trainer

SMALL = ["--train-size", "48", "--dev-size", "16", "--test-size", "16", "--epochs", "2", "--max-length", "32"]
TASKS = [
    ("regression", ["--task", "rotten-tomatoes", "--other", "tweets"], "Pearson correlation", "tiny"),
    ("classification", ["--task", "squad-questions", "--metric", "matthews"], "Matthews correlation", "tiny"),
    ("token-classification", ["--task", "brown-names"], "span F1", "tiny"),
    ("token-classification", ["--task", "brown-names", "--metric", "accuracy"], "tag accuracy", "scratch"),
    ("seq2seq", ["--task", "bible-en-es", "--attention", "encoder, cross"], "BLEU", "scratch"),
    pytest.param("masked-lm", ["--task", "rotten-tomatoes"], "perplexity", "tiny", marks=pytest.mark.slow),
    ("causal-lm", ["--task", "rotten-tomatoes"], "perplexity", "scratch"),
    pytest.param(
        "causal-lm",
        ["--task", "rotten-tomatoes", "--metric", "accuracy"],
        "token accuracy",
        "tiny",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("kind", "arguments", "metric", "model"), TASKS)
def test_every_type_trains(finetune, tiny_bert, kind, arguments, metric, model):
    outcome, output = finetune(
        *SMALL,
        *arguments,
        "--task-type",
        kind,
        "--seeds",
        1,
        "--lr",
        "1e-3",
        model=tiny_bert if model == "tiny" else model,
    )
    assert outcome.exit_code == 0, outcome.output
    content = results(output)
    assert (content["task"]["kind"], content["task"]["metric"]["name"]) == (kind, metric)
    assert f"test {metric}" in outcome.output
    plain, dropping = content["runs"]
    assert dropping["epochs"][1]["statistics"]["dropped"] > 0
    # the same model, batches and hidden tokens in both arms until AD-DROP begins
    assert dropping["epochs"][0]["train_loss"] == pytest.approx(plain["epochs"][0]["train_loss"], rel=1e-4)
    assert dropping["epochs"][0]["dev_loss"] == pytest.approx(plain["epochs"][0]["dev_loss"], rel=1e-3)
    assert dropping["epochs"][1]["train_loss"] != plain["epochs"][1]["train_loss"]
    assert plain["epochs"][1]["train_loss"] < plain["epochs"][0]["train_loss"]
    assert set(plain["other_scores"]) == ({"tweets"} if "tweets" in arguments else set())


RIVALS = ["attention-dropout", "r-drop", "drop-head", "hidden-cut", "drop-key"]


@pytest.mark.parametrize(
    ("kind", "task", "model"),
    [
        pytest.param("token-classification", "brown-names", "bert-tiny", marks=pytest.mark.slow),
        pytest.param("regression", "rotten-tomatoes", "bert-tiny", marks=pytest.mark.slow),
        pytest.param("seq2seq", "bible-en-es", "scratch", marks=pytest.mark.slow),
        pytest.param("causal-lm", "rotten-tomatoes", "scratch", marks=pytest.mark.slow),
    ],
)
def test_every_arm_trains(finetune, kind, task, model):
    outcome, output = finetune(
        *SMALL, "--task", task, "--task-type", kind, "--seeds", 1, "--arms", ",".join(["plain", "ad-drop", *RIVALS]),
        "--rate", 0.2, model=model,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    runs = {run["arm"]: run for run in results(output)["runs"]}
    assert list(runs) == ["plain", "ad-drop", *RIVALS]
    for arm in RIVALS:
        assert [epoch["active"] for epoch in runs[arm]["epochs"]] == [True, True]
        assert runs[arm]["epochs"][0]["train_loss"] != runs["plain"]["epochs"][0]["train_loss"]
    for arm in ("drop-head", "hidden-cut", "drop-key"):
        counts = runs[arm]["epochs"][0]["statistics"]
        assert 0.1 < counts["dropped"] / counts["valid"] < 0.3
    assert "drop-key" in outcome.output


def bad_inputs():
    yield "kind", ["--task", "rotten-tomatoes", "--task-type", "seq2seq"], ["--task-type", "seq2seq", "regression"]
    yield (
        "unknown kind",
        ["--task", "brown-names", "--task-type", "ner"],
        ["--task-type", "ner", "token-classification"],
    )
    yield "model", ["--task", "bible-en-es"], ["--task-type", "seq2seq", "bert", "classification", "scratch"]
    yield "metric", ["--task", "brown-names", "--metric", "bleu"], ["--metric", "'bleu'", "span-f1, accuracy"]
    yield "other", ["--task", "rotten-tomatoes", "--other", "yelp"], ["--other", "'yelp'", "amazon-reviews"]


@pytest.mark.parametrize(("arguments", "fragments"), [pytest.param(a, f, id=name) for name, a, f in bad_inputs()])
def test_bad_input_is_one_sentence(finetune, arguments, fragments):
    outcome, output = finetune(*SMALL, *arguments)
    assert_refused(outcome, output, *fragments)


@pytest.mark.parametrize(
    ("kind", "task", "package"),
    [("token-classification", "brown-names", "seqeval"), ("seq2seq", "bible-en-es", "sacrebleu")],
)
def test_a_missing_scorer_is_missed_before_training(finetune, monkeypatch, kind, task, package):
    monkeypatch.setitem(sys.modules, package, None)
    outcome, output = finetune(*SMALL, "--task", task, model="scratch")
    assert_refused(outcome, output, f"--task-type: {kind} is scored by the package {package}", f"pip install {package}")


def test_kinds_are_those_of_the_tasks():
    assert tuple(KINDS) == tasks.KINDS


def kind_of(task, model="minilm", max_length=32):
    settings = Settings(model=model, max_length=max_length)
    return KINDS[task.kind](task, load_tokenizer(settings, task), max_length)


def names_task(words, tags):
    examples = Examples(words, None, tags)
    return Task("names", "token-classification", ["O", "B-NAME", "I-NAME"], examples, examples, None)


def test_the_first_piece_of_a_word_bears_its_tag():
    kind = kind_of(names_task([["Tchaikovsky", "wrote", "unquestionably", "."]], [[1, 0, 2, 0]]))
    (row,) = kind.encode(kind.task.train)
    pieces = kind.tokenizer.convert_ids_to_tokens(row["input_ids"])
    starts = [not piece.startswith("##") and piece not in ("[CLS]", "[SEP]") for piece in pieces]
    assert sum(starts) == 4 < len(pieces) - 2
    assert [label for label, start in zip(row["labels"], starts, strict=True) if start] == [1, 0, 2, 0]
    assert {label for label, start in zip(row["labels"], starts, strict=True) if not start} == {-100}


def test_words_that_were_cut_off_count_as_missed():
    task = names_task([["Anna", "met", "Berta", "Bach"]], [[1, 0, 1, 2]])
    kind = kind_of(task, max_length=4)  # two words between [CLS] and [SEP]
    rows = kind.encode(task.train)
    batch = kind.collate(0)(rows)

    class Oracle:
        def __call__(self, labels, **inputs):
            return type("Output", (), {"logits": torch.nn.functional.one_hot(labels.clamp(0), 3).float()})

    found = kind.predict(Oracle(), rows, batch)
    assert found.predicted == [["B-NAME", "O", "O", "O"]]
    assert found.expected == [["B-NAME", "O", "B-NAME", "I-NAME"]]
    assert kind.score("span-f1", found) == pytest.approx(2 / 3)
    assert kind.score("accuracy", found) == 0.5


def test_regression_of_a_constant_correlates_with_nothing():
    task = tasks.load_task("rotten-tomatoes", "regression").limited(8, 4, 4)
    kind = kind_of(task)
    assert kind.score("pearson", Prediction(0, 3, [1.0, 1.0, 1.0], [1.0, 2.0, 3.0])) == 0
    assert kind.score("spearman", Prediction(0, 3, [1.0, 2.0, 9.0], [1.0, 2.0, 3.0])) == pytest.approx(1)
    assert kind.score("mse", Prediction(6.0, 3, [], [])) == 2


def test_translations_are_compared_with_the_reference_itself():
    task = tasks.load_task("bible-en-es").limited(64, 8, 8)
    kind = kind_of(task, "scratch", max_length=16)
    rows = kind.encode(task.dev)
    assert [row["reference"] for row in rows] == task.dev.labels
    assert max(len(row["labels"]) for row in rows) <= 16  # the reference is longer than what is trained on
    assert kind.score("bleu", Prediction(0, 0, task.dev.labels, task.dev.labels)) == pytest.approx(1)
    assert kind.score("chrf", Prediction(0, 0, ["x"] * 8, task.dev.labels)) < 0.1


def test_hidden_tokens_are_drawn_from_the_seed_and_never_none():
    task = tasks.load_task("rotten-tomatoes", "masked-lm").limited(32, 8, 8)
    kind = kind_of(task)
    rows = kind.encode(task.train)
    state = torch.get_rng_state()
    first, again, other = (kind.collate(seed)(rows)["labels"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert 0.1 < (first != -100).sum() / sum(len(row["input_ids"]) - 2 for row in rows) < 0.2
    word = kind.encode(Examples(["film"], None, None))
    assert all((kind.collate(seed)(word)["labels"] != -100).sum() == 1 for seed in range(20))


def test_texts_without_anything_to_predict_are_left_out():
    task = tasks.load_task("rotten-tomatoes", "masked-lm").limited(8, 4, 4)
    kind = kind_of(task)
    assert len(kind.encode(Examples(["good film", "\u2603"], None, None))) == 1  # a snowman is unknown
    with pytest.raises(InputError, match="nothing to predict"):
        kind.encode(Examples(["\u2603"], None, None))


@pytest.mark.parametrize("arm", ["plain", "ad-drop"])
def test_an_encoder_becomes_causal(arm):
    task = tasks.load_task("rotten-tomatoes", "causal-lm").limited(8, 4, 4)
    trainer = Trainer(Settings(model="bert-tiny", max_length=16), task)
    model, _ = load_model(arm, 0, trainer.settings, trainer.kind)
    ids = torch.arange(2000, 2008)[None]
    changed = ids.clone()
    changed[0, -1] = 3000
    with torch.no_grad():
        one, other = model.eval()(input_ids=ids).logits, model(input_ids=changed).logits
    assert torch.equal(one[:, :-1], other[:, :-1])
    assert not torch.equal(one[:, -1], other[:, -1])


def test_scratch_models_start_alike_at_a_seed():
    task = tasks.load_task("bible-en-es").limited(64, 8, 8)
    trainer = Trainer(Settings(model="scratch", max_length=16), task)
    one, other, third = (
        load_model("plain", seed, trainer.settings, trainer.kind)[0].state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], third[name]) for name in one)


def test_changed_trainers_share_all_but_what_changed():
    task = tasks.load_task("rotten-tomatoes").limited(32, 8, 8)
    trainer = Trainer(Settings(model="bert-tiny", max_length=16), task)
    fewer = trainer.changed(train=task.shots(2, seed=1).train)
    assert (len(fewer.train_rows), len(trainer.train_rows)) == (4, 32)
    assert fewer.dev_rows is trainer.dev_rows
    assert trainer.changed(Settings(model="bert-tiny", max_length=16, p=0.7)).settings.p == 0.7
