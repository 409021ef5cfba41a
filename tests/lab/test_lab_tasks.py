"""Tasks by name, shipped or of the hub, and smaller draws of them."""

from collections import Counter

import pytest
from hub_rows import Rows, glue_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import assert_sentence
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from attrdrop.lab.errors import InputError
from attrdrop.lab.text import hub, shipped, tasks
from attrdrop.lab.text.models import quiet
from attrdrop.lab.text.readers import TABLES, read_table

SHIPPED = [(name, kind) for name, task in shipped.TASKS.items() for kind in task.kinds]


def keys(examples):
    texts = [tuple(text) if isinstance(text, list) else text for text in examples.texts]
    return list(zip(texts, examples.pairs or texts, strict=True))


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("rotten-tomatoes", "classification", (7070, 1000, 2000)),
        ("rotten-tomatoes", "regression", (7603, 1000, 2000)),
        ("rotten-tomatoes", "masked-lm", (7603, 1000, 2000)),
        ("rotten-tomatoes", "causal-lm", (7603, 1000, 2000)),
        ("squad-questions", "classification", (13122, 2287, 4940)),
        ("brown-names", "token-classification", (6489, 500, 1000)),
        ("bible-en-es", "seq2seq", (13326, 500, 1000)),
    ],
)
def test_shipped_splits_are_disjoint_and_always_the_same(name, kind, sizes):
    task = tasks.load_task(name, kind)
    assert (task.name, task.kind, task.other) == (name, kind, {})
    splits = [keys(split) for split in (task.train, task.dev, task.test)]
    assert tuple(map(len, splits)) == sizes
    assert len(set().union(*splits)) == sum(sizes)
    assert task == tasks.load_task(name, kind)


def test_every_shipped_task_is_among_the_names_with_its_usual_kind_first():
    assert {kind for _, kind in SHIPPED} == set(tasks.KINDS)
    for name in shipped.TASKS:
        assert name in tasks.TASKS
        assert tasks.load_task(name).kind == shipped.TASKS[name].kinds[0]


def test_polarity_is_balanced_and_agrees_with_the_ratings():
    polarity, ratings = (tasks.load_task("rotten-tomatoes", kind) for kind in ("classification", "regression"))
    rating_of = {
        text: rating
        for split in (ratings.train, ratings.dev, ratings.test)
        for text, rating in zip(split.texts, split.labels, strict=True)
    }
    assert -4 <= min(rating_of.values()) < -3 < 3 < max(rating_of.values()) <= 4
    for split in (polarity.train, polarity.dev, polarity.test):
        assert sum(split.labels) / len(split) == pytest.approx(0.5, abs=0.01)
        assert all((rating_of[text] > 0) == bool(label) for text, label in zip(split.texts, split.labels, strict=True))
    assert (polarity.metric, ratings.metric, ratings.label_names) == (None, "pearson", [])


def test_no_article_of_the_questions_is_in_two_splits():
    task = tasks.load_task("squad-questions")
    table = read_table(shipped.DATA / "squad_questions.tsv.gz", "--task", TABLES)
    article = {(row["question"], row["sentence"]): row["article"] for row in table.rows}
    sides = [{article[key] for key in keys(split)} for split in (task.train, task.dev, task.test)]
    assert list(map(len, sides)) == [36, 4, 8]
    assert len(set().union(*sides)) == 48
    assert [sum(split.labels) / len(split) for split in (task.train, task.dev, task.test)] == pytest.approx(
        [0.5] * 3, abs=0.001
    )


def test_names_are_spans_with_a_tag_for_every_word():
    task = tasks.load_task("brown-names")
    assert task.label_names == ["O", "B-NAME", "I-NAME"]
    for split in (task.train, task.dev, task.test):
        for words, tags in zip(split.texts, split.labels, strict=True):
            assert len(words) == len(tags)
            assert set(tags) <= {0, 1, 2}
            assert 1 in tags
            assert all(before for before, tag in zip([0, *tags], tags, strict=False) if tag == 2)


def test_the_bible_goes_from_english_to_spanish():
    task = tasks.load_task("bible-en-es")
    source, target = (Counter(" ".join(texts).split()) for texts in (task.train.texts, task.train.labels))
    assert source["the"] > 1000 > source["que"]
    assert target["que"] > 1000 > target["the"]


@pytest.mark.parametrize("kind", shipped.TASKS["rotten-tomatoes"].kinds)
def test_reviews_from_elsewhere_have_the_same_labels(kind):
    task = tasks.load_task("rotten-tomatoes", kind, ("amazon-reviews", "tweets"))
    assert list(task.other) == ["amazon-reviews", "tweets"]
    sizes = [2976, 3432] if kind == "classification" else [3697, 4200]
    assert [len(examples) for examples in task.other.values()] == sizes
    for examples in task.other.values():
        if kind == "classification":
            assert set(examples.labels) == {0, 1}
        elif kind == "regression":
            assert all(-4 <= rating <= 4 for rating in examples.labels)
        else:
            assert examples.labels is None


