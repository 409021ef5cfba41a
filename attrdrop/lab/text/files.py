"""Tasks from the user's files: which columns are used, and what they must hold for each kind of task."""

import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attrdrop.lab.errors import InputError, listed
from attrdrop.lab.text.examples import (
    CAUSAL_LM,
    CLASSIFICATION,
    KINDS,
    MASKED_LM,
    REGRESSION,
    SEQ2SEQ,
    TOKEN_CLASSIFICATION,
    Examples,
    Task,
    missing_classes,
    split,
)
from attrdrop.lab.text.others import Classes, merged, parse
from attrdrop.lab.text.readers import SENTENCES, TABLES, TEXTS, Format, Table, read_table


@dataclass(frozen=True)
class Layout:
    """The formats of a kind of task, and the usual names of its columns; without names there is no such column."""

    formats: Mapping[str, Format]
    texts: Sequence[str]
    labels: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()


_PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)
_LABELLED = Layout(TABLES, ("text", "sentence"), ("label", "gold_label"), _PAIRS)  # the latter of MNLI and HANS
_PLAIN = Layout(TEXTS, ("text", "sentence"))
LAYOUTS = {
    CLASSIFICATION: _LABELLED,
    REGRESSION: _LABELLED,
    TOKEN_CLASSIFICATION: Layout(SENTENCES, ("tokens",), ("tags", "ner_tags")),
    SEQ2SEQ: Layout(TABLES, ("source", "text"), ("target", "label")),
    MASKED_LM: _PLAIN,
    CAUSAL_LM: _PLAIN,
}


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text, its second half where the task is about pairs, and the label ("" without one)."""

    text: str
    pair: str | None
    label: str


def from_files(
    train: Path,
    dev: Path | None = None,
    test: Path | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    kind: str = CLASSIFICATION,
    other: Sequence[str] = (),
    encoding: str = "utf-8",
) -> Task:
    """A task from files; without a development file a tenth of the training file serves.

    In seq2seq the text column holds the source and the label column the target. `other` are files of
    out-of-distribution examples, as :func:`others.parse` takes them. Raises InputError for what cannot be read or does
    not fit the kind.
    """
    if kind not in KINDS:
        raise InputError(f"--task-type: {kind!r} is not one of {', '.join(KINDS)}.")
    formats = LAYOUTS[kind].formats
    given = {"--train": train, "--dev": dev, "--test": test}
    tables = {option: read_table(path, option, formats, encoding) for option, path in given.items() if path}
    columns = _columns(tables["--train"], kind, text_column, text_pair_column, label_column)
    label_names = _label_names(tables["--train"], columns, kind)
    splits = {option: _examples(table, columns, kind, label_names, option) for option, table in tables.items()}
    if "--dev" not in splits:
        splits["--train"], splits["--dev"] = split(splits["--train"], 0.1, kind)
        if missing := missing_classes(splits["--train"], kind, label_names):
            raise InputError(
                f"--train: with a tenth of {train.name} set aside for development, no example of {listed(missing)} is "
                "left to train on; give more rows, or a development file with --dev."
            )
    task = Task(train.name, kind, label_names, splits["--train"], splits["--dev"], splits.get("--test"))
    others = {
        one.name: labelled_like(task, Path(one.name), encoding, one.classes, columns) for one in map(parse, other)
    }
    return replace(task, other=others)


def labelled_like(
    task: Task, path: Path, encoding: str = "utf-8", classes: Classes | None = None, columns: Columns | None = None
) -> Examples:
    """The examples of a file with these columns, or where it lacks them the usual ones of the task's kind, and labels
    that the task knows or `classes` merge."""
    table = read_table(path, "--other", LAYOUTS[task.kind].formats, encoding)
    if columns is None or {columns.text, columns.pair or columns.text, columns.label} - {""} - set(table.columns):
        columns = _columns(table, task.kind, None, None, None, ("--other", "--other"))
    if (columns.pair is None) != (task.train.pairs is None):
        held = "single texts" if columns.pair is None else "pairs of texts"
        raise InputError(f"--other: {path} holds {held}, unlike the task {task.name}.")
    return _merged_examples(table, columns, task.kind, task.label_names, classes or {}, "--other")


def examples_of(
    path: Path,
    kind: str,
    label_names: list[str],
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    encoding: str = "utf-8",
    classes: Classes | None = None,
) -> Examples:
    """The examples of a file for a model of these classes; without labels where there is no column of them."""
    table = read_table(path, "--on", LAYOUTS[kind].formats, encoding)
    if label_column is None and LAYOUTS[kind].labels and not set(LAYOUTS[kind].labels) & set(table.columns):
        columns = _columns(table, kind, text_column, text_pair_column, "", ("--text-column", ""))
        texts = (
            table.words(columns.text, "--text-column")
            if kind == TOKEN_CLASSIFICATION
            else table.column(columns.text, "--text-column")
        )
        return Examples(texts, table.column(columns.pair, "--text-pair-column") if columns.pair else None, None)
    columns = _columns(table, kind, text_column, text_pair_column, label_column)
    return _merged_examples(table, columns, kind, label_names, classes or {}, "--on")


def _columns(
    table: Table,
    kind: str,
    text: str | None,
    pair: str | None,
    label: str | None,
    options: tuple[str, str] = ("--text-column", "--label-column"),
) -> Columns:
    """The user's choice of columns, completed from the usual names; messages about text and label name `options`."""
    layout = LAYOUTS[kind]
    if pair and not layout.pairs:
        raise InputError(f"--text-pair-column: {kind} takes no second text; leave it out.")
    if label and not layout.labels:
        raise InputError(f"--label-column: {kind} takes only the text; leave it out.")
    if text is None and pair is None:
        text, pair = next((names for names in layout.pairs if set(names) <= set(table.columns)), (None, None))
    if text is None:
        text = _usual(table, [name for name in layout.texts if name != pair], options[0], "text")
    if label is None:
        label = _usual(table, layout.labels, options[1], "label") if layout.labels else ""
    return Columns(text, pair, label)


