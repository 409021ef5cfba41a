"""Labelled text files: csv, tsv (no quoting, as in GLUE) or jsonl, plain or gzipped, read with line numbers."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attrdrop.lab.errors import InputError

FORMATS = {".csv", ".tsv", ".jsonl"}
PAIR_NAMES = [
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
]
TEXT_NAMES = ["text", "sentence"]
LABEL_NAME = "label"


@dataclass(frozen=True)
class Table:
    """The rows of one file as strings, with the line each came from."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]

    def column(self, name: str, option: str) -> list[str]:
        """One column; `option` is the command-line option a message about it names."""
        if name not in self.columns:
            raise InputError(
                f"{option}: {self.path} has no column {name!r}; its columns are {', '.join(self.columns)}."
            )
        for line, row in zip(self.lines, self.rows, strict=True):
            if not row[name].strip():
                raise InputError(
                    f"{self.path}, line {line}: column {name!r} is empty; every row needs text and a label."
                )
        return [row[name] for row in self.rows]


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text, its second half where the task is about pairs, and the label."""

    text: str
    pair: str | None
    label: str


def read_table(path: Path, option: str) -> Table:
    """Read one data file; raises InputError with the option, the file and the line at fault."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if gzipped else suffixes)[-1:]
    if not path.is_file():
        raise InputError(f"{option}: there is no file {path}; it takes a .csv, .tsv or .jsonl file, also with .gz.")
    if not FORMATS.issuperset(kind) or not kind:
        raise InputError(f"{option}: {path} is none of .csv, .tsv and .jsonl, with or without .gz at the end.")
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") if gzipped else _open(path) as stream:
            columns, numbered = _read_json(path, stream) if kind == [".jsonl"] else _read_cells(path, stream, kind[0])
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{option}: {path} cannot be read{' as gzip' if gzipped else ''}: {error}.") from None
    if not numbered:
        raise InputError(f"{option}: {path} holds no rows; it needs one example a row{_header_hint(kind)}.")
    lines, rows = zip(*numbered, strict=True)
    return Table(path, columns, list(rows), list(lines))


def detect_columns(table: Table, text: str | None, pair: str | None, label: str | None) -> Columns:
    """The user's choice of columns, completed from the usual names."""
    names = set(table.columns)
    if text is None and pair is None:
        text, pair = next((names_ for names_ in PAIR_NAMES if names.issuperset(names_)), (None, None))
    if text is None:
        text = next((name for name in TEXT_NAMES if name in names and name != pair), None)
    if text is None:
        raise InputError(
            f"--text-column: name the column of {table.path} that holds the text; its columns are "
            f"{', '.join(table.columns)}."
        )
    if label is None and LABEL_NAME not in names:
        raise InputError(
            f"--label-column: name the column of {table.path} that holds the label; its columns are "
            f"{', '.join(table.columns)}."
        )
    return Columns(text, pair, label or LABEL_NAME)


def _open(path: Path) -> io.TextIOBase:
    return path.open(encoding="utf-8-sig", newline="")


def _header_hint(kind: list[str]) -> str:
    return "" if kind == [".jsonl"] else " under a line of column names"


def _read_cells(path: Path, stream: io.TextIOBase, kind: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    if kind == ".tsv":
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(stream, strict=True)
    try:
        columns = next(reader, [])
        if len(set(columns)) < len(columns):
            raise InputError(f"{path}, line 1: two columns have the same name: {', '.join(columns)}.")
        return columns, list(_check_cells(path, reader, columns))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid {kind[1:]}: {error}.") from None


def _check_cells(path: Path, reader, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(columns):
            raise InputError(
                f"{path}, line {reader.line_num}: {len(cells)} fields where the header names {len(columns)} "
                f"({', '.join(columns)})."
            )
        yield reader.line_num, dict(zip(columns, cells, strict=True))


def _read_json(path: Path, stream: io.TextIOBase) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    columns: list[str] = []
    rows = []
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not valid JSON: {error.msg} (column {error.colno}).") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: a {type(record).__name__} where a JSON object is needed.")
        columns = columns or list(record)
        if missing := [name for name in columns if name not in record]:
            raise InputError(f"{path}, line {number}: no {', '.join(map(repr, missing))}, which the first line has.")
        rows.append((number, {name: "" if record[name] is None else str(record[name]) for name in columns}))
    return columns, rows
