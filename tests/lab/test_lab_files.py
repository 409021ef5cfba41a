"""Tasks from the user's files: what is accepted, and the sentence for what is not."""

import gzip
import json

import pytest
from refusals import assert_sentence

from attrdrop.lab.errors import InputError
from attrdrop.lab.text import tasks
from attrdrop.lab.text.readers import SENTENCES, TABLES, TEXTS, read_table

GOOD = "text,label\ngood,yes\nbad,no\nfine,yes\npoor,no\n"
NAMES = [("Ada Lovelace wrote .", "B-PER I-PER O O"), ("In Turin", "O B-LOC")]


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_formats_read_alike(write, kind, gz):
    rows = [("a, b", "0"), ('say ""', "1"), ("ü", "0")]
    text = {
        "csv": 'text,label\n"a, b",0\n"say """"",1\nü,0\n',
        "tsv": "\ufefftext\tlabel\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in rows),
        "jsonl": "".join(json.dumps({"text": text, "label": int(label)}) + "\n\n" for text, label in rows),
    }[kind]
    table = read_table(write(f"data.{kind}{gz}", text), "--train", TABLES)
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
    "labels",
    [
        ["1", "1.0", "0", "0.0"],
        ["1.0", "0.0", "1.00", "0"],
        ["1", " 1", "0 ", "0"],
    ],
)
def test_a_number_is_one_label_however_it_is_written(write, labels):
    path = write("train.csv", "text,label\n" + "".join(f"t,{label}\n" for label in labels))
    dev = write("dev.jsonl", '{"text": "t", "label": 1}\n{"text": "t", "label": 0.0}\n')
    task = tasks.from_files(path, dev)
    assert task.label_names == ["0", "1"]
    assert sorted(task.train.labels) == [0, 0, 1, 1]
    assert task.dev.labels == [1, 0]


def test_labels_that_are_no_whole_numbers_stay_as_they_are(write):
    path = write("train.csv", "text,label\n" + "".join(f"t,{label}\n" for label in ("v1.0", "1.5", "1.50", "--1")))
    assert tasks.from_files(path, path).label_names == ["--1", "1.5", "1.50", "v1.0"]


def test_labels_that_look_alike_are_named(write):
    path = write("train.csv", "text,label\n" + "".join(f"t,{label}\n" for label in ("Spam", "spam", "ham") * 2))
    with pytest.warns(
        UserWarning, match=r"'Spam', 'spam' in column 'label' of .*train\.csv look alike but are 2 different labels"
    ):
        assert len(tasks.from_files(path, path).label_names) == 3
    numbers = write("train.csv", "text,label\na,01\nb,1\nc,1e0\nd,2.50\ne,2.5\n")
    with pytest.warns(UserWarning, match="look alike") as warned:
        tasks.from_files(numbers, numbers)
    assert [str(one.message).split(" in column")[0] for one in warned] == [
        "--train: '01', '1', '1e0'",
        "--train: '2.5', '2.50'",
    ]
    tagged = write("train.conll", "a B-LOC\nb B-loc\n")
    with pytest.warns(UserWarning, match=r"'B-LOC', 'B-loc' in column 'tags'"):
        tasks.from_files(tagged, tagged, kind="token-classification")


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_csv_with_other_marks_between_its_columns(write, mark):
    rows = [("a, b", "0"), (f'"c{mark} d"', "1")]
    path = write("train.csv", "\n\n" + "".join(f"{mark.join(row)}\n" for row in [("text", "label"), *rows]))
    task = tasks.from_files(path, path)
    assert (task.train.texts, task.train.labels) == (["a, b", f"c{mark} d"], [0, 1])


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "UTF8"])
def test_encodings(tmp_path, encoding, gz):
    content = "text,label\né,oui\nà,non\n".encode(encoding)
    path = tmp_path / f"train.csv{gz}"
    path.write_bytes(gzip.compress(content) if gz else content)
    task = tasks.from_files(path, path, path, other=[str(path)], encoding=encoding)
    assert task.train.texts == task.other[str(path)].texts == ["é", "à"]


def conll(sentences, columns=2):
    """Sentences in the format of CoNLL, with columns between word and tag."""
    between = " x" * (columns - 2)
    return "\n\n".join(
        "\n".join(f"{word}{between} {tag}" for word, tag in zip(words.split(), tags.split(), strict=True))
        for words, tags in sentences
    )


