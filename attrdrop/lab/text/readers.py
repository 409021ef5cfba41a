"""Text files read with line numbers, plain or gzipped: tables, tagged sentences, plain texts."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from attrdrop.lab.errors import InputError

Cell = str | list[str]
Content = tuple[list[str], list[tuple[int, dict[str, Cell]]]]  # names of columns; rows with their line


@dataclass(frozen=True)
class Table:
    """The rows of one file as strings, or lists of them where the file holds lists, with the line each came from."""

    path: Path
    columns: list[str]
    rows: list[dict[str, Cell]]
    lines: list[int]

    def column(self, name: str, option: str) -> list[str]:
        """A column of texts; `option` is the command-line option a message about a missing column names."""
        return list(self._cells(name, option, str, "a list, which only token-classification takes"))

    def words(self, name: str, option: str) -> list[list[str]]:
        """A column of lists."""
        return list(self._cells(name, option, list, "a text where token-classification takes a list"))

    def _cells(self, name: str, option: str, kind: type, refusal: str) -> Iterator:
        if name not in self.columns:
            raise InputError(
                f"{option}: {self.path} has no column {name!r}; its columns are {', '.join(self.columns)}."
            )
        for line, row in zip(self.lines, self.rows, strict=True):
            where, cell = f"{self.path}, line {line}: column {name!r}", row[name]
            if not cell or (isinstance(cell, str) and not cell.strip()):
                raise InputError(f"{where} is empty; it must be filled in every row.")
            if not isinstance(cell, kind):
                raise InputError(f"{where} holds {refusal}.")
            if isinstance(cell, list) and not all(part.strip() for part in cell):
                raise InputError(f"{where} holds an empty word.")
            yield cell


@dataclass(frozen=True)
class Format:
    """How a kind of file is read, and what one holds, for messages."""

    read: Callable[[Path, io.TextIOBase], Content]
    holds: str


def read_table(path: Path, option: str, formats: Mapping[str, Format]) -> Table:
    """Read one data file in the format of its ending, with or without .gz: TABLES, SENTENCES or TEXTS.

    Raises InputError with the option, the file and the line at fault.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    suffix = "".join((suffixes[:-1] if gzipped else suffixes)[-1:])
    *some, last = formats
    if not path.is_file():
        raise InputError(
            f"{option}: there is no file {path}; it takes a {', '.join(some)} or {last} file, also with .gz."
        )
    if suffix not in formats:
        raise InputError(f"{option}: {path} is none of {', '.join(some)} and {last}, with or without .gz at the end.")
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") if gzipped else _open(path) as stream:
            columns, numbered = formats[suffix].read(path, stream)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{option}: {path} cannot be read{' as gzip' if gzipped else ''}: {error}.") from None
    if not numbered:
        raise InputError(f"{option}: {path} holds no rows; it needs {formats[suffix].holds}.")
    lines, rows = zip(*numbered, strict=True)
    return Table(path, columns, list(rows), list(lines))


def _open(path: Path) -> io.TextIOBase:
    return path.open(encoding="utf-8-sig", newline="")


def _read_csv(path: Path, stream: io.TextIOBase) -> Content:
    return _read_cells(path, csv.reader(stream, strict=True), "csv")


def _read_tsv(path: Path, stream: io.TextIOBase) -> Content:
    return _read_cells(path, csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), "tsv")


def _read_cells(path: Path, reader, kind: str) -> Content:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        columns: list[str] = next(reader, [])
        if len(set(columns)) < len(columns):
            raise InputError(f"{path}, line 1: two columns have the same name: {', '.join(columns)}.")
        return columns, list(_check_cells(path, reader, columns))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid {kind}: {error}.") from None


def _check_cells(path: Path, reader, columns: list[str]) -> Iterator[tuple[int, dict[str, Cell]]]:
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(columns):
            raise InputError(
                f"{path}, line {reader.line_num}: {len(cells)} fields where the header names {len(columns)} "
                f"({', '.join(columns)})."
            )
        yield reader.line_num, dict(zip(columns, cells, strict=True))


def _read_json(path: Path, stream: io.TextIOBase) -> Content:
    columns: list[str] = []
    rows = []
    for number, line in _filled(stream):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not valid JSON: {error.msg} (column {error.colno}).") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: a {type(record).__name__} where a JSON object is needed.")
        columns = columns or list(record)
        if missing := [name for name in columns if name not in record]:
            raise InputError(f"{path}, line {number}: no {', '.join(map(repr, missing))}, which the first line has.")
        rows.append((number, {name: _cell(record[name]) for name in columns}))
    return columns, rows


def _cell(value: object) -> Cell:
    if isinstance(value, list):
        return ["" if part is None else str(part) for part in value]
    return "" if value is None else str(value)


def _read_conll(path: Path, stream: io.TextIOBase) -> Content:
    """One word a line, its tag in the last column; blank lines and -DOCSTART- stand between sentences."""
    rows: list[tuple[int, dict[str, Cell]]] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(stream, start=1):
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            words, tags = [], []
            continue
        if len(fields) < 2:
            raise InputError(f"{path}, line {number}: {fields[0]!r} stands alone where a word and its tag are needed.")
        if not words:
            rows.append((number, {"tokens": words, "tags": tags}))
        words.append(fields[0])
        tags.append(fields[-1])
    return ["tokens", "tags"], rows


def _read_lines(path: Path, stream: io.TextIOBase) -> Content:
    return ["text"], [(number, {"text": line.strip()}) for number, line in _filled(stream)]


def _filled(stream: Iterable[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(stream, start=1) if line.strip())


_JSON = Format(_read_json, "one example a row")
_CONLL = Format(_read_conll, "one word and its tag a line")
_HEADED = "one example a row under a line of column names"
TABLES = {".csv": Format(_read_csv, _HEADED), ".tsv": Format(_read_tsv, _HEADED), ".jsonl": _JSON}
SENTENCES = {".jsonl": _JSON, ".conll": _CONLL, ".txt": _CONLL}
TEXTS = TABLES | {".txt": Format(_read_lines, "one text a line")}
