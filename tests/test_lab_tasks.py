"""Reading labelled files and forming tasks: what is accepted, and the sentence for what is not."""

import gzip
import json
from types import SimpleNamespace

import pytest

from attrdrop.lab import tasks
from attrdrop.lab.errors import InputError
from attrdrop.lab.readers import read_table

GOOD = "text,label\ngood,yes\nbad,no\nfine,yes\npoor,no\n"


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def test_rotten_tomatoes_is_balanced_and_splits_do_not_overlap():
    task = tasks.rotten_tomatoes()
    splits = [set(split.texts) for split in (task.train, task.dev, task.test)]
    assert [len(split) for split in splits] == [len(task.train), 1000, 2000]
    assert sum(map(len, splits)) == len(set.union(*splits)) > 10_000
    for split in (task.train, task.dev, task.test):
        assert sum(split.labels) / len(split) == pytest.approx(0.5, abs=0.01)


def test_limited_takes_the_same_examples_every_time():
    first, second = (tasks.rotten_tomatoes().limited(50, 20, 10) for _ in range(2))
    assert first == second
    assert [len(split) for split in (first.train, first.dev, first.test)] == [50, 20, 10]
    assert sum(first.train.labels) in (24, 25, 26)


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_formats_read_alike(write, kind, gz):
    rows = [("a, b", "0"), ('say ""', "1"), ("ü", "0")]
    text = {
        "csv": 'text,label\n"a, b",0\n"say """"",1\nü,0\n',
        "tsv": "\ufefftext\tlabel\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in rows),
        "jsonl": "".join(json.dumps({"text": text, "label": int(label)}) + "\n\n" for text, label in rows),
    }[kind]
    table = read_table(write(f"data.{kind}{gz}", text), "--train")
    assert table.columns == ["text", "label"]
    assert [tuple(row.values()) for row in table.rows] == rows


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("sentence1,sentence2,label", ("left", "right")),
        ("question,sentence,label", ("left", "right")),
        ("premise,hypothesis,label", ("left", "right")),
        ("sentence,extra,label", ("left", None)),
        ("text,extra,label", ("left", None)),
    ],
)
def test_usual_columns_are_found(write, header, expected):
    rows = "".join(f"left,right,{label}\n" for label in (0, 1) * 3)
    task = tasks.from_files(write("train.csv", f"{header}\n{rows}"), write("dev.csv", f"{header}\n{rows}"))
    assert task.train.texts[0] == expected[0]
    assert (task.train.pairs and task.train.pairs[0]) == expected[1]


def test_named_columns_and_string_labels(write):
    path = write("train.tsv", "a\tb\tclass\n" + "x\ty\tspam\nx\ty\tham\n" * 5)
    task = tasks.from_files(path, text_column="b", text_pair_column="a", label_column="class")
    assert task.label_names == ["ham", "spam"]
    assert (task.train.texts[0], task.train.pairs[0]) == ("y", "x")
    assert (len(task.train), len(task.dev), task.test) == (9, 1, None)


def test_integer_labels_sort_as_numbers(write):
    path = write("train.csv", "text,label\n" + "".join(f"t,{label}\n" for label in (10, 9, -1) * 2))
    assert tasks.from_files(path, path, path).label_names == ["-1", "9", "10"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "fragments"),
    [
        ("train.csv", "", {}, ["no rows", "column names"]),
        ("train.csv", "text,label\n", {}, ["no rows"]),
        ("train.jsonl", "\n", {}, ["no rows"]),
        ("train.xlsx", GOOD, {}, ["none of .csv, .tsv and .jsonl"]),
        ("train", GOOD, {}, ["none of .csv, .tsv and .jsonl"]),
        ("train.csv", GOOD + "a,b,c\n", {}, ["line 6", "3 fields", "2 (text, label)"]),
        ("train.tsv", "text\tlabel\nalone\n", {}, ["line 2", "1 fields"]),
        ("train.csv", 'text,label\n"open,yes\n', {}, ["not valid csv"]),
        ("train.csv", "text,text\na,b\n", {}, ["same name"]),
        ("train.jsonl", '{"text": "a", "label": 1}\n{"text": \n', {}, ["line 2", "not valid JSON"]),
        ("train.jsonl", "[1, 2]\n", {}, ["line 1", "list where a JSON object"]),
        ("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {}, ["line 2", "no 'label'"]),
        ("train.csv", GOOD + "  ,yes\n", {}, ["line 6", "'text' is empty"]),
        ("train.csv", GOOD + "more,\n", {}, ["line 6", "'label' is empty"]),
        ("train.jsonl", '{"text": null, "label": 1}\n{"text": "b", "label": 0}', {}, ["line 1", "'text' is empty"]),
        ("train.csv", "text,label\na,1\nb,1\n", {}, ["only one class", "'1'"]),
        ("train.csv", "text,label\n" + "".join(f"a,{n / 7}\n" for n in range(30)), {}, ["30 different values"]),
        ("train.csv", "body,label\na,1\nb,0\n", {}, ["--text-column", "body, label"]),
        ("train.csv", "text,score\na,1\nb,0\n", {}, ["--label-column", "text, score"]),
        ("train.csv", GOOD, {"text_column": "body"}, ["--text-column", "'body'", "text, label"]),
        ("train.csv", GOOD, {"text_pair_column": "other"}, ["--text-pair-column", "'other'", "text, label"]),
        ("train.csv", GOOD, {"label_column": "class"}, ["--label-column", "'class'", "text, label"]),
    ],
)
def test_bad_training_file(write, name, content, columns, fragments):
    path = write(name, content)
    with pytest.raises(InputError) as caught:
        tasks.from_files(path, **columns)
    assert_sentence(caught, str(path), *fragments)


