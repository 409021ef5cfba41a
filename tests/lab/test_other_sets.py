"""Sets from elsewhere, whose classes may be several of the task's; the paper's settings by task."""

import pytest
import torch
from hub_rows import glue_rows
from refusals import assert_sentence

from attrdrop.lab.errors import InputError
from attrdrop.lab.studies.plan import Plan
from attrdrop.lab.text import glue, hub, published
from attrdrop.lab.text.examples import Examples, Merged
from attrdrop.lab.text.kinds import KINDS
from attrdrop.lab.text.others import Wanted, aligned, merged, parse, regrouped
from attrdrop.lab.text.settings import Settings

NLI = ["entailment", "neutral", "contradiction"]
HANS = "hans:non-entailment=neutral+contradiction"


@pytest.mark.parametrize(
    ("text", "name", "classes"),
    [
        ("tweets", "tweets", {}),
        (HANS, "hans", {"non-entailment": ["neutral", "contradiction"]}),
        ("C:/sets/hans.tsv: a = x + y :b=z", "C:/sets/hans.tsv", {"a": ["x", "y"], "b": ["z"]}),
        ("paws.tsv:0=not_duplicate:1=duplicate", "paws.tsv", {"0": ["not_duplicate"], "1": ["duplicate"]}),
    ],
)
def test_a_set_is_named_with_its_classes(text, name, classes):
    assert parse(text) == Wanted(name, classes)


@pytest.mark.parametrize("text", ["a:b=", "a:=b", "a:b=c:d", "a:b=c+", "a:b=c:b=d"])
def test_what_names_no_classes_is_refused(text):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert_sentence(caught, "--other: ", text, "must name a class")


def test_classes_that_are_not_spoken_of_stay():
    assert merged({"non-entailment": NLI[1:]}, NLI, "") == Merged(("entailment", "non-entailment"), (0, 1, 1))
    assert merged({"no": ["a"]}, ["b", "a", "c"], "") == Merged(("b", "no", "c"), (0, 1, 2))
    with pytest.raises(InputError, match="'d' is not a class of the task"):
        merged({"no": ["d"]}, NLI, "--other: x")


def test_examples_of_the_task_are_regrouped():
    found = regrouped(Examples(["a", "b", "c"], None, [0, 1, 2]), parse(HANS), NLI)
    assert (found.labels, found.merged.names) == ([0, 1, 1], ("entailment", "non-entailment"))
    assert found.select([2]).merged == found.merged
    assert found.checksum() != Examples(["a", "b", "c"], None, [0, 1, 1]).checksum()
    with pytest.raises(InputError, match="has its own classes"):
        regrouped(found, parse(HANS), NLI)


def test_labels_are_matched_by_name_and_else_by_place():
    rte = Examples(["a", "b"], None, [0, 1])
    classes = {"not_entailment": NLI[1:]}
    found = aligned(rte, ["entailment", "not_entailment"], NLI, classes, "--on: rte")
    assert (found.labels, found.merged.of) == ([0, 1], (0, 1, 1))
    assert aligned(rte, ["b", "a"], ["a", "b"], {}, "").labels == [1, 0]
    assert aligned(rte, ["b", "a"], ["LABEL_0", "LABEL_1"], {}, "").labels == [0, 1]
    tags = Examples([["x", "y"]], None, [[0, 1]])
    assert aligned(tags, ["O", "B-A"], ["B-A", "O"], {}, "").labels == [[1, 0]]
    with pytest.raises(InputError, match="--on: rte has the classes 'entailment', 'not_entailment', the model"):
        aligned(rte, ["entailment", "not_entailment"], NLI, {}, "--on: rte")


def test_hans_is_another_set_of_mnli():
    splits = ("train", "validation_matched", "validation_mismatched")
    mnli = {split: glue_rows(split, 30, "premise", "hypothesis", NLI) for split in splits}
    hans = {"validation": glue_rows("hans", 4, "premise", "hypothesis", ("entailment", "non-entailment"))}
    task = hub.read("mnli", mnli, {"hans": hans, "mnli-mm": mnli})
    assert task.other["hans"].labels == [0, 1, 0, 1]
    assert task.other["hans"].merged == Merged(("entailment", "non-entailment"), (0, 1, 1))
    assert task.names_of(task.other["hans"]) == ["entailment", "non-entailment"]
    assert task.other["mnli-mm"].texts[0] == "validation_mismatched 0"
    assert task.other["mnli-mm"].merged is None