def test_a_file_serves_as_another_set(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\nlovely,positive\nawful,negative\n")
    task = tasks.load_task("rotten-tomatoes", other=("tweets", str(path)))
    assert list(task.other) == ["tweets", str(path)]
    assert task.other[str(path)].labels == [1, 0]
    assert {name: len(one) for name, one in task.limited(10, 10, 2).other.items()} == {"tweets": 2, str(path): 2}


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("text,label\nlovely,good\n", ["line 2", "'good'", "'negative', 'positive'"]),
        ("body,label\nlovely,positive\n", ["no column text or sentence", "'body', 'label'"]),
        ("text,score\nlovely,positive\n", ["no column label", "'text', 'score'"]),
        ("question,sentence,label\nwhat,lovely,positive\n", ["pairs of texts", "rotten-tomatoes"]),
    ],
)
def test_a_file_that_does_not_fit_the_task(tmp_path, content, fragments):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        tasks.load_task("rotten-tomatoes", other=(str(path),))
    assert_sentence(caught, "--other", str(path), *fragments)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("imdb",), ["--task", "'imdb'", "rotten-tomatoes", "rte"]),
        (("squad-questions", "regression"), ["--task-type", "squad-questions", "regression", "classification"]),
        (("rotten-tomatoes", "seq2seq"), ["--task-type", "classification or regression or masked-lm or causal-lm"]),
        (("stsb", "classification"), ["--task-type", "stsb", "can be regression"]),
        (("rotten-tomatoes", None, ("paws-x",)), ["--other", "'paws-x'", "amazon-reviews, tweets"]),
        (("brown-names", None, ("none.jsonl",)), ["--other", "'none.jsonl' is not a file."]),
    ],
)
def test_what_is_not_there_by_name(arguments, fragments):
    with pytest.raises(InputError) as caught:
        tasks.load_task(*arguments)
    assert_sentence(caught, *fragments)


def test_limited_takes_the_same_examples_every_time():
    first, second = (tasks.rotten_tomatoes().limited(50, 20, 10) for _ in range(2))
    assert first == second
    assert [len(split) for split in (first.train, first.dev, first.test)] == [50, 20, 10]
    assert sum(first.train.labels) in (24, 25, 26)


@pytest.mark.parametrize(("name", "kind"), SHIPPED)
def test_every_shipped_task_can_be_cut_down(name, kind):
    whole = tasks.load_task(name, kind)
    task = whole.limited(20, 10, None).shots(3, seed=1)
    assert (len(task.train), len(task.dev), task.test) == (6 if kind == "classification" else 3, 10, whole.test)
    for column in (task.train.pairs, task.train.labels):
        assert column is None or len(column) == len(task.train)
    assert set(keys(task.train)) <= set(keys(whole.train))


def classes(counts):
    """A task whose i-th class has counts[i] training examples, each with a text of its own."""
    labels = [index for index, count in enumerate(counts) for _ in range(count)]
    examples = tasks.Examples([f"text {i}" for i in range(len(labels))], None, labels)
    return tasks.Task("made up", "classification", [f"class {i}" for i in range(len(counts))], examples, examples, None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(5, 30), min_size=2, max_size=4), st.integers(1, 5), st.integers(0, 2**31))
def test_shots_are_so_many_of_each_class(counts, count, seed):
    task = classes(counts)
    drawn = task.shots(count, seed)
    assert Counter(drawn.train.labels) == dict.fromkeys(range(len(counts)), count)
    assert len(set(drawn.train.texts)) == len(drawn.train)
    assert (
        dict(zip(drawn.train.texts, drawn.train.labels, strict=True)).items()
        <= dict(zip(task.train.texts, task.train.labels, strict=True)).items()
    )
    assert drawn == task.shots(count, seed)
    assert drawn.dev == task.dev


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(10, 40), min_size=2, max_size=4), st.floats(0.3, 0.8), st.integers(0, 2**31))
def test_a_share_keeps_classes_in_proportion(counts, fraction, seed):
    task = classes(counts)
    drawn = task.share(fraction, seed)
    assert len(drawn.train) == round(fraction * sum(counts))
    for index, count in enumerate(counts):
        assert abs(drawn.train.labels.count(index) - len(drawn.train) * count / sum(counts)) < 1
    assert len(set(drawn.train.texts) & set(task.train.texts)) == len(drawn.train)
    assert drawn == task.share(fraction, seed)


def test_draws_differ_by_seed():
    task = classes([50, 50])
    assert task.shots(10, 0).train != task.shots(10, 1).train
    assert task.share(0.5, 0).train != task.share(0.5, 1).train
    assert task.share(1.0, 0) == task