def jsonl(sentences, key="tags"):
    return "".join(json.dumps({"tokens": words.split(), key: tags.split()}) + "\n" for words, tags in sentences)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", jsonl(NAMES)),
        ("train.jsonl.gz", jsonl(NAMES, "ner_tags")),
        ("train.conll", conll(NAMES)),
        ("train.txt", f"-DOCSTART- O\n\n{conll(NAMES)}\n"),
        ("train.txt.gz", f"-DOCSTART- -X- -X- O\r\n\r\n{conll(NAMES, 4)}\n\n\n"),
    ],
)
def test_tagged_words(write, name, content):
    path = write(name, content)
    task = tasks.from_files(path, path, path, kind="token-classification")
    assert task.label_names == ["O", "B-LOC", "B-PER", "I-PER"]
    assert task.train.texts == [words.split() for words, _ in NAMES]
    assert task.train.labels == [[2, 3, 0, 0], [0, 1]]
    assert task.train == task.dev == task.test


def test_conll_rows_have_the_line_of_their_first_word(write):
    table = read_table(write("train.conll", f"\n{conll(NAMES)}"), "--train", SENTENCES)
    assert table.lines == [2, 7]


def test_words_with_spaces_between_tabs(write):
    path = write("train.conll", "10 000\tCD\tO\nLos Angeles\tNNP\tB-LOC\n")
    task = tasks.from_files(path, path, kind="token-classification")
    assert (task.train.texts, task.train.labels) == ([["10 000", "Los Angeles"]], [[0, 1]])


def test_numbers_that_are_words(write):
    path = write("train.conll", "1 CD O\n2 CD O\nis IN O\nnot IN O\nin IN O\nTurin NNP B-LOC\n")
    assert tasks.from_files(path, path, kind="token-classification").train.texts[0][:2] == ["1", "2"]


def test_values_of_json_are_spelt_as_in_json(write):
    big = "9" * 5000
    rows = [("true", "1"), ("false", "2.5"), (big, "-3")]
    path = write("train.jsonl", "".join(f'{{"text": {text}, "label": {label}}}\n' for text, label in rows))
    task = tasks.from_files(path, path, kind="regression")
    assert (task.train.texts, task.train.labels) == (["true", "false", big], [1.0, 2.5, -3.0])


@pytest.mark.parametrize("names", [("source", "target"), ("text", "label")])
def test_translations(write, names):
    path = write("train.tsv", "\t".join(names) + "\nhello\thola\nyes\tsí\n")
    task = tasks.from_files(path, path, kind="seq2seq")
    assert (task.train.texts, task.train.labels, task.label_names) == (["hello", "yes"], ["hola", "sí"], [])
    turned = tasks.from_files(path, path, text_column=names[1], label_column=names[0], kind="seq2seq")
    assert (turned.train.texts, turned.train.labels) == (["hola", "sí"], ["hello", "yes"])


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.txt", "one text\n\n  another, with a comma \n"),
        ("train.csv", 'text,label\none text,\n"another, with a comma",x\n'),
        ("train.jsonl", '{"sentence": "one text"}\n{"sentence": "another, with a comma"}\n'),
    ],
)
def test_texts_alone(write, kind, name, content):
    path = write(name, content)
    task = tasks.from_files(path, path, kind=kind)
    assert (task.train.texts, task.train.labels) == (["one text", "another, with a comma"], None)


def test_lines_of_text_are_numbered(write):
    assert read_table(write("train.txt.gz", "\na\n\nb\n"), "--train", TEXTS).lines == [2, 4]


def test_numbers_to_predict(write):
    path = write("train.csv", "sentence1,sentence2,label\na,b,1\nc,d,-2.5e0\n")
    task = tasks.from_files(path, path, kind="regression")
    assert (task.train.labels, task.train.pairs, task.label_names) == ([1.0, -2.5], ["b", "d"], [])


def test_other_files_have_the_columns_and_labels_of_the_training_file(write):
    other = write("other.csv", "body,class\nnew,no\n")
    train = write("train.csv", GOOD.replace("text,label", "body,class"))
    task = tasks.from_files(train, text_column="body", label_column="class", other=[str(other)])
    assert task.other == {str(other): tasks.Examples(["new"], None, [0])}