def _usual(table: Table, names: Sequence[str], option: str, what: str) -> str:
    for name in names:
        if name in table.columns:
            return name
    raise InputError(
        f"{option}: {table.path} has no column {' or '.join(names)} for the {what}; its columns are "
        f"{listed(table.columns, 50)}."
    )


def _label_names(table: Table, columns: Columns, kind: str) -> list[str]:
    """The classes or tags of the training file; other kinds have none. Warns of names that look alike."""
    if kind not in (CLASSIFICATION, TOKEN_CLASSIFICATION):
        return []
    names = (_class_names if kind == CLASSIFICATION else _tag_names)(table, columns.label)
    alike: dict[str | float, list[str]] = {}
    for name in names:
        number = _number(name)
        alike.setdefault(unicodedata.normalize("NFKC", name).casefold() if number is None else number, []).append(name)
    for group in alike.values():
        if len(group) > 1:
            warnings.warn(
                f"--train: {listed(group)} in column {columns.label!r} of {table.path} look alike but are "
                f"{len(group)} different labels",
                stacklevel=2,
            )
    return names


def _labels(table: Table, column: str) -> list[str]:
    """Those of a class each, without blanks around them; 1.0, as pandas writes 1 beside a gap, is 1."""
    labels = [label.strip() for label in table.column(column, "--label-column")]
    return [re.sub(r"(?<=\d)\.0+$", "", label) if _number(label) is not None else label for label in labels]