@pytest.mark.parametrize(
    ("draw", "fragments"),
    [
        (lambda task: task.shots(4, 0), ["--shots: 4", "3 training examples", "'class 1'"]),
        (lambda task: task.shots(0, 0), ["--shots: 0"]),
        (lambda task: task.share(0.0, 0), ["--share: 0.0", "above 0, at most 1"]),
        (lambda task: task.share(1.5, 0), ["--share: 1.5", "above 0, at most 1"]),
        (lambda task: task.share(0.01, 0), ["--share: 0.01", "leaves no example of"]),
        (lambda task: task.limited(1, None, None), ["--train-size: 1", "leaves no example of"]),
    ],
)
def test_draws_that_are_too_small_or_too_large(draw, fragments):
    with pytest.raises(InputError) as caught:
        draw(classes([20, 3]))
    assert_sentence(caught, *fragments)


def test_shots_without_classes_are_so_many_in_all():
    task = tasks.load_task("rotten-tomatoes", "regression").limited(8, 8, 8)
    assert len(task.shots(5, 0).train) == 5
    with pytest.raises(InputError) as caught:
        task.shots(9, 0)
    assert_sentence(caught, "--shots: 9", "the 8 training examples.")


def test_the_shipped_encoder_loads_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    quiet()
    model = AutoModelForSequenceClassification.from_pretrained(shipped.BERT_TINY, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(shipped.BERT_TINY)
    assert (model.config.num_hidden_layers, tokenizer.model_max_length) == (2, 512)
    assert tokenizer.tokenize("A Warm, unaffable film") == ["a", "warm", ",", "una", "##ffa", "##ble", "film"]
    batch = tokenizer(["a warm, funny film"], return_tensors="pt")
    assert model.float()(**batch).logits.shape == (1, 2)


def test_glue_splits():
    task = hub.read("rte", {"train": glue_rows("t", 40), "validation": glue_rows("v", 6)})
    assert (len(task.train), len(task.dev), len(task.test)) == (36, 4, 6)
    assert all(text.startswith("v") for text in task.test.texts)
    assert task.label_names == ["entailment", "not_entailment"]
    assert task.test.pairs == ["s"] * 6


def test_glue_has_single_texts_three_classes_and_metrics_of_its_own():
    names = ("unacceptable", "acceptable")
    cola = {split: glue_rows(split, 20, "sentence", None, names) for split in ("train", "validation")}
    task = hub.read("cola", cola)
    assert (task.metric, task.kind, task.train.pairs) == ("matthews", "classification", None)
    names = ("entailment", "neutral", "contradiction")
    splits = ("train", "validation_matched", "validation_mismatched")
    mnli = {split: glue_rows(split, 30, "premise", "hypothesis", names) for split in splits}
    task = hub.read("mnli", mnli)
    assert (task.label_names, task.test.texts[0], task.metric) == (list(names), "validation_matched 0", None)


def test_stsb_is_regression():
    columns = {"sentence1": ["a"] * 20, "sentence2": ["b"] * 20, "label": [i / 4 for i in range(20)]}
    task = hub.read("stsb", {"train": Rows(**columns), "validation": Rows(**columns)})
    assert (task.kind, task.metric, task.label_names) == ("regression", "pearson", [])
    assert task.test.labels == columns["label"]


def test_paws_x_is_another_set_of_qqp():
    names = ("not_duplicate", "duplicate")
    qqp = {split: glue_rows(split, 20, "question1", "question2", names) for split in ("train", "validation")}
    paws = {split: glue_rows(f"paws {split}", 5, names=("0", "1")) for split in ("train", "validation", "test")}
    task = hub.read("qqp", qqp, {"paws-x": paws})
    assert (task.label_names, len(task.other["paws-x"])) == (list(names), 5)
    assert (task.other["paws-x"].texts[0], task.other["paws-x"].labels) == ("paws test 0", [0, 1, 0, 1, 0])


def test_conll_has_words_and_tags():
    names = ["O", "B-PER", "I-PER"]
    raw = {
        split: Rows(names, tokens=[["Ada", "Lovelace", "wrote"], [split]], ner_tags=[[1, 2, 0], [0]])
        for split in ("train", "validation", "test")
    }
    task = hub.read("conll2003", raw)
    assert (task.kind, task.label_names) == ("token-classification", names)
    assert [split.texts[1] for split in (task.train, task.dev, task.test)] == [["train"], ["validation"], ["test"]]
    assert task.train.labels == [[1, 2, 0], [0]]


@pytest.mark.parametrize(("name", "source", "target"), [("wmt16-en-ro", "en", "ro"), ("wmt16-tr-en", "tr", "en")])
def test_translations_go_in_the_direction_of_their_name(name, source, target):
    raw = {
        split: Rows(translation=[{source: f"{split} from", target: f"{split} to"}])
        for split in ("train", "validation", "test")
    }
    task = hub.read(name, raw)
    assert [split.texts for split in (task.train, task.dev, task.test)] == [
        ["train from"], ["validation from"], ["test from"],
    ]  # fmt: skip
    assert (task.train.labels, task.kind) == (["train to"], "seq2seq")


def test_the_hub_needs_datasets():
    try:
        import datasets  # noqa: F401
    except ImportError:
        for name in hub.TASKS:
            with pytest.raises(InputError) as caught:
                tasks.load_task(name)
            assert_sentence(caught, "--task", name, "pip install datasets")
    else:
        pytest.skip("datasets is installed")