@pytest.mark.parametrize(
    ("name", "content", "columns", "fragments"),
    [
        ("train.csv", "", {}, ["no rows", "column names"]),
        ("train.csv", "text,label\n", {}, ["no rows"]),
        ("train.jsonl", "\n", {}, ["no rows"]),
        ("train.xlsx", GOOD, {}, ["not a .csv, .tsv or .jsonl file"]),
        ("train", GOOD, {}, ["not a .csv, .tsv or .jsonl file"]),
        ("train.csv", GOOD + "a,b,c\n", {}, ["line 6", "3 fields", "2 ('text', 'label')"]),
        ("train.tsv", "text\tlabel\nalone\n", {}, ["line 2", "1 fields"]),
        ("train.csv", "text, label\na,1\nb,0\n", {}, ["no column label", "its columns are 'text', ' label'"]),
        ("train.csv", 'text,label\n"open,yes\n', {}, ["line 2", "not valid csv", "begins here"]),
        (
            "train.csv",
            f'{GOOD}"open,yes\n' + "fine,yes\n" * 15,
            {},
            ["line 6", "a quote that begins here does not end"],
        ),
        ("train.csv", f'{GOOD}"a\nb","open, yes\n' + 'x ""y"", z\n' * 9, {}, ["line 7", "begins here"]),
        ("train.csv", f'{GOOD}5" wide,"open ""it""\n' + "x,y\n" * 9, {}, ["line 6", "begins here"]),
        ("train.csv", f'{GOOD}"open,yes\nfine,no\n"good",no\n', {}, ["line 8", "a quote has been open since line 6"]),
        ("train.csv", f'{GOOD}"a"b,yes\n', {}, ["train.csv, line 6: not valid csv: ',' expected after '\"'."]),
        ("train.csv", f'{GOOD}"a\nb",yes,more\n', {}, ["line 6", "3 fields"]),
        ("train.tsv", "text,label\na,1\nb,0\n", {}, ["line 1", "no tabs in 'text,label'", "is a .csv"]),
        ("train.csv", "text,text\na,b\n", {}, ["same name"]),
        ("train.jsonl", '{"text": "a", "label": 1}\n{"text": \n', {}, ["line 2", "not valid JSON"]),
        ("train.jsonl", "[1, 2]\n", {}, ["line 1", "list instead of a JSON object"]),
        ("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {}, ["line 2", "no 'label'"]),
        ("train.csv", GOOD + "  ,yes\n", {}, ["line 6", "'text' is empty"]),
        ("train.csv", GOOD + "more,\n", {}, ["line 6", "'label' is empty"]),
        ("train.jsonl", '{"text": null, "label": 1}\n{"text": "b", "label": 0}', {}, ["line 1", "'text' is empty"]),
        (
            "train.jsonl",
            '{"text": "a", "label": 1}\n\n{"text": {"en": "b"}, "label": 0}',
            {},
            ["line 3: column 'text'", 'a JSON object instead of a text: {"en": "b"}'],
        ),
        ("train.jsonl", '{"text": "a", "label": {"id": 1}}', {}, ["line 1", "'label' holds a JSON object"]),
        (
            "train.jsonl",
            '{"text": ["a"], "label": 1}\n{"text": "b", "label": 0}',
            {},
            ["line 1", "'text' holds a list"],
        ),
        ("train.jsonl", '{"text": NaN, "label": 1}\n{"text": "b", "label": 0}', {}, ["line 1", "'text' is empty"]),
        ("train.jsonl", '{"text": "a", "text": "b", "label": 1}', {}, ["line 1", "same name twice", "'text'"]),
        (
            "train.jsonl",
            '{"text": "cut \\ud83d", "label": 1}\n{"text": "b", "label": 0}',
            {},
            ["line 1", r"'\ud83d', half"],
        ),
        ("train.jsonl", '{"text": "a", "label": "\\udc00x"}', {}, ["line 1", "'label' holds", r"'\udc00', half"]),
        (
            "train.jsonl",
            '{"text": {"\\ud83d": 1}, "label": 1}\n{"text": "b", "label": 0}',
            {},
            ["line 1", r'{"\ud83d"'],
        ),
        ("train.jsonl", "[" * 100_000, {}, ["line 1", "not usable JSON"]),
        ("train.csv", "text,label\na,1\nb,1\n", {}, ["only one class", "'1'"]),
        ("train.csv", "text,label\n" + "".join(f"a,{n / 7}\n" for n in range(30)), {}, ["30 different values"]),
        ("train.csv", "body,label\na,1\nb,0\n", {}, ["--text-column", "'body', 'label'"]),
        ("train.csv", "text,score\na,1\nb,0\n", {}, ["--label-column", "'text', 'score'"]),
        ("train.csv", GOOD, {"text_column": "body"}, ["--text-column", "'body'", "'text', 'label'"]),
        ("train.csv", GOOD, {"text_pair_column": "other"}, ["--text-pair-column", "'other'", "'text', 'label'"]),
        ("train.csv", GOOD, {"label_column": "class"}, ["--label-column", "'class'", "'text', 'label'"]),
    ],
)
def test_bad_training_file(write, name, content, columns, fragments):
    path = write(name, content)
    with pytest.raises(InputError) as caught:
        tasks.from_files(path, **columns)
    assert_sentence(caught, str(path), *fragments)


WORDS = {"kind": "token-classification"}


@pytest.mark.parametrize(
    ("name", "content", "options", "fragments"),
    [
        ("train.csv", GOOD, {"kind": "ranking"}, ["--task-type", "'ranking'", "masked-lm"]),
        (
            "train.csv",
            "text,label\na,1\nb,good\n",
            {"kind": "regression"},
            [
                "--task-type: regression needs numbers, but ",
                "train.csv, line 3, column 'label' holds 'good'; use class",
            ],
        ),
        ("train.csv", "text,label\na,nan\nb,1\n", {"kind": "regression"}, ["line 2", "'nan'"]),
        ("train.csv", "text,label\n" + "".join(f"a,{n / 7}\n" for n in range(30)), {}, ["--task-type regression"]),
        ("train.csv", GOOD, WORDS, ["--train", "not a .jsonl, .conll or .txt file"]),
        ("train.txt", GOOD, {}, ["--train", "not a .csv, .tsv or .jsonl file"]),
        ("train.jsonl", jsonl(NAMES), {}, ["--text-column", "text or sentence", "'tokens', 'tags'"]),
        ("train.jsonl", jsonl(NAMES, "label"), {"text_column": "tokens"}, ["line 1", "'label' holds a list"]),
        ("train.jsonl", jsonl(NAMES), {"kind": "causal-lm", "text_column": "tokens"}, ["line 1", "holds a list"]),
        ("train.jsonl", '{"tokens": "In Turin", "tags": ["B-X"]}', WORDS, ["line 1", "'tokens' holds a text"]),
        ("train.jsonl", '{"tokens": ["In"], "tags": "O"}', WORDS, ["line 1", "'tags' holds a text"]),
        ("train.jsonl", '{"tokens": ["a", "b"], "tags": ["B-X"]}', WORDS, ["--train", "line 1", "2 words but 1 tags"]),
        ("train.jsonl", '{"tokens": ["a", " "], "tags": ["B-X", "O"]}', WORDS, ["line 1", "empty word"]),
        ("train.jsonl", '{"tokens": ["a", "\\ud83d"], "tags": ["B-X", "O"]}', WORDS, ["line 1", "half of a character"]),
        ("train.jsonl", '{"tokens": ["a", ["b"]], "tags": ["B-X", "O"]}', WORDS, ["line 1", 'only words: ["b"]']),
        ("train.jsonl", '{"tokens": [{"form": "a"}], "tags": ["B-X"]}', WORDS, ["line 1", 'only words: {"form": "a"}']),
        (
            "train.conll",
            "\n1\tAda\tB-PER\n2\twrote\tO\n\n1\tIn\tO\n2\tTurin\tB-LOC\n",
            WORDS,
            ["line 2: the first column holds running numbers ('1', '2')", "leave out"],
        ),
        ("train.txt", "1 O\n2 B-X\n", WORDS, ["line 1", "running numbers"]),
        ("train.txt", "0 In IN O\n1 Turin NNP B-LOC\n", WORDS, ["line 1", "running numbers ('0', '1')"]),
        (
            "train.conll",
            "1-2 zum O\n1 zu O\n2 dem O\n2.1 x O\n3 See B-LOC\n",
            WORDS,
            ["line 1", "numbers ('1-2', '1')"],
        ),
        ("train.conll", "w9. In O\nw10. Turin B-LOC\n\nw11. to O\nw12. us O\n", WORDS, ["line 1", "('w9.', 'w10.')"]),
        ("train.conll", "a/b 0 In IN O\na/b 1 Turin NNP B-LOC\n", WORDS, ["line 1", "again and again ('a/b', 'a/b')"]),
        ("train.jsonl", '{"tokens": [], "tags": []}', WORDS, ["line 1", "is empty"]),
        ("train.jsonl", '{"tokens": ["a"], "tags": ["X"]}', WORDS, ["line 1", "tag 'X'", "B-<name>"]),
        ("train.jsonl", '{"tokens": ["a"], "ner_tags": [3]}', WORDS, ["line 1", "tag '3'", "B-<name>"]),
        ("train.conll", f"{conll(NAMES)}\n\nat O\nhome B-\n", WORDS, ["line 9", "tag 'B-'"]),
        ("train.conll", "a B-X\nalone\n", WORDS, ["line 2", "'alone'", "a word and its tag"]),
        ("train.conll", "\n", WORDS, ["--train", "no rows", "one word and its tag per line"]),
        ("train.conll", "a O\nb O\n", WORDS, ["--train", "only the tag O"]),
        ("train.txt", " \n", {"kind": "masked-lm"}, ["--train", "no rows", "one text per line"]),
        ("train.csv", "text,target\na,b\nc,\n", {"kind": "seq2seq"}, ["line 3", "'target' is empty"]),
        ("train.csv", "text,aim\na,b\n", {"kind": "seq2seq"}, ["--label-column", "target or label", "'text', 'aim'"]),
        ("train.csv", GOOD, {"kind": "seq2seq", "text_pair_column": "x"}, ["--text-pair-column", "no second text"]),
        ("train.csv", GOOD, {"kind": "masked-lm", "label_column": "label"}, ["--label-column", "only the text"]),
        ("train.csv", GOOD, {"other": ["none.csv"]}, ["--other", "no file none.csv"]),
    ],
)
def test_file_that_does_not_fit_its_kind(write, name, content, options, fragments):
    path = write(name, content)
    with pytest.raises(InputError) as caught:
        tasks.from_files(path, **options)
    assert_sentence(caught, *fragments)


def test_unseen_tag(write):
    train, dev = write("train.conll", conll(NAMES)), write("dev.conll", f"{conll(NAMES)}\n\nUN B-ORG\n")
    with pytest.raises(InputError) as caught:
        tasks.from_files(train, dev, **WORDS)
    assert_sentence(caught, "--dev", "line 9", "'B-ORG'", "'O', 'B-LOC'")


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
    with pytest.raises(InputError) as caught:
        tasks.from_files(latin)
    assert_sentence(
        caught, "--train", str(latin), "is not in utf-8: line 2 holds the byte 0xe9", "--encoding", "cp1252"
    )
    for name in ("utf-9", "rot13", "base64"):
        with pytest.raises(InputError) as caught:
            tasks.from_files(latin, encoding=name)
        assert_sentence(caught, f"--encoding: '{name}' is not a text encoding")
    for path in (not_gzip, cut, corrupt):
        with pytest.raises(InputError) as caught:
            tasks.from_files(path)
        assert_sentence(caught, "--train", str(path), "cannot be read")


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("ending", "row", "kind"),
    [
        (".csv", b"fine,yes\n", "classification"),
        (".jsonl", b'{"text": "fine", "label": 1}\n', "classification"),
        (".conll", b"fine O\n\n", "token-classification"),
        (".txt", b"fine\r\n", "causal-lm"),
    ],
)
def test_a_byte_that_is_none_of_the_encoding_is_found(tmp_path, ending, row, kind, gz):
    path = tmp_path / f"train{ending}{gz}"
    content = row * 40_000 + row.replace(b"fine", b"d\xe9j\xe0") + row
    path.write_bytes(gzip.compress(content) if gz else content)
    with pytest.raises(InputError) as caught:
        tasks.from_files(path, kind=kind)
    line = content[: content.index(b"\xe9")].count(b"\n") + 1
    assert line > 40_000
    assert_sentence(caught, "--train", path.name, f"line {line} holds the byte 0xe9", "--encoding")


def test_texts_that_utf_16_does_not_have(write):
    path = write("train.csv", GOOD)
    with pytest.raises(InputError) as caught:
        tasks.from_files(path, encoding="utf-16")
    assert_sentence(caught, "is not in utf-16: UTF-16 stream does not start with BOM")


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