def test_predictions_are_merged_after_the_choice_and_losses_before_it():
    """Entailment is chosen in the second row, though it is less likely than the others together."""
    kind = KINDS["classification"](hub.read("mnli", {
        split: glue_rows(split, 30, "premise", "hypothesis", NLI) for split in ("train", "validation_matched")
    }), None, 8)  # fmt: skip
    own = kind.on(Examples(["a"] * 2, None, [1, 0], merged({"non-entailment": NLI[1:]}, NLI, "")))
    logits = torch.tensor([[2.0, 0.0, 3.0], [2.0, 1.9, 1.9]])
    found = own.predict(lambda labels: type("Output", (), {"logits": logits}), [], {"labels": torch.tensor([1, 0])})
    assert own.written(found.predicted) == ["non-entailment", "entailment"]
    p = logits.softmax(-1)
    assert found.mean_loss == pytest.approx(-(p[0, 1:].sum().log() + p[1, 0].log()).item() / 2)
    assert kind.on(Examples(["a"], None, [2])) is kind


def test_hidden_splits_have_no_labels():
    raw = {split: glue_rows(split, 3, "premise", "hypothesis", NLI) for split in ("test_matched", "test_mismatched")}
    found = hub.hidden("mnli", raw)
    assert list(found) == ["MNLI-m", "MNLI-mm"]
    assert found["MNLI-mm"].texts == ["test_mismatched 0", "test_mismatched 1", "test_mismatched 2"]
    assert found["MNLI-m"].labels is None


@pytest.mark.parametrize(
    ("task", "predicted", "names", "said"),
    [
        ("cola", [1, 0], ["unacceptable", "acceptable"], "0\t1\n1\t0\n"),
        ("rte", [1, 0], ["entailment", "not_entailment"], "0\tnot_entailment\n1\tentailment\n"),
        ("rte", [1, 0], ["not_entailment", "entailment"], "0\tentailment\n1\tnot_entailment\n"),
        ("ax", [2], ["LABEL_0", "LABEL_1", "LABEL_2"], "0\tcontradiction\n"),
        ("mnli", [2], ["0", "1", "2"], "0\tcontradiction\n"),
        ("stsb", [5.4, -0.2, 3.14159], [], "0\t5.000\n1\t0.000\n2\t3.142\n"),
    ],
)
def test_files_for_the_server(task, predicted, names, said):
    assert glue.submission(task, predicted, names).decode() == f"index\tprediction\n{said}"


def test_classes_that_the_server_does_not_know_are_refused():
    for task, names in (("rte", ["yes", "no"]), ("cola", NLI)):
        with pytest.raises(InputError, match=f"--glue: {task} has"):
            glue.submission(task, [0], names)


def test_layers_are_those_of_section_3_2():
    layers = {task: found["layers"] for task, found in published.TASKS.items()}
    assert {task for task, found in layers.items() if found == "first"} == {"sst2", "mnli", "qnli", "qqp", "stsb"}
    assert {"cola", "mrpc", "rte"} <= {task for task, found in layers.items() if found == "all"}
    assert set(published.TASKS) == set(hub.TASKS) - {"wnli"}
    for task in published.TASKS:
        assert set(published.of_task(task)) <= set(Settings.__dataclass_fields__)


def test_tasks_that_are_swept_together_share_what_is_alike():
    found = published.of_tasks(("cola", "stsb"), set())
    assert (found["layers"], found["max_length"], found["lr"], found["batch_size"]) == ("paper", 100, 1e-5, 16)
    with pytest.raises(InputError, match=r"--preset: the paper's --.* differs among cola, conll2003"):
        published.of_tasks(("cola", "conll2003"), set())
    given = {"p", "q", "lr", "batch_size", "epochs"}
    assert published.of_tasks(("cola", "conll2003"), given)["max_length"] == 128
    with pytest.raises(InputError, match="--preset: the paper has no settings for imdb"):
        published.of_tasks(("imdb",), set())


def test_layers_of_the_paper_go_by_task():
    plan = Plan(("seeds", "regions"), ("squad-questions", "brown-names"), seeds=1, layers="paper")
    found = {(trial["task"], trial["layers"], trial["cross_tuning"]) for trial in plan.trials() if "layers" in trial}
    assert found == {
        ("squad-questions", "first", True), ("squad-questions", "first", False), ("brown-names", "all", True),
        ("brown-names", "first", False),
    }  # fmt: skip