def _class_names(table: Table, column: str) -> list[str]:
    names = set(_labels(table, column))
    if len(names) < 2:
        raise InputError(
            f"--train: {table.path} holds only one class, {next(iter(names))!r} in column {column!r}; "
            "a classifier needs two or more."
        )
    if len(names) > max(20, len(table.rows) // 2):
        advice = "" if None in map(_number, names) else "; --task-type regression predicts numbers"
        raise InputError(
            f"--label-column: column {column!r} of {table.path} has {len(names)} different values in "
            f"{len(table.rows)} rows, which does not look like a class label{advice}."
        )
    return sorted(names, key=int) if all(re.fullmatch(r"-?\d{1,999}", name) for name in names) else sorted(names)


def _tag_names(table: Table, column: str) -> list[str]:
    """O first, then the names in alphabetical order, the beginning of each before its inside."""
    names: set[str] = set()
    for line, tags in zip(table.lines, table.words(column, "--label-column"), strict=True):
        if odd := [tag for tag in tags if tag != "O" and not (tag.startswith(("B-", "I-")) and tag[2:])]:
            raise InputError(
                f"--label-column: {table.path}, line {line}: tag {odd[0]!r} is neither O nor of the form B-<name> or "
                "I-<name>."
            )
        names.update(tags)
    if names == {"O"}:
        raise InputError(f"--train: {table.path} holds only the tag O in column {column!r}; there is nothing to find.")
    return ["O", *sorted(names - {"O"}, key=lambda tag: (tag[2:], tag))]


def _examples(table: Table, columns: Columns, kind: str, label_names: list[str], option: str) -> Examples:
    """The examples of one file; `option` is where it was named."""
    if kind == TOKEN_CLASSIFICATION:
        words, tags = table.words(columns.text, "--text-column"), table.words(columns.label, "--label-column")
        for line, *pair in zip(table.lines, words, tags, strict=True):
            if len(pair[0]) != len(pair[1]):
                raise InputError(
                    f"{option}: {table.path}, line {line}: {len(pair[0])} words but {len(pair[1])} tags; every word "
                    "needs one."
                )
        return Examples(words, None, _indices(table, tags, label_names, option))
    texts = table.column(columns.text, "--text-column")
    pairs = table.column(columns.pair, "--text-pair-column") if columns.pair else None
    if kind == CLASSIFICATION:
        names = [[name] for name in _labels(table, columns.label)]
        return Examples(texts, pairs, [index for (index,) in _indices(table, names, label_names, option)])
    labels = table.column(columns.label, "--label-column") if columns.label else None
    return Examples(texts, pairs, _numbers(table, columns.label, labels) if labels and kind == REGRESSION else labels)


def _merged_examples(
    table: Table, columns: Columns, kind: str, label_names: list[str], classes: Classes, option: str
) -> Examples:
    """The examples of another set, with classes of its own where some are named."""
    if not classes:
        return _examples(table, columns, kind, label_names, option)
    if kind != CLASSIFICATION:
        raise InputError(f"{option}: {table.path}: only {CLASSIFICATION} has classes to merge, not {kind}.")
    own = merged(classes, label_names, f"{option}: {table.path}")
    return replace(_examples(table, columns, kind, list(own.names), option), merged=own)


def _indices(table: Table, labels: list[list[str]], label_names: list[str], option: str) -> list[list[int]]:
    index = {name: number for number, name in enumerate(label_names)}
    for line, names in zip(table.lines, labels, strict=True):
        for name in names:
            if name not in index:
                raise InputError(
                    f"{option}: {table.path}, line {line}: label {name!r} does not occur in the training data, "
                    f"whose labels are {listed(label_names)}."
                )
    return [[index[name] for name in names] for names in labels]


def _numbers(table: Table, column: str, labels: list[str]) -> list[float]:
    numbers = []
    for line, label in zip(table.lines, labels, strict=True):
        number = _number(label)
        if number is None:
            raise InputError(
                f"--task-type: regression needs numbers, but {table.path}, line {line}, column {column!r} holds "
                f"{label!r}; use classification."
            )
        numbers.append(number)
    return numbers


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