def test_missing_and_unreadable_files(write, tmp_path):
    with pytest.raises(InputError) as caught:
        tasks.from_files(tmp_path / "none.csv")
    assert_sentence(caught, "--train", "no file", "none.csv")
    not_gzip = tmp_path / "train.csv.gz"
    not_gzip.write_text(GOOD)
    latin = tmp_path / "train.csv"
    latin.write_bytes("text,label\né,1\n".encode("latin-1"))
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(GOOD.encode() * 100)[:40])
    corrupt = tmp_path / "corrupt.csv.gz"
    corrupt.write_bytes(gzip.compress(b"")[:10] + b"\xff" * 40)
    for path in (not_gzip, latin, cut, corrupt):
        with pytest.raises(InputError) as caught:
            tasks.from_files(path)
        assert_sentence(caught, "--train", str(path), "cannot be read")


@pytest.mark.parametrize("option", ["dev", "test"])
def test_unseen_label(write, option):
    files = {"dev": write("dev.csv", GOOD), option: write(f"{option}.csv", GOOD + "odd,maybe\n")}
    with pytest.raises(InputError) as caught:
        tasks.from_files(write("train.csv", GOOD), **files)
    assert_sentence(caught, f"--{option}", "line 6", "'maybe'", "'no', 'yes'")


def test_training_sample_must_hold_every_class(write):
    path = write("train.csv", "text,label\n" + "".join(f"t,{label}\n" for label in (0, 1, 2) * 5))
    with pytest.raises(InputError) as caught:
        tasks.from_files(path, path).limited(2, None, None)
    assert_sentence(caught, "--train-size", "leaves no example of")


def test_a_file_too_small_to_split_is_named(write):
    with pytest.raises(InputError) as caught:
        tasks.from_files(write("two.csv", "text,label\ngood,a\nbad,b\n"))
    assert_sentence(caught, "--train", "two.csv", "--dev")


def test_task_names():
    with pytest.raises(InputError) as caught:
        tasks.load_task("imdb")
    assert_sentence(caught, "--task", "'imdb'", "rotten-tomatoes", "rte")


def test_glue_needs_datasets():
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(InputError) as caught:
            tasks.load_task("rte")
        assert_sentence(caught, "--task", "pip install datasets")
    else:
        pytest.skip("datasets is installed")


class Rows(dict):
    """Columns with `features`, as the package datasets gives them."""

    features = {"label": SimpleNamespace(names=["entailment", "not_entailment"])}  # noqa: RUF012


def test_glue_splits():
    def rows(prefix, n):
        return Rows(sentence1=[f"{prefix} {i}" for i in range(n)], sentence2=["s"] * n, label=[i % 2 for i in range(n)])

    task = tasks.glue("rte", {"train": rows("t", 40), "validation": rows("v", 6)})
    assert (len(task.train), len(task.dev), len(task.test)) == (36, 4, 6)
    assert all(text.startswith("v") for text in task.test.texts)
    assert task.label_names == ["entailment", "not_entailment"]
    assert task.test.pairs == ["s"] * 6


def assert_sentence(caught, *fragments):
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
